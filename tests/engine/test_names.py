"""The names of an image, as an engine that only pretends hands them out; and all that an image may have there."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.box import golden
from container_runner.box.passwd import LIMIT
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.engine.names import learn
from container_runner.errors import ImageNotFoundError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.runner.kept import ContainerManager
from container_runner.stream.messages import ErrorMessage, Message
from tests.faults.live_engine import READ_HEADER
from tests.faults.test_checkpoints import at_every_await, stepped

ENGINE = """\
#!/bin/sh
# Containers are files in FOLDER, which hold the id of their image: `image` has that of the only one.
cd FOLDER/box || exit
echo "$1" >>../calls
name= run= gated=
for word; do
  case $word in
    --name=*) name=${word#--name=} ;;
    --label=container-runner.run=*) run=${word#*.run=} ;;
    *dst=/etc/passwd*) gated=yes ;;
  esac
done
case $1 in
  --version) echo 'Docker version 28.0.0, build fake' ;;
  create)
    [ -e ../image ] || { echo "Error response from daemon: No such image: my/image" >&2; exit 1; }
    cp ../image "$name"; echo 0123
    ;;
  cp)
    [ ! -e ../refused ] || { cat ../refused >&2; exit 1; }
    cat ../archive
    [ ! -e ../endless ] || exec cat /dev/zero
    ;;
  inspect)
    for word; do :; done
    [ -e "$word" ] || { echo '[]'; exit 1; }
    printf '[{"Id":"%s","Name":"/%s","Image":"sha256:%s","State":{"Status":"running"}}]' 1 "$word" "$(cat "$word")"
    ;;
  exec) [ -z "$(cat ../nameless)" ] || exit 73 ;;
  run)
    if [ -s ../busy ]; then
      sed -i 1d ../busy
      echo 'docker: Error response from daemon: too many open files' >&2
      exit 125
    fi
    cp ../image "$name"
    case $2 in --detach) printf '%064d\\n' 0; exit ;; esac
    trap 'rm -f "$name"' EXIT  # --rm
    [ "$word" != 86400 ] || echo "container-runner: ready $run" >&2  # there is no command behind its time limit
    READ_HEADER
    echo "${gated:-$uid}" >>../begun
    if [ -n "$uid" ] && [ -n "$(cat ../nameless)" ]; then
      echo "container-runner: nameless $token" >&2
      exit 69
    fi
    head -c "$size" >/dev/null
    echo "container-runner: started $token" >&2
    echo '{"type":"result","subtype":"success","is_error":false,"result":"ok","session_id":"s"}'
    echo "container-runner: ended $token 0" >&2
    printf '\\ncontainer-runner: ended %s 0\\n' "$token"
    cat >/dev/null
    ;;
  rm) for word; do :; done; rm -f "$word" ;;
esac
""".replace("READ_HEADER", READ_HEADER)
ROOT = b"root:x:0:0:root:/root:/bin/sh\n"
ONE, TWO = "1" * 64, "2" * 64


def archive(kind: bytes = tarfile.REGTYPE, content: bytes = ROOT, **more: Any) -> bytes:
    """What an engine hands out for one file."""
    member = tarfile.TarInfo("passwd")
    member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
    for name, value in more.items():
        setattr(member, name, value)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


@attrs.frozen
class Scene:
    """The engine, and a runner for it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Scene:
        scene = cls(folder)
        (folder / "box").mkdir()
        (folder / "docker").write_text(ENGINE.replace("FOLDER", str(folder)))
        (folder / "docker").chmod(0o755)
        (folder / "nameless").write_text("yes")
        scene.image(ONE, archive())
        return scene

    def image(self, id_: str, made: bytes) -> None:
        """Give the name to this image."""
        (self.folder / "image").write_text(id_)
        (self.folder / "archive").write_bytes(made)

    def runner(self, **config: Any) -> ContainerRunner:
        fields = {"image": "my/image", "engine": str(self.folder / "docker"), "user": "4242:77", **config}
        return ContainerRunner(ClaudeRuntime(), ContainerConfig(**fields), self.folder / "state", records=False)

    async def run(self, runner: ContainerRunner | None = None) -> list[Message]:
        return [message async for message in (runner or self.runner()).execute(options())]

    def take(self, file: str = "calls") -> list[str]:
        """What the engine has written down since the last look."""
        path = self.folder / file
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def left(self) -> list[str]:
        return [path.name for path in (self.folder / "box").iterdir()]

    def given(self) -> str | None:
        """The names that the next run would have, if it would have any."""
        mounts = self.runner().plan(options()).mounts
        return next((Path(it.source).read_text() for it in mounts if it.target == "/etc/passwd"), None)


def options() -> ExecuteOptions:
    return ExecuteOptions(prompt="hello", agent=Agent(name="bot"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.make(tmp_path)


async def test_an_image_is_looked_at_once_and_then_its_container_is(scene: Scene) -> None:
    runner = scene.runner()
    assert not isinstance((await scene.run(runner))[-1], ErrorMessage)
    first, begun = scene.take(), scene.take("begun")
    assert not isinstance((await scene.run(runner))[-1], ErrorMessage)

    assert [verb for verb in first if verb not in ("--version", "ps")] == [
        "run", "create", "inspect", "cp", "rm", "run", "inspect",
    ]  # fmt: skip
    assert scene.take() == ["run", "inspect"]
    assert begun == ["4242", "yes"]  # it was asked for at first, and mounted then
    assert scene.given() == f"{ROOT.decode()}agent:x:4242:77:agent:{paths.HOME}:/bin/sh\n"
    assert scene.left() == []


async def test_an_image_that_knows_the_user_is_not_looked_at(scene: Scene) -> None:
    (scene.folder / "nameless").write_text("")
    runner = scene.runner()
    await scene.run(runner)
    scene.take()

    await scene.run(runner)

    assert scene.take() == ["run"]
    assert scene.given() is None
    assert not (scene.folder / "state/passwd").exists()


async def test_the_names_of_another_image_are_never_used(scene: Scene) -> None:
    await scene.run()
    scene.take("begun")
    scene.image(TWO, archive(content=b"other:x:1:1::/:/bin/sh\n"))

    messages = await scene.run()

    assert not isinstance(messages[-1], ErrorMessage)
    assert scene.take("begun") == ["4242", "yes"], "the container with the old names got no agent"
    assert (scene.given() or "").startswith("other:")
    assert scene.left() == []


@pytest.mark.parametrize(("busy", "kind"), [(2, None), (3, "engine_busy")])
async def test_a_start_for_the_names_is_no_attempt_to_start(scene: Scene, busy: int, kind: str | None) -> None:
    """A name that has moved takes two more, and a busy engine may be so as often as ever."""
    await scene.run()
    scene.image(TWO, archive())
    scene.take()
    (scene.folder / "busy").write_text("x\n" * busy)

    last = (await scene.run())[-1]

    assert (last.kind if isinstance(last, ErrorMessage) else None) == kind
    assert scene.take().count("run") == min(busy, 3) + (3 if kind is None else 0)
    assert scene.left() == []


async def test_an_image_that_changes_all_the_time_is_not_tried_for_ever(scene: Scene) -> None:
    await scene.run()
    program = scene.folder / "docker"
    text = program.read_text().replace("  create)\n", "  create)\n    tr 12 21 <../image >../new; mv ../new ../image\n")
    program.write_text(text.replace("  run)\n", "  run)\n    tr 12 21 <../image >../new; mv ../new ../image\n"))

    last = (await scene.run())[-1]

    assert isinstance(last, ErrorMessage)
    assert last.kind == "engine_busy"
    assert "another image" in last.message
    assert scene.left() == []


NOTHING: dict[str, bytes] = {
    "a link": archive(tarfile.SYMTYPE, linkname="/etc/shadow"),
    "a hard link": archive(tarfile.LNKTYPE, linkname="etc/shadow"),
    "a folder": archive(tarfile.DIRTYPE),
    "a device": archive(tarfile.CHRTYPE),
    "a pipe": archive(tarfile.FIFOTYPE),
    "too long": archive(content=ROOT * (LIMIT // len(ROOT) + 1)),
    "cut off": archive(content=ROOT * 100)[:700],
    "no archive": b"\xff" * 4096,
    "nothing": b"",
    "a line that the box does not see": archive(content=b"a:x:4242:1::/:/bin/sh\n"),
}


@pytest.mark.parametrize("made", NOTHING.values(), ids=NOTHING)
async def test_an_image_with_something_else_there_runs_as_it_is(scene: Scene, made: bytes) -> None:
    scene.image(ONE, made)
    messages = await scene.run()
    scene.take()
    scene.take("begun")
    again = await scene.run()

    assert not isinstance(messages[-1], ErrorMessage)
    assert not isinstance(again[-1], ErrorMessage)
    assert scene.given() is None
    assert scene.take("begun") == [""], "it is not asked again"
    assert "create" not in scene.take()
    assert scene.left() == []


async def test_a_file_without_an_end_is_not_read_to_its_end(scene: Scene) -> None:
    scene.image(ONE, archive(content=b"x" * LIMIT))
    (scene.folder / "endless").touch()

    with anyio.fail_after(60):
        assert not isinstance((await scene.run())[-1], ErrorMessage)

    assert scene.given() is None


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("Error response from daemon: Could not find the file /etc/passwd in container x", True),
        ("Error response from daemon: something that nobody has heard before", False),
    ],
)
async def test_an_image_without_the_file_gets_one_and_a_refusal_is_no_failure(
    scene: Scene, said: str, given: bool
) -> None:
    (scene.folder / "refused").write_text(f"{said}\n")

    assert not isinstance((await scene.run())[-1], ErrorMessage)

    assert scene.given() == (f"agent:x:4242:77:agent:{paths.HOME}:/bin/sh\n" if given else None)


async def test_an_image_that_is_gone_is_told(scene: Scene) -> None:
    plan = scene.runner().plan(options())
    (scene.folder / "image").unlink()

    with pytest.raises(ImageNotFoundError):
        await learn(await Engine.probe(str(scene.folder / "docker"), os.environ), plan)


@pytest.mark.parametrize(
    "config",
    [
        {"volumes": ("NAMES:/etc/passwd:ro",)},
        {"tmpfs": ("/etc",)},
        {"extra_args": ("--volume=/x:/etc/passwd:ro",)},
        {"extra_args": ("--mount=type=bind,src=/x,dst=/etc",)},
    ],
)
async def test_what_the_operator_has_put_there_is_let_be(scene: Scene, config: dict[str, Any]) -> None:
    (scene.folder / "names").write_bytes(ROOT)
    own = {
        field: [it.replace("NAMES", str(scene.folder / "names")) for it in values] for field, values in config.items()
    }

    plan = scene.runner(**own).plan(options())

    assert plan.passwd is None
    assert b"\nuid=''\n" in plan.stdin()


async def test_a_command_shows_the_mount_but_not_where_it_is_to_be_the_same_everywhere(scene: Scene) -> None:
    before = scene.runner().plan(options())
    await scene.run()
    after = scene.runner().plan(options())

    assert after.passwd is not None
    source = scene.folder / "state/passwd" / after.passwd.folder.name / ONE
    assert f"--mount=type=bind,src={source},dst=/etc/passwd,readonly" in after.commands[0]
    assert "# the agent, in the header: " in after.told_on_stdin
    assert "# the agent" not in before.told_on_stdin
    assert after.digest != before.digest
    unnamed = attrs.evolve(after, passwd=None)
    assert [*map(golden.stable, unnamed.commands)] == [*map(golden.stable, before.commands)]


async def test_a_pool_has_the_names_of_what_the_image_is(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.engine.pool.REFILL_DELAY", 3600)
    await scene.run()
    scene.image(TWO, archive(content=b"other:x:1:1::/:/bin/sh\n"))
    runner = scene.runner()

    # The first one is told by the box; one with names was looked at when it was made, and is not again.
    for begun, asked in ((["4242", "yes"], ["create", "inspect", "cp", "rm", "run", "inspect"]), (["yes"], [])):
        async with runner.warm(options().agent, size=1) as pool:
            with anyio.fail_after(60):
                while not len(pool):
                    await anyio.sleep(0.05)
            scene.take()
            scene.take("begun")
            assert not isinstance((await scene.run(runner))[-1], ErrorMessage)
            assert scene.take("begun") == begun
            assert [verb for verb in scene.take() if verb != "ps"] == asked
        assert (scene.given() or "").startswith("other:")
    assert scene.left() == []


async def test_a_kept_container_without_a_runner_has_the_names_too(scene: Scene) -> None:
    manager = ContainerManager(scene.folder / "state", engine=str(scene.folder / "docker"))

    container = await manager.get_or_create(options().agent, scene.runner().config)
    await manager.release(container)

    assert [mount.target for mount in container.plan.mounts][-1] == "/etc/passwd"
    assert scene.left() == [container.name]
    assert [verb for verb in scene.take() if verb not in ("--version", "ps")] == [
        *("run", "exec", "create", "inspect", "cp", "rm", "rm"), *("run", "inspect"),
    ]  # fmt: skip


@pytest.mark.parametrize(("backend", "moved"), [("trio", False), ("asyncio", True)], ids=["looked at", "moved"])
def test_who_is_cancelled_at_any_await_leaves_nothing(tmp_path: Path, backend: str, moved: bool) -> None:
    scene = Scene.make(tmp_path)

    async def cancelled_at(number: int) -> bool:
        for file in tmp_path.glob("state/passwd/*/*"):
            file.unlink()
        plan = scene.runner().plan(options())
        assert plan.passwd is not None
        if moved:
            plan.passwd.keep(TWO, ROOT)

        async def work() -> None:
            await scene.run()

        with anyio.CancelScope() as scope:
            await stepped(work(), strike(number, scope.cancel))
        assert scene.left() == [], number
        return not scope.cancelled_caught

    def strike(number: int, cancel: Callable[[], None]) -> Callable[[int], None]:
        return lambda step: cancel() if step == number else None

    awaits, _ = anyio.run(at_every_await, cancelled_at, backend=backend)

    assert awaits > 20
