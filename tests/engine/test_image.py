"""Building images: the commands, the files, and what is said when it can not be done."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from container_runner.box.argv import DOCKER, build_argv, import_argv, try_argv
from container_runner.engine.engine import Engine
from container_runner.engine.image import (
    AGENTS,
    CONTAINERFILE,
    AgentPackage,
    Recipe,
    add_agent,
    add_node,
    build,
    build_from_scratch,
)
from container_runner.errors import ConfigError, ContainerRunnerError, ImageUnsuitableError, PullFailedError
from container_runner.stream.command import run

DIGEST = "0123456789abcdef" * 4

SCRIPT = f"""\
#!/bin/sh
cd "$(dirname "$0")"
for word; do printf '%s\\037' "$word"; done >>calls
echo >>calls
case $1 in
  build) cat >stdin; echo "a step"; echo "a warning" >&2; cat problem >&2 2>/dev/null && exit 1; exit 0 ;;
  import) cat >stdin; echo "sha256:{DIGEST}" ;;
  run) echo "1.2.3 (Agent)"; echo more ;;
  image) echo "sha256:{DIGEST}" ;;
esac
"""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine that keeps what it gets on stdin, and writes down what it was asked."""
    write_program(tmp_path / "engine/docker", SCRIPT)
    return Engine(binary=str(tmp_path / "engine/docker"), dialect=DOCKER, environ=dict(os.environ))


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)


def calls(engine: Engine) -> list[list[str]]:
    text = Path(engine.binary).with_name("calls").read_text()
    return [call.split("\037")[:-1] for call in text.splitlines()]


def stdin(engine: Engine) -> bytes:
    return Path(engine.binary).with_name("stdin").read_bytes()


# argv


def test_a_build_reads_its_containerfile_from_stdin() -> None:
    assert build_argv(
        "docker", tag="t", arguments={"BASE": "debian:12"}, inherited=["https_proxy"], pull=True, cache=False
    ) == [
        *("docker", "build", "--tag=t", "--pull", "--no-cache"),
        *("--build-arg=BASE=debian:12", "--build-arg=https_proxy", "-"),
    ]


def test_an_import_reads_its_archive_from_stdin() -> None:
    assert import_argv("docker", tag="t", changes=["USER 1000:1000"]) == [
        *("docker", "import", "--change=USER 1000:1000", "-", "t"),
    ]


def test_a_new_image_is_tried_in_a_closed_box() -> None:
    argv = try_argv("docker", image="t", program="claude", arguments=["--version"])

    assert argv[-3:] == ["--", "t", "--version"]
    assert {
        *("--rm", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"),
        *("--user=65534:65534", "--pull=never", "--entrypoint=claude"),
    } <= {*argv}
    assert not any(word.startswith(("--mount", "--volume", "-v")) for word in argv)


# Recipes


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tag": "--privileged"}, "tag"),
        ({"tag": ""}, "tag"),
        ({"base": "Not An Image"}, "base"),
        ({"version": "1 && rm -rf /"}, "agent_version"),
        ({"version": "-1"}, "agent_version"),
        ({"packages": ("git", "vim; true")}, "packages[1]"),
        ({"packages": ("-y",)}, "packages[0]"),
    ],
)
def test_what_could_be_more_than_a_name_is_refused(fields: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**{"agent": AGENTS["claude"], "tag": "t", **fields})  # type: ignore[arg-type]  # the fields vary

    assert caught.value.field == field


def test_the_agents_have_a_version_of_their_own() -> None:
    assert {*AGENTS} == {"claude", "codex", "gemini", "qwen", "opencode", "copilot"}
    for agent in AGENTS.values():
        assert agent.version[0].isdigit()
        assert "{version}" in agent.archive
        assert Recipe(agent=agent, tag="t").agent_version == agent.version
        assert Recipe(agent=agent, tag="t", version="latest").agent_version == "latest"


# With the engine's builder


async def test_the_engine_builds_our_containerfile_and_the_agent_is_tried(engine: Engine) -> None:
    said: list[str] = []
    recipe = Recipe(agent=AGENTS["codex"], tag="my/codex", base="node:22", packages=("vim",), version="0.1.0")

    built = await build(engine, recipe, said.append)

    assert (built.image, built.id, built.version) == ("my/codex", DIGEST, "1.2.3 (Agent)")
    assert sorted(said) == ["a step", "a warning"]
    assert stdin(engine) == CONTAINERFILE.read_bytes()
    building, trying, _ = calls(engine)
    assert {
        *("--tag=my/codex", "--build-arg=BASE=node:22", "--build-arg=AGENT_PACKAGE=@openai/codex"),
        *("--build-arg=AGENT_VERSION=0.1.0", "--build-arg=PACKAGES=ca-certificates git procps ripgrep vim"),
    } <= {*building}
    assert "--entrypoint=codex" in trying


async def test_proxies_are_passed_on_without_their_passwords(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:s3cret@proxy")
    monkeypatch.delenv("HTTP_PROXY", raising=False)

    await build(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    building = calls(engine)[0]
    assert "--build-arg=https_proxy" in building
    assert "--build-arg=HTTP_PROXY" not in building
    assert not any("s3cret" in word for word in building)


@pytest.mark.parametrize(
    "problem",
    [
        "Error: initializing source docker://node:22-bookworm-slim: pinging container registry registry-1.docker.io",
        'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host',
        "pull access denied for nosuch, repository does not exist or may require 'docker login'",
    ],
)
async def test_a_base_that_is_out_of_reach_leads_to_the_ways_around(problem: str, engine: Engine) -> None:
    Path(engine.binary).with_name("problem").write_text(problem)

    with pytest.raises(PullFailedError) as caught:
        await build(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert "--from-scratch" in caught.value.next_step
    assert problem in caught.value.stderr


async def test_a_step_that_fails_is_shown_with_its_end(engine: Engine) -> None:
    Path(engine.binary).with_name("problem").write_text("\n".join(f"line {n}" for n in range(100)))

    with pytest.raises(ImageUnsuitableError) as caught:
        await build(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert caught.value.stderr.splitlines() == [f"line {n}" for n in range(95, 100)]
    assert caught.value.cli_exit_code == 4


async def test_an_agent_that_does_not_start_is_no_success(engine: Engine) -> None:
    script = Path(engine.binary)
    script.write_text(script.read_text().replace("echo more", "echo 'SyntaxError' >&2; exit 1"))

    with pytest.raises(ImageUnsuitableError, match="its claude fails with code 1") as caught:
        await build(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert "SyntaxError" in caught.value.stderr


def test_the_steps_of_the_containerfile_are_shell_that_parses(tmp_path: Path) -> None:
    text = CONTAINERFILE.read_text().replace("\\\n", "")
    steps = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]

    assert len(steps) == 3
    for step in steps:
        subprocess.run(["sh", "-n", "-c", step], check=True)


def test_the_containerfile_ends_as_an_ordinary_user() -> None:
    users = [line for line in CONTAINERFILE.read_text().splitlines() if line.startswith("USER ")]

    assert users[-1] == "USER 1000:1000"


# From scratch


DEBOOTSTRAP = """\
#!/bin/sh
# The last argument is the folder, the one before it the release.
for folder; do :; done
mkdir -p "$folder/etc" "$folder/usr/share/doc/x" "$folder/usr/bin"
echo root:x:0:0:root:/root:/bin/sh >"$folder/etc/passwd"
echo "I: made of $*"
"""
NPM = """\
#!/bin/sh
for word; do case $word in --pack-destination=*) folder=${word#*=} ;; esac; done
mkdir "$folder/made" && cd "$folder/made" && mkdir -p package/bin && echo program >package/claude
tar -czf ../agent.tgz package && echo "packed $*"
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH: debootstrap and npm that make next to nothing, and what they need."""
    folder = tmp_path / "bin"
    write_program(folder / "debootstrap", DEBOOTSTRAP)
    write_program(folder / "npm", NPM)
    write_program(folder / "unshare", '#!/bin/sh\nshift\nexec "$@"\n')
    for tool in ("sh", "cat", "dirname", "mkdir", "tar", "gzip"):
        (folder / tool).symlink_to(next(path for path in (Path("/bin", tool), Path("/usr/bin", tool)) if path.exists()))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder


async def test_an_image_can_be_made_without_a_registry(engine: Engine, tools: Path) -> None:
    said: list[str] = []

    built = await build_from_scratch(engine, Recipe(agent=AGENTS["claude"], tag="t", packages=("vim",)), said.append)

    assert built.version == "1.2.3 (Agent)"
    assert [line[:4] for line in said if line[1:2] == "/"] == ["1/4 ", "2/4 ", "3/4 ", "4/4 "]
    assert any("--include=ca-certificates,git,procps,ripgrep,vim bookworm" in line for line in said)
    importing = calls(engine)[0]
    assert importing[0] == "import"
    assert "--change=USER 1000:1000" in importing
    with tarfile.open(fileobj=io.BytesIO(stdin(engine))) as archive:
        members = {member.name.removeprefix("./"): member for member in archive}
        users = archive.extractfile(members["etc/passwd"])
        assert users is not None
        named = users.read().splitlines()
        assert {b"agent-%d:x:%d:%d:agent:/home/agent:/bin/sh" % (uid, uid, uid) for uid in (501, 1000, 1001)} <= {
            *named
        }
    assert members["usr/local/lib/claude/claude"].mode & stat.S_IXUSR
    assert members["usr/local/bin/claude"].linkname == "../lib/claude/claude"
    assert "usr/share/doc" not in members
    names = [member.name for member in members.values()]
    assert len(names) == len(set(names)), "docker takes no archive that names a file twice"
    assert not list(Path("/var/tmp").glob("cr-image-*/root"))


async def test_mmdebstrap_is_preferred_because_it_needs_no_root(
    engine: Engine, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """\
#!/bin/sh
for archive; do :; done
mkdir -p "${archive%/*}/new/etc" && echo user >"${archive%/*}/new/etc/passwd"
tar -cf "$archive" -C "${archive%/*}/new" .
echo "made of $*"
"""
    write_program(tools / "mmdebstrap", script)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said: list[str] = []

    await build_from_scratch(engine, Recipe(agent=AGENTS["claude"], tag="t", base="trixie"), said.append)

    (line,) = (line for line in said if line.startswith("made of"))
    assert "--customize-hook=" in line
    assert " trixie " in line


@pytest.mark.parametrize(
    ("missing", "euid", "advice"),
    [
        (["npm"], 0, "apt-get install npm"),
        (["debootstrap"], 0, "apt-get install mmdebstrap"),
        (["debootstrap", "npm"], 1000, "apt-get install mmdebstrap npm"),
        ([], 1000, "or run this as root"),
    ],
)
async def test_a_tool_that_is_missing_is_named_before_anything_is_made(
    missing: list[str], euid: int, advice: str, engine: Engine, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in missing:
        (tools / tool).unlink()
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr("container_runner.engine.image.SYSTEM_PATH", "")

    with pytest.raises(ImageUnsuitableError) as caught:
        await build_from_scratch(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert advice in caught.value.next_step
    assert not Path(engine.binary).with_name("calls").exists()


def test_an_agent_that_runs_in_node_gets_the_one_of_npm(tmp_path: Path) -> None:
    package, root = tmp_path / "node.tgz", tmp_path / "root.tar"
    (tmp_path / "node").write_bytes(b"the program")
    with tarfile.open(package, "w:gz") as tar:
        tar.add(tmp_path / "node", "package/bin/node")
    with tarfile.open(root, "w"):
        pass

    add_node(root, package)

    with tarfile.open(root) as tar:
        member = tar.getmember("usr/local/bin/node")
        content = tar.extractfile(member)
        assert content is not None
        assert (member.mode, content.read()) == (0o755, b"the program")


async def test_a_step_that_fails_from_scratch_is_named(engine: Engine, tools: Path) -> None:
    write_program(tools / "npm", "#!/bin/sh\necho 'npm error 404' >&2\nexit 1\n")

    with pytest.raises(ContainerRunnerError, match="npm failed with code 1") as caught:
        await build_from_scratch(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert caught.value.stderr == "npm error 404"


async def test_an_engine_that_can_not_run_the_new_image_is_doctors_to_judge(engine: Engine, tools: Path) -> None:
    script = Path(engine.binary)
    script.write_text(script.read_text().replace("#!/bin/sh\n", "#!/bin/sh\n[ $1 != run ] || exit 126\n", 1))

    with pytest.raises(ImageUnsuitableError, match="was built, but") as caught:
        await build_from_scratch(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert caught.value.next_step == "Type: container-runner doctor --image=t"


async def test_a_base_from_scratch_is_a_release(engine: Engine, tools: Path) -> None:
    with pytest.raises(ConfigError, match="base"):
        await build_from_scratch(engine, Recipe(agent=AGENTS["claude"], tag="t", base="node:22"), lambda line: None)


def packed(path: Path, *members: tuple[str, bytes, int]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content, mode in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = len(content), mode, 1234
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        archive.addfile(link)
    return path


def test_a_package_can_put_files_only_into_its_own_folder(tmp_path: Path) -> None:
    agent = AgentPackage(package="p", program="prog", version="1", archive="a", entry="package/vendor/*/prog")
    root = packed(tmp_path / "root.tar")
    package = packed(
        tmp_path / "p.tgz",
        ("package/vendor/x64/prog", b"program", 0o644),
        ("package/../../../etc/passwd", b"evil", 0o644),
        ("/etc/cron.d/evil", b"evil", 0o644),
        ("package/setuid", b"evil", 0o4755),
    )

    add_agent(root, package, agent)

    with tarfile.open(root) as archive:
        added = {member.name: member for member in archive if member.name.startswith(("usr", "etc", "/"))}
    assert {*added} == {
        *("usr/local/lib/prog/vendor/x64/prog", "usr/local/lib/prog/setuid", "usr/local/bin/prog"),
    }
    assert {member.mode for member in added.values() if member.isreg()} == {0o755}
    assert {member.uid for member in added.values()} == {0}


def test_a_package_without_the_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageUnsuitableError, match="package/claude"):
        add_agent(packed(tmp_path / "root.tar"), packed(tmp_path / "p.tgz"), AGENTS["claude"])


async def test_a_build_that_is_cancelled_ends_its_command(engine: Engine, tmp_path: Path) -> None:
    import anyio

    script = Path(engine.binary)
    script.write_text(script.read_text().replace('echo "a step"', f"echo $$ >{tmp_path}/pid; exec sleep 300"))

    with anyio.move_on_after(0.5) as scope:
        await build(engine, Recipe(agent=AGENTS["claude"], tag="t"), lambda line: None)

    assert scope.cancelled_caught
    pid = int((tmp_path / "pid").read_text())
    done = await run(["sh", "-c", f"kill -0 {pid}"], timeout=5)
    assert done.returncode != 0
