"""The names of what is protected in a workspace; `container_runner.box.protect` says how."""

from __future__ import annotations

from typing import Final

WORKSPACE_FILE: Final = ".container-runner.toml"
"""The workspace's own configuration, which may only tighten."""

GIT: Final = ("commondir", "config", "config.worktree", "hooks", "modules", "worktrees")
"""What is read-only in a repository. All of these say what git runs, or where it looks for what says it."""

PROTECTED: Final = (
    ".bash_login",
    ".bash_profile",
    ".bashrc",
    ".claude",
    ".codex",
    WORKSPACE_FILE,
    ".cursor",
    ".envrc",
    ".gemini",
    ".git",
    *(f".git/{name}" for name in GIT),
    ".husky",
    ".idea",
    ".mcp.json",
    ".profile",
    ".vscode",
    ".zlogin",
    ".zprofile",
    ".zshenv",
    ".zshrc",
)
"""The paths in a workspace that are protected. `.git` stands for those below it: a repository itself is writable."""
