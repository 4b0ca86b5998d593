"""What an agent can not write, though its workspace is writable."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from container_runner.agents.runtime import Credentials
from container_runner.box import gitconfig
from container_runner.box.mounts import ContainerMounts, build_container_mounts, prepare_copies, recheck
from container_runner.box.protect import missing, protect
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.config.protected import GIT, PROTECTED
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.options import Agent
from container_runner.workspace.repositories import find_worktree

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of our own, so that no test depends on what the real one holds."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def repository(folder: Path) -> Path:
    """What git takes for a repository."""
    for name in ("objects", "refs", "hooks"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "config").write_text("[core]\n")
    return folder


def worktree(main: Path, workspace: Path, name: str = "wt") -> Path:
    """What `git worktree add` makes: the folder in the repository that stands for the worktree."""
    own = main / "worktrees" / name
    own.mkdir(parents=True)
    (own / "commondir").write_text("../..\n")
    (own / "gitdir").write_text(f"{workspace}/.git\n")
    (workspace / ".git").write_text(f"gitdir: {own}\n")
    return own


class Git:
    """Runs git, with no configuration but that of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", *words],
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
        )
        return done.stdout


def modes(mounts: list[Mount]) -> dict[str, str]:
    """The targets below /workspace, each with "ro" or "rw"."""
    return {mount.target.removeprefix("/workspace/"): "ro" if mount.read_only else "rw" for mount in mounts}


def build(tmp_path: Path, workspace: Path, *, state: Path | None = None, **config: Any) -> list[Mount]:
    mounts = container(tmp_path, workspace, state=state, **config).mounts
    return [mount for mount in mounts if not mount.target.startswith("/container-runner")]


def container(tmp_path: Path, workspace: Path, *, state: Path | None = None, **config: Any) -> ContainerMounts:
    return build_container_mounts(
        Agent(name="bot", workspace=workspace),
        ContainerConfig(image="i", credentials="none", **config),
        state or tmp_path / "state",
        user=User(os.getuid(), os.getgid()),
        credentials=Credentials(),
    )


# Files and folders


def test_the_operators_own_paths_are_read_only_too(tmp_path: Path, workspace: Path) -> None:
    (workspace / "ops").mkdir()
    (workspace / "ops" / "deploy.sh").touch()
    (workspace / "keys").mkdir()

    mounts = build(tmp_path, workspace, protected=["ops/deploy.sh", "keys/", "absent"])

    assert modes(mounts[1:]) == {"ops": "rw", "ops/deploy.sh": "ro", "keys": "ro"}


def test_a_link_in_the_place_of_an_operators_path_is_refused(workspace: Path) -> None:
    (workspace / "deploy.sh").symlink_to("elsewhere")

    with pytest.raises(ConfigError, match="another list in protected"):
        protect(workspace, (), ["deploy.sh"])


def test_what_is_there_is_bound_over_itself_read_only(workspace: Path) -> None:
    (workspace / ".envrc").touch()
    (workspace / ".claude").mkdir()
    (workspace / "src").mkdir()

    assert protect(workspace, ()) == [
        Mount(f"{workspace}/.claude", "/workspace/.claude", read_only=True),
        Mount(f"{workspace}/.claude/worktrees", "/workspace/.claude/worktrees"),
        Mount(f"{workspace}/.envrc", "/workspace/.envrc", read_only=True),
    ]


def test_what_is_not_there_is_not_mounted_and_is_told(workspace: Path) -> None:
    assert protect(workspace, ()) == []
    assert missing(workspace) == {*PROTECTED}

    (workspace / ".envrc").touch()
    (workspace / ".profile").symlink_to("nowhere")

    assert {*PROTECTED} - missing(workspace) == {".envrc", ".profile"}


@pytest.mark.parametrize("name", [name for name in PROTECTED if "/" not in name and name != ".git"])
def test_each_is_writable_if_it_is_asked_for_by_name(workspace: Path, name: str) -> None:
    (workspace / name).mkdir()

    opened = {".claude/worktrees": "rw"} if name == ".claude" else {}
    assert modes(protect(workspace, ())) == {name: "ro", **opened}
    assert protect(workspace, (name,)) == []


@pytest.mark.parametrize("name", PROTECTED)
def test_a_link_in_a_protected_place_is_refused_because_it_can_be_replaced(workspace: Path, name: str) -> None:
    if name.startswith(".git/"):
        repository(workspace / ".git")
        shutil.rmtree(workspace / name, ignore_errors=True)
        (workspace / name).unlink(missing_ok=True)
    (workspace / "elsewhere").touch()
    (workspace / name).parent.mkdir(parents=True, exist_ok=True)
    (workspace / name).symlink_to(workspace / "elsewhere")

    with pytest.raises(ConfigError, match="link") as caught:
        protect(workspace, ())
    assert f'unprotected = ["{name}"]' in caught.value.next_step
    assert name not in modes(protect(workspace, (name,)))


def test_a_pipe_in_a_protected_place_is_refused(workspace: Path) -> None:
    os.mkfifo(workspace / ".envrc")

    with pytest.raises(ConfigError):
        protect(workspace, ())


def test_the_scripts_that_hooks_lead_to_are_protected_with_the_folders_that_hold_them(
    workspace: Path, tmp_path: Path
) -> None:
    hooks = repository(workspace / ".git") / "hooks"
    (workspace / "scripts/git").mkdir(parents=True)
    (workspace / "scripts/git/check").touch()
    (tmp_path / "outside").touch()
    (hooks / "pre-commit").symlink_to("../../scripts/git/check")
    (hooks / "pre-push").symlink_to(tmp_path / "outside")
    (hooks / "post-merge").symlink_to("nowhere")
    (hooks / "update").symlink_to("pre-commit")

    found = modes(protect(workspace, ()))

    assert found == {
        ".git": "rw",
        ".git/config": "ro",
        ".git/hooks": "ro",
        "scripts": "rw",
        "scripts/git": "rw",
        "scripts/git/check": "ro",
    }


def test_a_link_from_one_protected_folder_does_not_open_another(workspace: Path) -> None:
    hooks = repository(workspace / ".git") / "hooks"
    for name in (".claude", ".husky"):
        (workspace / name / "deep").mkdir(parents=True)
        (workspace / name / "deep/script").touch()
        (hooks / f"to{name}").symlink_to(f"../../{name}/deep/script")

    found = modes(protect(workspace, ()))

    assert found[".claude"] == found[".husky"] == "ro"
    assert {name for name, mode in found.items() if mode == "rw"} == {".git", ".claude/worktrees"}


# Repositories


def test_a_repository_is_writable_but_for_what_says_what_git_runs(workspace: Path) -> None:
    git = repository(workspace / ".git")
    (git / "modules").mkdir()
    (git / "worktrees").mkdir()
    (git / "config.worktree").touch()

    assert modes(protect(workspace, ())) == {
        ".git": "rw",
        ".git/config": "ro",
        ".git/config.worktree": "ro",
        ".git/hooks": "ro",
    }


@pytest.mark.parametrize("name", ["hooks", "config"])
def test_a_part_of_a_repository_is_writable_if_it_is_asked_for(workspace: Path, name: str) -> None:
    repository(workspace / ".git")

    assert modes(protect(workspace, (f".git/{name}",))).keys() == {
        *(".git", ".git/hooks", ".git/config"),
    } - {f".git/{name}"}


def test_git_stands_for_all_that_is_below_it(workspace: Path) -> None:
    repository(workspace / ".git")

    assert protect(workspace, (".git",)) == []


def test_a_repository_without_hooks_gets_an_empty_folder_and_only_before_the_run(
    tmp_path: Path, workspace: Path
) -> None:
    (repository(workspace / ".git") / "hooks").rmdir()

    mounts = build(tmp_path, workspace)
    assert not (workspace / ".git/hooks").exists()
    recheck(mounts)

    assert list((workspace / ".git/hooks").iterdir()) == []
    assert (workspace / ".git/hooks").stat().st_uid == (workspace / ".git").stat().st_uid
    recheck(mounts)


def test_a_folder_git_that_is_no_repository_gets_no_hooks(tmp_path: Path, workspace: Path) -> None:
    (workspace / ".git").mkdir()

    recheck(build(tmp_path, workspace))

    assert list((workspace / ".git").iterdir()) == []


def test_a_repository_beside_its_file_in_the_workspace_is_protected_as_well(workspace: Path) -> None:
    repository(workspace / ".bare")
    (workspace / ".git").write_text("gitdir: ./.bare\n")

    assert modes(protect(workspace, ())) == {
        ".bare": "rw",
        ".bare/config": "ro",
        ".bare/hooks": "ro",
        ".git": "ro",
    }


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "x"), OSError(40, "Too many links", "x")])
def test_what_we_can_not_look_at_does_not_count_as_absent(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """An agent can do chmod 0 on what it owns; its walls must not fall by that."""
    config = repository(workspace / ".git") / "config"
    lstat = Path.lstat

    def refuse(path: Path) -> os.stat_result:
        if path == config:
            raise error
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(ConfigError, match=r"agent\.workspace"):
        build(tmp_path, workspace)


def test_a_state_folder_deep_in_the_workspace_can_not_be_moved_away(tmp_path: Path, workspace: Path) -> None:
    """It is masked, and its parents are mount points, which nobody can rename."""
    (workspace / ".claude").mkdir()

    def mounts(state: str) -> dict[str, bool]:
        found = build(tmp_path, workspace, state=workspace / state)
        return {mount.target: mount.read_only for mount in found}

    claude = {"/workspace": False, "/workspace/.claude": True, "/workspace/.claude/worktrees": False}
    assert mounts("state") == {**claude, "/workspace/state": True}
    assert mounts("a/b/state") == {
        **claude,
        "/workspace/a": False,
        "/workspace/a/b": False,
        "/workspace/a/b/state": True,
    }
    assert mounts(".claude/b/state") == {**claude, "/workspace/.claude/b/state": True}


# Where it all counts


def test_a_read_only_workspace_needs_no_protection(tmp_path: Path, workspace: Path) -> None:
    (workspace / ".envrc").symlink_to("elsewhere")
    repository(workspace / ".git")

    assert build(tmp_path, workspace, workspace_mode="ro") == [Mount(str(workspace), "/workspace", True)]


def test_the_workspace_comes_before_what_is_protected_in_it(tmp_path: Path, workspace: Path) -> None:
    (workspace / ".envrc").touch()

    found = build(tmp_path, workspace)

    assert [mount.target for mount in found] == ["/workspace", "/workspace/.envrc"]
    assert len(build(tmp_path, workspace, unprotected=[".envrc"])) == 1


def test_only_a_listed_name_can_be_unprotected() -> None:
    with pytest.raises(ConfigError, match=r"unprotected\[0\]"):
        ContainerConfig(image="i", unprotected=("src",))


def test_git_and_what_is_below_it_are_listed() -> None:
    assert {".git", *(f".git/{name}" for name in GIT)} <= {*PROTECTED}
    assert sorted(PROTECTED) == list(PROTECTED)


def test_a_workspace_is_another_one_when_what_is_protected_in_it_was_replaced(tmp_path: Path, workspace: Path) -> None:
    """The bind of a file ends when the host renames another one over it, which a kept container does not notice."""
    config = repository(workspace / ".git") / "config"

    def identity() -> str:
        return container(tmp_path, workspace).identity

    before = identity()
    (workspace / "made").touch()
    (workspace / ".git/index").touch()
    assert identity() == before

    seen = [before]
    for _ in range(2):  # the second file gets the number of the first
        (workspace / "new").touch()
        (workspace / "new").rename(config)
        seen.append(identity())
    assert len({*seen}) == len(seen)


# Repositories in repositories


def test_a_submodule_is_writable_but_for_what_says_what_git_runs(workspace: Path) -> None:
    git = repository(workspace / ".git")
    module = repository(git / "modules/vendor/lib")
    repository(module / "modules/deeper")
    (workspace / "vendor/lib").mkdir(parents=True)
    (workspace / "vendor/lib/.git").write_text("gitdir: ../../.git/modules/vendor/lib\n")

    found = modes(protect(workspace, ()))

    lib = ".git/modules/vendor/lib"
    closed = {name for name, mode in found.items() if mode == "ro"}
    assert closed == {
        f"{place}/{name}" for place in (".git", lib, f"{lib}/modules/deeper") for name in ("config", "hooks")
    }
    assert found.keys() - closed == {
        ".git", ".git/modules", ".git/modules/vendor", lib, f"{lib}/modules", f"{lib}/modules/deeper",
    }  # fmt: skip
    assert f"{lib}/config" not in modes(protect(workspace, (".git/modules",)))


@needs_git
def test_a_submodules_configuration_is_a_copy_with_which_git_can_update_it(tmp_path: Path) -> None:
    """Where `core.worktree` is set, `git submodule update` sets it again, which a mount point does not allow."""
    git = Git(tmp_path)
    for name in ("lib", "top"):
        git("init", "--quiet", name)
        git("-C", name, "commit", "--allow-empty", "--message=x")
    git("-C", "top", "submodule", "add", "../lib", "vendor/lib")
    original = tmp_path / "top/.git/modules/vendor/lib/config"

    found = container(tmp_path, tmp_path / "top")
    (copy,) = found.copies
    (mount,) = (mount for mount in found.mounts if mount.target.endswith("vendor/lib/config"))
    assert (mount.source, mount.read_only) == (copy, True)
    assert not (tmp_path / "state").exists()

    (tmp_path / "state").mkdir()
    assert prepare_copies(found.copies)
    assert not prepare_copies(found.copies)
    assert stat.S_IMODE(Path(copy).stat().st_mode) == 0o644
    before = dict(gitconfig.read(original))
    assert before.pop("core.worktree") == "../../../../vendor/lib"
    assert dict(gitconfig.read(Path(copy))) == before
    assert [path.name for path in Path(copy).parent.iterdir()] == [Path(copy).name]

    original.write_bytes(Path(copy).read_bytes())  # what git in the container has
    original.chmod(0o444)
    assert container(tmp_path, tmp_path / "top").copies == {}
    git("-C", "top", "submodule", "update", "--init")
    git("-C", "top/vendor/lib", "commit", "--allow-empty", "--message=y")
    assert git("-C", "top", "status", "--short") == "A  .gitmodules\nAM vendor/lib\n"
    assert original.read_bytes() == Path(copy).read_bytes()


def test_a_configuration_of_which_more_would_be_lost_is_left_as_it_is(tmp_path: Path, workspace: Path) -> None:
    module = repository(repository(workspace / ".git") / "modules/lib")
    (module / "config").write_text("[core]\nworktree = ../../../lib\n[other]\nworktree = x\n")

    assert container(tmp_path, workspace).copies == {}


@pytest.mark.parametrize("place", ["a/.git", "a/b/c/.git", "bare.git", "a/b/bare"])
def test_a_repository_in_a_folder_is_protected_as_well(workspace: Path, place: str) -> None:
    repository(workspace / place)

    found = modes(protect(workspace, ()))

    assert {name for name, mode in found.items() if mode == "ro"} == {f"{place}/{name}" for name in ("config", "hooks")}
    assert found.keys() >= {place, place.partition("/")[0]}
    assert protect(workspace, (".git",)) == []


@pytest.mark.parametrize("place", ["a/b/c/d/.git", "node_modules/a/.git", "link/.git", "a/link", "a\nb/.git"])
def test_where_repositories_are_not_looked_for(workspace: Path, tmp_path: Path, place: str) -> None:
    """Too deep, among packages, behind a link, or by a name that no person gives."""
    repository(tmp_path / "elsewhere/.git")
    for link, to in (("link", "elsewhere"), ("a/link", "elsewhere/.git")):
        if place.startswith(link):
            (workspace / link).parent.mkdir(exist_ok=True)
            (workspace / link).symlink_to(tmp_path / to)
    if "link" not in place:
        repository(workspace / place)

    assert protect(workspace, ()) == []


def test_a_workspace_that_is_a_bare_repository_is_protected(workspace: Path) -> None:
    for name in ("objects", "refs", "hooks"):
        (workspace / name).mkdir()
    (workspace / "HEAD").write_text("ref: refs/heads/main\n")

    assert modes(protect(workspace, ())) == {"hooks": "ro"}


def test_a_link_in_another_repositorys_place_does_not_stop_the_run(workspace: Path) -> None:
    hooks = repository(workspace / "a/.git") / "hooks"
    hooks.rmdir()
    hooks.symlink_to("/nowhere")

    assert "a/.git/hooks" not in modes(protect(workspace, ()))


def test_a_folder_that_is_closed_to_us_does_not_hide_a_repository(tmp_path: Path, workspace: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("nothing is closed to root")
    repository(workspace / "a/b/.git")
    (workspace / "a").chmod(0)

    with pytest.raises(ConfigError, match="chmod"):
        build(tmp_path, workspace)
    (workspace / "a").chmod(0o755)


def test_what_the_configuration_names_is_protected(workspace: Path) -> None:
    git = repository(workspace / ".git")
    for name in ("scripts/hooks", "shared"):
        (workspace / name).mkdir(parents=True)
    (workspace / "shared/config").touch()
    (workspace / "link").symlink_to("shared")
    settings = ["[core]", "hooksPath = scripts/hooks", "[include]", "path = ../shared/config", "path=../link/config"]
    (git / "config").write_text("\n".join([*settings, '[includeIf "gitdir:/"]', "path = ..", "path=/etc/hosts"]))

    found = modes(protect(workspace, ()))

    assert {name for name, mode in found.items() if mode == "ro" and not name.startswith(".git/")} == {
        "scripts/hooks", "shared/config",
    }  # fmt: skip
    assert "scripts/hooks" not in modes(protect(workspace, (".git/hooks",)))


def test_what_a_repository_may_always_have_is_made_before_a_run_so_that_nobody_else_makes_it(
    tmp_path: Path, workspace: Path
) -> None:
    git = repository(workspace / ".git")
    (workspace / ".claude").mkdir()
    before = missing(workspace)

    recheck(build(tmp_path, workspace))

    assert not (git / "commondir").exists()
    assert not (git / "config.worktree").exists()
    assert (workspace / ".claude/worktrees").is_dir()
    assert missing(workspace) == before

    (git / "config").write_text("[extensions]\nworktreeConfig = true\n")
    recheck(build(tmp_path, workspace))
    assert (git / "config.worktree").read_text() == ""
    assert missing(workspace) == before
    assert not recheck(build(tmp_path, workspace))


@pytest.mark.parametrize("place", [".git", "a/b/.git", ".git/modules/lib"])
def test_a_commondir_is_reserved_in_each_repository_if_it_is_asked_for(
    tmp_path: Path, workspace: Path, place: str
) -> None:
    repository(workspace / ".git")
    git = workspace / place if place == ".git" else repository(workspace / place)
    before = missing(workspace)

    recheck(mounts := build(tmp_path, workspace, protected=[".git/commondir"]))

    assert modes(mounts)[f"{place}/commondir"] == "ro"
    assert (git / "commondir").read_text() == "./\n"
    assert missing(workspace) == before
    assert not recheck(build(tmp_path, workspace, protected=[".git/commondir"]))

    (workspace / ".git/commondir").unlink()
    (workspace / ".git/commondir").write_text("evil\n")
    assert before - missing(workspace) == {".git/commondir"}


@needs_git
def test_git_takes_a_repository_with_what_we_make_in_it_as_before(tmp_path: Path, workspace: Path) -> None:
    git = Git(tmp_path)
    git("init", "--quiet", str(workspace))
    git("-C", str(workspace), "commit", "--allow-empty", "--message=x")
    before = git("-C", str(workspace), "status", "--porcelain=v2", "--branch")

    recheck(build(tmp_path, workspace, protected=[".git/commondir"]))

    assert (workspace / ".git/commondir").exists()
    assert git("-C", str(workspace), "status", "--porcelain=v2", "--branch") == before
    git("-C", str(workspace), "worktree", "add", "../linked")
    git("-C", str(tmp_path / "linked"), "commit", "--allow-empty", "--message=y")
    git("-C", str(workspace), "merge", "linked")
    git("-C", str(workspace), "gc")
    assert git("clone", str(workspace), str(tmp_path / "clone")) == ""
    assert git("-C", str(tmp_path / "clone"), "log", "--format=%s") == "y\nx\n"


# Worktrees


def test_the_worktrees_of_a_repository_are_closed_but_for_those_in_the_container(workspace: Path) -> None:
    git = repository(workspace / ".git")
    links = {"elsewhere": "/home/me/wt/.git", "relative": "../../../wt/.git", "boxed": "/workspace/.claude/x/.git"}
    for name, link in links.items():
        (git / "worktrees" / name).mkdir(parents=True)
        (git / "worktrees" / name / "gitdir").write_text(f"{link}\n")
        (git / "worktrees" / name / "commondir").write_text("../..\n")
    (workspace / "wt").mkdir()
    (workspace / "wt/.git").write_text("gitdir: ../.git/worktrees/relative\n")

    found = modes(protect(workspace, ()))

    assert {name: mode for name, mode in found.items() if "worktrees" in name} == {
        ".git/worktrees": "rw",
        ".git/worktrees/elsewhere": "ro",
        ".git/worktrees/relative": "rw",
        ".git/worktrees/relative/commondir": "ro",
        ".git/worktrees/relative/gitdir": "ro",
    }


def test_a_worktree_comes_with_its_repository_at_its_own_path(tmp_path: Path, workspace: Path) -> None:
    main = repository(tmp_path / "main/.git")
    worktree(main, workspace)
    worktree(main, tmp_path, "other")

    found = {mount.target: mount.read_only for mount in build(tmp_path, workspace)}

    assert found == {
        "/workspace": False,
        "/workspace/.git": True,
        str(main): False,
        f"{workspace}/.git": True,
        f"{main}/config": True,
        f"{main}/hooks": True,
        f"{main}/worktrees": False,
        f"{main}/worktrees/other": True,
        f"{main}/worktrees/wt": False,
        f"{main}/worktrees/wt/commondir": True,
        f"{main}/worktrees/wt/gitdir": True,
    }


def test_a_commondir_is_reserved_in_a_worktrees_repository_as_well(tmp_path: Path, workspace: Path) -> None:
    main = repository(tmp_path / "main/.git")
    worktree(main, workspace)

    recheck(mounts := build(tmp_path, workspace, protected=[".git/commondir"]))

    assert Mount(f"{main}/commondir", f"{main}/commondir", read_only=True) in mounts
    assert (main / "commondir").read_text() == "./\n"


def test_a_read_only_worktree_gets_a_read_only_repository(tmp_path: Path, workspace: Path) -> None:
    worktree(repository(tmp_path / "main/.git"), workspace)

    found = build(tmp_path, workspace, workspace_mode="ro")

    assert len(found) == 3
    assert all(mount.read_only for mount in found)


def test_links_that_are_relative_lead_to_the_same_place_in_the_container(tmp_path: Path, workspace: Path) -> None:
    own = worktree(repository(tmp_path / "main/.git"), workspace)
    (workspace / ".git").write_text("gitdir: ../main/.git/worktrees/wt\n")
    (own / "gitdir").write_text("../../../../project/.git\n")

    targets = {mount.target for mount in build(tmp_path, workspace)}

    assert {"/main/.git", "/main/.git/hooks", "/main/.git/worktrees/wt", "/project/.git"} < targets


def test_a_configured_volume_takes_the_place_of_the_repository(tmp_path: Path, workspace: Path) -> None:
    main = repository(tmp_path / "main/.git")
    worktree(main, workspace)

    found = build(tmp_path, workspace, volumes=[Mount(str(main), str(main), read_only=True)])

    assert [mount.target for mount in found] == ["/workspace", "/workspace/.git", str(main)]


def test_a_tmpfs_leaves_no_mount_point_in_the_repository(tmp_path: Path, workspace: Path) -> None:
    main = repository(tmp_path / "main/.git")
    worktree(main, workspace)

    with pytest.raises(ConfigError, match=r"tmpfs\[0\]"):
        build(tmp_path, workspace, tmpfs=[f"{main}/commondir"])
    build(tmp_path, workspace, tmpfs=[f"{main}-other"])


@pytest.mark.parametrize("lie", ["gitdir", "commondir", "not a repository", "link"])
def test_a_file_that_the_repository_does_not_confirm_mounts_nothing(tmp_path: Path, workspace: Path, lie: str) -> None:
    """An agent can write the file .git, so it must not choose what is mounted next time."""
    secret = repository(tmp_path / "secret/.git")
    own = worktree(repository(tmp_path / "main/.git"), workspace)
    match lie:
        case "gitdir":
            (own / "gitdir").write_text(f"{tmp_path}/elsewhere/.git\n")
        case "commondir":
            (own / "commondir").write_text(f"{secret}\n")
        case "not a repository":
            shutil.rmtree(tmp_path / "main/.git/objects")
        case _:
            own.rename(tmp_path / "moved")
            own.symlink_to(tmp_path / "moved")

    with pytest.raises(ConfigError, match=r"agent\.workspace"):
        build(tmp_path, workspace)


@pytest.mark.parametrize(
    "text",
    [
        "gitdir: {}/secret/.git\n",
        "gitdir: {}/secret/.git/modules/sub\n",
        "gitdir: {}/gone/.git/worktrees/wt\n",
        "gitdir: /etc\n",
        "{}/secret/.git\n",
        "gitdir: \n",
        "gitdir: a\0b\n",
        "gitdir: \udcff\n",
        "",
    ],
)
def test_a_file_that_names_no_worktree_mounts_nothing(tmp_path: Path, workspace: Path, text: str) -> None:
    secret = repository(tmp_path / "secret/.git")
    (secret / "modules/sub").mkdir(parents=True)
    (workspace / ".git").write_bytes(text.format(tmp_path).encode(errors="surrogateescape"))

    assert [mount.target for mount in build(tmp_path, workspace)] == ["/workspace", "/workspace/.git"]


def test_a_repository_in_a_private_place_is_not_mounted(tmp_path: Path, workspace: Path) -> None:
    worktree(repository(tmp_path / "home/.config/repo.git"), workspace)

    with pytest.raises(ConfigError, match=r"\.config"):
        build(tmp_path, workspace)


def test_a_repository_that_holds_our_state_is_not_mounted(tmp_path: Path, workspace: Path) -> None:
    worktree(repository(tmp_path / "state/main.git"), workspace)

    with pytest.raises(ConfigError, match="state folder"):
        build(tmp_path, workspace)


@needs_git
def test_what_git_makes_is_a_worktree(tmp_path: Path) -> None:
    git = Git(tmp_path)
    git("init", "--quiet", "main")
    git("-C", "main", "commit", "--allow-empty", "--message=x")
    git("-C", "main", "worktree", "add", "../linked")
    git("clone", "--bare", "main", "bare.git")
    git("-C", "bare.git", "worktree", "add", "../of-bare", "-b", "other")

    for name, common in (("linked", "main/.git"), ("of-bare", "bare.git")):
        found = find_worktree(tmp_path / name)
        assert found is not None
        assert (found.common, found.name) == (tmp_path / common, name)
        assert (found.target, found.link) == (str(tmp_path / common), f"{tmp_path}/{name}/.git")
    assert find_worktree(tmp_path / "main") is None


# Objects elsewhere


@needs_git
def test_a_repository_that_borrows_objects_is_refused_with_the_volume_to_type(tmp_path: Path) -> None:
    git = Git(tmp_path)
    git("init", "--quiet", "main")
    git("-C", "main", "commit", "--allow-empty", "--message=x")
    git("clone", "--quiet", "--shared", "main", "borrows")
    objects = tmp_path / "main/.git/objects"

    for mode in ("rw", "ro"):
        with pytest.raises(ConfigError) as caught:
            build(tmp_path, tmp_path / "borrows", workspace_mode=mode)
        assert f"--volume={objects}:{objects}:ro" in caught.value.next_step
    build(tmp_path, tmp_path / "borrows", volumes=[f"{objects}:{objects}:ro"])
    build(tmp_path, tmp_path / "main")

    words = ("submodule", "--quiet", "add", "--reference", str(tmp_path / "main"), str(tmp_path / "main"), "m")
    git("-C", "main", "-c", "protocol.file.allow=always", *words)
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, tmp_path / "main")
    assert f"{tmp_path}/main/.git/modules/m borrows those in {objects}" in caught.value.next_step


def test_objects_in_the_workspace_or_nowhere_are_no_reason_to_refuse(tmp_path: Path, workspace: Path) -> None:
    git = repository(workspace / ".git")
    (workspace / "pool/objects").mkdir(parents=True)
    (git / "objects/info").mkdir()
    (git / "objects/info/alternates").write_text("# a pool\n../../pool/objects\n\n/nowhere/objects\n")

    build(tmp_path, workspace)
