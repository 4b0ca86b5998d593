"""The one table of what programs on the host obey without being asked, by the names that they look for.

A mounted workspace has the *walled* ones read-only (`container_runner.box.protect` says how). Of a carried one, every
change to any of them is a finding (`container_runner.workspace.findings`), and is applied only when it is named.

A name is here if something acts on it when a person does no more than enter the folder, open it in an editor, ask git
for the status, commit, push, install what the project needs, or start an agent. Sources are not, and neither is what a
person has to start by name: a Makefile, a test, a build script, a task of package.json. They do as they are told too,
but after a command that says so, and a table with them would mark every piece of work, so that nobody reads the marks.
"""

from __future__ import annotations

from typing import Final

import attrs

WORKSPACE_FILE: Final = ".container-runner.toml"
"""The workspace's own configuration, which may only tighten."""

GIT: Final = ("commondir", "config", "config.worktree", "hooks", "modules", "worktrees")
"""What is protected in a repository. All of these say what git runs, or where it looks for what says it. Of `modules`
and `worktrees`, which hold repositories in turn, only what is in there already."""


@attrs.frozen(kw_only=True)
class Place:
    """A name that programs look for."""

    name: str
    """A file or a folder, which stands for all that is in it. "a/b" is b in a; "*.x" is all that ends so."""

    kind: str
    """Who obeys it: a key of `OBEYED_BY`."""

    walled: bool = False
    """Whether it is read-only in a mounted workspace, at the top."""

    only_top: bool = False
    """Whether it counts at the top of the workspace alone. The others count wherever they are: a person may enter any
    folder, and open any in an editor."""


OBEYED_BY: Final = {
    "agent": "a coding agent obeys it",
    "ci": "it runs when it is pushed, with what the CI may do",
    "container": "an editor runs it to make its container",
    "debugger": "a debugger or an interpreter runs it when it starts there",
    "editor": "an editor obeys it",
    "git": "git obeys it",
    "hook": "it runs when somebody commits",
    "package": "a package manager or a build tool obeys it",
    "shell": "a shell reads it",
    "tool": "it runs when somebody enters the folder",
}


def _places(kind: str, names: str, *, walled: bool = False, only_top: bool = False) -> tuple[Place, ...]:
    return tuple(Place(name=name, kind=kind, walled=walled, only_top=only_top) for name in names.split())


PLACES: Final = (
    *_places("agent", f".claude .codex .cursor .gemini .mcp.json {WORKSPACE_FILE} .agents", walled=True),
    *_places("agent", ".aider.conf.yml .kiro .opencode .roo .roomodes .windsurf opencode.json", walled=True),
    *_places("agent", "AGENTS.md CLAUDE.local.md CLAUDE.md GEMINI.md QWEN.md"),
    *_places("agent", ".amp .claude-plugin .clinerules .continue .crush.json .cursorrules .goosehints .junie .qwen"),
    *_places("agent", ".github/copilot-instructions.md .windsurfrules crush.json opencode.jsonc"),
    *_places("editor", ".idea .vscode .dir-locals.el .exrc .fleet .nvim.lua .nvimrc .vimrc .zed", walled=True),
    *_places("editor", "*.code-workspace .dir-locals-2.el .helix .lvimrc .ycm_extra_conf.py"),
    *_places("container", ".devcontainer .devcontainer.json", walled=True),
    *_places("container", ".gitpod.yml"),
    *_places("shell", ".bash_login .bash_profile .bashrc .profile .zlogin .zprofile .zshenv .zshrc", walled=True),
    *_places("shell", ".bash_logout .zlogout"),
    *_places("tool", ".envrc .ripgreprc", walled=True),
    *_places("tool", ".asdfrc .config/mise .config/mise.toml .mise .mise.local.toml .mise.toml .tool-versions"),
    *_places("tool", "mise.local.toml mise.toml"),
    *_places("debugger", ".gdbinit .lldbinit", walled=True),
    *_places("debugger", ".Rprofile .irbrc .pdbrc .pryrc sitecustomize.py usercustomize.py"),
    *_places("hook", ".githooks .husky", walled=True),
    *_places("hook", ".git-hooks .lefthook .lefthook-local .lefthook.json .lefthook.toml .lefthook.yaml .lefthook.yml"),
    *_places("hook", ".overcommit.yml .pre-commit-config.yaml .pre-commit-hooks.yaml lefthook-local.yml lefthook.json"),
    *_places("hook", "lefthook.toml lefthook.yaml lefthook.yml"),
    *_places("git", ".git .gitconfig .hg/hgrc .jj/repo/config.toml", walled=True),
    *_places("git", ".gitmodules .hg .jj .lfsconfig"),
    *_places("package", ".bundle/config .cargo/config .cargo/config.toml .mvn .npmrc .pnpmfile.cjs .yarn/plugins"),
    *_places("package", ".yarn/releases .yarnrc .yarnrc.yml bunfig.toml gradle/wrapper gradlew gradlew.bat mvnw"),
    *_places("package", "mvnw.cmd rust-toolchain rust-toolchain.toml"),
    *_places("ci", ".buildkite .circleci .drone.yml .forgejo/workflows .gitea/workflows", only_top=True),
    *_places("ci", ".github/actions .github/workflows .gitlab-ci.yml .gitlab/ci .semaphore .teamcity", only_top=True),
    *_places("ci", ".travis.yml", only_top=True),
    *_places("ci", ".woodpecker .woodpecker.yml Jenkinsfile appveyor.yml azure-pipelines.yml", only_top=True),
    *_places("ci", "bitbucket-pipelines.yml cloudbuild.yaml", only_top=True),
)

PROTECTED: Final = tuple(sorted([*(place.name for place in PLACES if place.walled), *(f".git/{name}" for name in GIT)]))
"""The paths in a mounted workspace that are read-only. `.git` stands for those below it: a repository itself is
writable."""

OBEYED: Final = tuple(sorted(place.name for place in PLACES if not place.walled))
"""What programs obey as well, and an agent may have good reason to change: in a mounted workspace it is writable, but
worth a look when it has changed."""

INSTALLED: Final = frozenset([".nox", ".tox", ".venv", "__pypackages__", "node_modules", "venv"])
"""Folders of installed programs. Nobody reads what is in them, and nearly every command runs some of it."""
