"""A folder that is written into: whatever fails, whoever edits meanwhile, and at whatever moment we are killed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from container_runner.errors import ConflictError, StateError, WorkspaceError
from container_runner.workspace import apply, target
from container_runner.workspace.changes import Changes
from container_runner.workspace.objects import contents, difference
from container_runner.workspace.shadow import Shadow
from tests.workspace.scene import FILES, LINES, RUN, changes_of, everything, look, make_folder, ran, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES)


class Meddled:
    """`os` for the module that writes, in which something happens before the nth call that changes anything."""

    def __init__(self, at: int, happening: object, *, again: bool = False) -> None:
        self.calls = 0
        self._at, self._happening, self._again = at, happening, again

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        changing = (
            "rename",
            "link",
            "mkdir",
            "rmdir",
            "unlink",
            "symlink",
            "chown",
            "fchown",
            "fchmod",
            "open",
            "chmod",
        )
        if name not in changing:
            return real

        def call(*args: object, **named: object) -> object:
            if name != "open" or (len(args) > 1 and int(args[1]) & os.O_CREAT):  # type: ignore[call-overload]  # the flags of open are an int
                self.calls += 1
                if self.calls == self._at or (self._again and self.calls > self._at):
                    self._happening()  # type: ignore[operator]  # a function in a field that is an object
            return real(*args, **named)

        return call


def full() -> None:
    raise OSError(28, "No space left on device")


async def prepared(shadow: Shadow) -> Callable[[Callable[[], object]], None]:
    """What writes the work into the folder, with all that git has to say about it said already.

    It takes what is called before the first name changes.
    """
    now, tree = await shadow.snapshot(), str(await shadow.ref(RUN, "result"))
    todo = await difference(shadow, now, tree)
    blobs: dict[bytes, bytes] = {}
    async for some in contents(shadow, {entry.oid for _, entry in todo.values() if entry}):
        blobs |= some

    def write(first: Callable[[], object]) -> None:
        with apply.writing(shadow, RUN) as target:
            assert not target.folds_names()
            for number, (path, (_, entry)) in enumerate(todo.items()):
                if entry is not None:
                    target.make(path, number, entry.mode, blobs[entry.oid])
            steps = target.plan(todo)
            first()
            target.carry_out(steps)

    return write


@pytest.mark.parametrize("again", [False, True], ids=["once", "for good"])
async def test_a_failure_at_any_step_leaves_all_as_it_was(
    work: Path, state: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    shadow = await ran(work, state, everything)
    carry_out = await prepared(shadow)
    before, failures = look(work), 0
    for step in range(1, 1000):
        meddled = Meddled(step, full, again=again)
        with monkeypatch.context() as patched, contextlib.suppress(OSError):
            patched.setattr("container_runner.workspace.target.os", meddled)
            carry_out(str)
            break
        failures += 1
        apply.recover(shadow.workspace, state)  # what was not cleaned up is, once it can be
        if (work / "blob").exists():  # all was done, and only our folder could not be removed
            break
        assert look(work) == before, step
    assert failures > 40
    assert (work / "sub/deep").read_text() == "a file now\n"
    assert not list(work.glob(".container-runner-*"))


def killed(work: Callable[[], object], at: int) -> bool:
    """Whether a process that does this *work* is dead before it is done: it kills itself before a change of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads that wait for work: the child has none of them
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            vars(target)["os"] = Meddled(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            work()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_kill_at_any_step_is_undone_also_if_that_is_killed(work: Path, state: Path) -> None:
    shadow = await ran(work, state, everything)
    carry_out = await prepared(shadow)
    before, kills, undone = look(work), 0, 0
    for step in range(1, 1000):
        if not killed(lambda: carry_out(str), step):
            break
        kills += 1
        for again in (1 + step // 5, 1 + step // 2):
            killed(lambda: apply.recover(shadow.workspace, state), again)
        undone += apply.recover(shadow.workspace, state) == RUN
        after = look(work)
        assert not list(shadow.folder.glob("apply.json*"))
        if "blob" in after:  # the kill came when all was done
            assert {name: facts for name, facts in after.items() if not name.startswith(".git")} == wanted_after(state)
            break
        assert after == before, step
    assert kills > 50
    assert undone < kills


def wanted_after(state: Path) -> dict[str, tuple[str, str]]:
    """What the folder is with all changes."""
    folder = make_folder(state / "wanted", FILES, is_repository=False)
    everything(folder)
    return look(folder)


async def test_after_a_kill_the_next_command_undoes_it_and_goes_on(work: Path, state: Path) -> None:
    shadow = await ran(work, state, everything)
    carry_out = await prepared(shadow)
    assert killed(lambda: carry_out(str), 40)
    assert list(work.glob(".container-runner-*"))

    applied = await (await Changes.load(shadow, RUN)).apply()

    assert len(applied.paths) == 13
    assert not list(work.glob(".container-runner-*"))
    assert (work / "a").read_text().endswith("eight\n")


@pytest.mark.parametrize(("moment", "is_done"), [("make", False), ("plan", False), ("carry_out", True)])
async def test_a_cancelled_apply_is_all_or_nothing(
    work: Path, state: Path, monkeypatch: pytest.MonkeyPatch, moment: str, is_done: bool
) -> None:
    changes = await changes_of(work, state, everything)
    before, real = look(work), getattr(target.Target, moment)

    def cancelled(*words: object) -> object:
        scope.cancel()
        return real(*words)

    with anyio.CancelScope() as scope, monkeypatch.context() as patched:
        patched.setattr(target.Target, moment, cancelled)
        await changes.apply()
    assert scope.cancelled_caught
    assert (look(work) == before, (work / "blob").exists()) == (not is_done, is_done)
    assert not list(work.glob(".container-runner-*"))

    await changes.apply()

    assert (work / "sub/deep").read_text() == "a file now\n"


async def test_what_the_user_changed_after_a_kill_is_kept(work: Path, state: Path) -> None:
    shadow = await ran(work, state, everything)
    carry_out = await prepared(shadow)
    step = 1
    while not (work / "new/y").exists():
        assert killed(lambda: carry_out(str), step)
        if not (work / "new/y").exists():
            apply.recover(shadow.workspace, state)
        step += 1
    (work / "new/y").write_text("edited by the user\n")

    assert apply.recover(shadow.workspace, state) == RUN

    assert (work / "new/y").read_text() == "edited by the user\n"
    assert (work / "a").read_text() == LINES
    assert not (work / "new/one").exists()


async def test_an_apply_that_goes_on_is_waited_for_and_not_undone(
    work: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = await changes_of(work, state, everything)
    assert changes.shadow is not None
    monkeypatch.setattr("container_runner.workspace.apply.LOCK_TIMEOUT", 0.2)
    async with apply.locked(changes.shadow):
        (changes.shadow.folder / "apply.json").write_text('{"run": "x", "steps": []}')
        assert apply.recover(work, state) is None
        with pytest.raises(StateError, match="too long"):
            await changes.apply()
    assert len((await changes.apply()).paths) == 13


async def test_a_failure_that_can_not_be_undone_is_told_and_undone_by_the_next_command(
    work: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = await changes_of(work, state, everything)
    before = look(work)
    with monkeypatch.context() as patched:
        patched.setattr("container_runner.workspace.target.os", Meddled(40, full, again=True))
        with pytest.raises(WorkspaceError, match="can not be undone: No space left") as caught:
            await changes.apply()
    assert f".container-runner-{RUN}" in caught.value.next_step
    assert look(work) != before

    assert changes.shadow is not None
    assert apply.recover(work, state) == RUN
    assert look(work) == before


async def test_a_journal_that_is_none_is_told(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, everything)
    assert changes.shadow is not None
    (changes.shadow.folder / "apply.json").write_text("{}")

    with pytest.raises(StateError, match="can not be read"):
        await changes.apply()


async def test_a_folder_of_our_name_that_is_not_ours_stays(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, everything)
    write(work, {f".container-runner-{RUN}/precious": "x"})

    with pytest.raises(WorkspaceError, match="File exists"):
        await changes.apply()

    assert (work / f".container-runner-{RUN}/precious").read_text() == "x"


@pytest.mark.parametrize("name", ["a", "b", "new/y"])
async def test_an_edit_in_the_middle_of_an_apply_is_kept(
    work: Path, state: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The user saves a file that is to be replaced, removed or made, just before each of the steps."""

    def edit(box: Path) -> None:
        (box / "b").unlink()
        write(box, {"a": "the agent's\n", "new/y": "the agent's\n"})

    carry_out = await prepared(await ran(work, state, edit))
    before, refused, mine = look(work), 0, ""
    for step in range(1, 100):
        mine = f"saved by the user before step {step}"
        with monkeypatch.context() as patched:
            meddled = Meddled(step, functools.partial(write, work, {name: mine}))
            try:
                carry_out(functools.partial(patched.setattr, "container_runner.workspace.target.os", meddled))
            except ConflictError:
                refused += 1
            else:
                break
        assert (work / name).read_text() == mine, step
        if name == "new/y":
            (work / name).unlink()
            (work / "new").rmdir()
        else:
            (work / name).write_text(FILES[name])
        assert look(work) == before, step
    assert refused >= 2
    assert (work / name).read_text() == mine  # it was saved when the agent's was there, or gone, already
