"""Locks, between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from container_runner.engine.locks import LockFile, claim
from container_runner.errors import StateError, WorkspaceBusyError

HOLDER = """
import sys
from pathlib import Path
from container_runner.engine.locks import LockFile
lock = LockFile(Path(sys.argv[1]))
print(lock.try_acquire(shared=sys.argv[2] == "shared"), flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(path: Path, how: str = "exclusive") -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock until the block's end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        try:
            yield holder
        finally:
            holder.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks/a.lock"


def test_a_lock_is_for_one_process_until_it_is_killed(path: Path) -> None:
    with held_by_another(path) as holder:
        assert not LockFile(path).try_acquire()
        assert not LockFile(path).try_acquire(shared=True)

        holder.send_signal(signal.SIGKILL)
        holder.wait()

        assert LockFile(path).try_acquire()


async def test_a_lock_is_not_waited_for_for_ever(path: Path) -> None:
    with held_by_another(path) as holder:
        holder.send_signal(signal.SIGSTOP)  # the kernel lets go of a dead process's locks, but not of this one's
        with pytest.raises(StateError, match=r"held for 0\.2 seconds by another process") as caught:
            await LockFile(path).acquire(timeout=0.2)

    assert "lslocks" in caught.value.next_step
    await LockFile(path).acquire(timeout=30)


async def test_a_mark_is_seen_by_who_has_the_lock_next(path: Path) -> None:
    first, second = LockFile(path), LockFile(path)
    assert first.try_acquire()
    assert not first.is_marked
    first.mark()
    first.release()

    assert second.try_acquire(shared=True)
    assert second.is_marked
    second.release(remove=True)
    assert first.try_acquire()
    assert not first.is_marked


def test_a_shared_lock_is_for_several_and_keeps_out_who_wants_it_alone(path: Path) -> None:
    with held_by_another(path, "shared"):
        mine = LockFile(path)
        assert mine.try_acquire(shared=True)
        assert not LockFile(path).try_acquire()

        mine.release()
        assert not LockFile(path).try_acquire()
    assert LockFile(path).try_acquire()


def test_the_last_of_several_can_have_a_shared_lock_for_itself_alone(path: Path) -> None:
    first, second = LockFile(path), LockFile(path)
    assert first.try_acquire(shared=True)
    assert second.try_acquire(shared=True)

    assert not first.try_upgrade()
    assert second.try_upgrade()
    assert not LockFile(path).try_acquire(shared=True)

    first.release()
    second.release()
    assert not second.try_upgrade()
    assert LockFile(path).try_acquire()


def test_two_locks_of_one_process_exclude_each_other(path: Path) -> None:
    first, second = LockFile(path), LockFile(path)
    assert first.try_acquire()
    assert not second.try_acquire()

    first.release()
    first.release()

    assert second.try_acquire()
    second.release()


def test_a_lock_whose_file_was_removed_is_taken_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its last holder removes it just after we have opened it.
    real_open = os.open
    opened: list[int] = []

    def open_and_lose(*arguments: object, **others: object) -> int:
        fd = real_open(*arguments, **others)  # type: ignore[arg-type]  # passed on as it came
        if arguments[0] == path.name:  # the file, and not its folders
            if not opened:
                path.unlink()
            opened.append(fd)
        return fd

    lock = LockFile(path)
    monkeypatch.setattr(os, "open", open_and_lose)
    assert lock.try_acquire()
    monkeypatch.undo()

    assert len(opened) == 2
    assert path.exists()
    assert not LockFile(path).try_acquire()
    lock.release(remove=True)
    assert not path.exists()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StateError):
        LockFile(path).try_acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_in_the_place_of_the_folder_is_not_followed(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lock = LockFile(path)
    assert lock.try_acquire()
    path.parent.rename(tmp_path / "before")
    (elsewhere / path.name).touch()
    path.parent.symlink_to(elsewhere)

    lock.release(remove=True)
    assert (elsewhere / path.name).exists()
    (elsewhere / path.name).unlink()
    with pytest.raises(StateError):
        LockFile(path).try_acquire()
    assert not list(elsewhere.iterdir())


def test_a_folder_that_can_not_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StateError, match="can not be made"):
        LockFile(tmp_path / "file/locks/a.lock").try_acquire()


def test_a_refused_lock_leaves_nothing_open(path: Path) -> None:
    lock = LockFile(path)
    assert lock.try_acquire()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(5):
        LockFile(path).try_acquire()

    assert len(list(Path("/dev/fd").iterdir())) == before
    lock.release()


async def test_waiting_for_a_lock(path: Path) -> None:
    order = []
    first = LockFile(path)
    assert first.try_acquire()

    async def wait() -> None:
        async with LockFile(path).held():
            order.append("second")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(0.15)
        order.append("first")
        first.release()

    assert order == ["first", "second"]


async def test_a_cancelled_wait_holds_nothing(path: Path) -> None:
    first = LockFile(path)
    assert first.try_acquire()
    with anyio.move_on_after(0.1) as scope:
        await LockFile(path).acquire()
    assert scope.cancelled_caught

    first.release()
    assert first.try_acquire()
    first.release()


async def test_a_held_lock_is_let_go_when_the_block_raises(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with LockFile(path).held():
            _ = 1 / 0

    last = LockFile(path)
    assert last.try_acquire()
    last.release()


@pytest.mark.parametrize(
    ("held", "wanted", "is_refused"),
    [
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a/b/c", "/a", True),
        ("/a", "/ab", False),
        ("/a/b", "/a/c", False),
        ("/a/\udcff", "/a/\udcff/b", True),
    ],
)
@pytest.mark.parametrize("carried", [True, False])
async def test_a_folder_is_carried_or_written_to_and_so_are_those_around_it(
    tmp_path: Path, held: str, wanted: str, is_refused: bool, carried: bool
) -> None:
    first = await claim(tmp_path, held, carried=carried)
    same = await claim(tmp_path, wanted, carried=carried)
    same.release(remove=True)
    assert len(list(tmp_path.glob("locks/*"))) == 1
    if is_refused:
        with pytest.raises(WorkspaceBusyError, match="is being worked on by a run with workspace_mode = "):
            await claim(tmp_path, wanted, carried=not carried)
        assert len(list(tmp_path.glob("locks/*"))) == 1
        first.release(remove=True)
    other = await claim(tmp_path, wanted, carried=not carried)
    other.release(remove=True)
    first.release(remove=True)
    assert list(tmp_path.glob("locks/*")) == []


async def test_a_claim_may_wait_for_the_end_of_another(tmp_path: Path) -> None:
    first = await claim(tmp_path, "/a", carried=False)
    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await anyio.wait_all_tasks_blocked()
            first.release(remove=True)

        tasks.start_soon(end)
        second = await claim(tmp_path, "/a", carried=True, patient=True)
    second.release(remove=True)


async def test_a_claim_goes_with_who_had_it(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "locks/workspace.x.rw.lock") as holder:
        (tmp_path / "locks/workspace.x.rw.lock").write_text("/a")
        with pytest.raises(WorkspaceBusyError):
            await claim(tmp_path, "/a", carried=True)
        holder.kill()
        holder.wait()

        lock = await claim(tmp_path, "/a", carried=True)

    assert list(tmp_path.glob("locks/*")) == [lock.path]
    lock.release()
