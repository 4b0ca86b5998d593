"""The names of what is protected in a workspace; `container_runner.box.protect` says how."""

from __future__ import annotations

from typing import Final

WORKSPACE_FILE: Final = ".container-runner.toml"
"""The workspace's own configuration, which may only tighten."""

GIT: Final = ("commondir", "config", "config.worktree", "hooks", "modules", "worktrees")
"""What is protected in a repository. All of these say what git runs, or where it looks for what says it. Of `modules`
and `worktrees`, which hold repositories in turn, only what is in there already."""

PROTECTED: Final = (
    ".agents",
    ".aider.conf.yml",
    ".bash_login",
    ".bash_profile",
    ".bashrc",
    ".claude",
    ".codex",
    WORKSPACE_FILE,
    ".cursor",
    ".devcontainer",
    ".devcontainer.json",
    ".dir-locals.el",
    ".envrc",
    ".exrc",
    ".fleet",
    ".gdbinit",
    ".gemini",
    ".git",
    *(f".git/{name}" for name in GIT),
    ".gitconfig",
    ".githooks",
    ".hg/hgrc",
    ".husky",
    ".idea",
    ".jj/repo/config.toml",
    ".kiro",
    ".lldbinit",
    ".mcp.json",
    ".nvim.lua",
    ".nvimrc",
    ".opencode",
    ".profile",
    ".ripgreprc",
    ".roo",
    ".roomodes",
    ".vimrc",
    ".vscode",
    ".windsurf",
    ".zed",
    ".zlogin",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    "opencode.json",
)
"""The paths in a workspace that are protected. `.git` stands for those below it: a repository itself is writable."""

OBEYED: Final = (
    ".cargo/config.toml",
    ".github/workflows",
    ".gitlab-ci.yml",
    ".lfsconfig",
    ".mise.toml",
    ".mvn",
    ".npmrc",
    ".pnpmfile.cjs",
    ".pre-commit-config.yaml",
    ".tool-versions",
    ".yarnrc.yml",
    "AGENTS.md",
    "CLAUDE.md",
    "GEMINI.md",
    "gradlew",
    "lefthook.yml",
    "mise.toml",
    "rust-toolchain.toml",
)
"""What programs obey as well, and an agent may have good reason to change: not protected, but worth a look when it
has changed, as all that is run is (Makefile, package.json, the tests)."""
