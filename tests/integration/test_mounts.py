"""What of the host is in the container, on paths that people really have."""

from __future__ import annotations

import pytest

from container_runner import ConfigError, Mount
from tests.integration.runs import ON_DOCKER, Box, collect, drain, result_of, tool_output

NAMES = [
    "with space",
    "a:b",
    "a,b",
    'a"b',
    '"quoted"',
    "it's",
    "ünïcödé 漢字 🐳",
    "-dash",
    "back\\slash",
    "$HOME `id` *",
    "a=b;c#d%20",
    "readonly",
]


def test_a_workspace_may_have_any_name(box: Box) -> None:
    workspace = box.new_folder("".join(NAMES))

    result_of(box.run("edit made.txt hello", workspace=workspace))

    assert (workspace / "made.txt").read_text() == "hello\n"
    assert (workspace / "made.txt").stat().st_uid == box.engine.owner[0]


def test_volumes_may_have_any_name_and_are_read_only_on_request(box: Box) -> None:
    volumes = []
    for number, name in enumerate(NAMES):
        folder = box.new_folder(name)
        (folder / "own").write_text(f"{name}\n")
        volumes += [Mount(str(folder), f"/rw/{number}"), Mount(str(folder), f"/ro/{name}", read_only=True)]

    look = 'for folder in /rw/*; do echo x >$folder/made; done; for folder in /ro/*; do (echo x >"$folder/never"); done'
    told = box.sh(
        f'{look} 2>/dev/null; for folder in /ro/*; do echo ${{folder#/ro/}}; cat "$folder/own"; done', volumes=volumes
    )

    assert {*told.splitlines()} == {*NAMES}
    assert len(told.splitlines()) == 2 * len(NAMES)
    for name in NAMES:
        assert (box.folder / name / "made").stat().st_uid == box.engine.owner[0]
        assert not (box.folder / name / "never").exists()


@ON_DOCKER
@pytest.mark.parametrize("name", ["two\nlines", "tab\tbed"])
def test_a_path_with_a_control_character_is_refused_before_anything_is_started(box: Box, name: str) -> None:
    workspace = box.new_folder(name)

    with pytest.raises(ConfigError, match=r"agent\.workspace"):
        box.run("edit a b", workspace=workspace)

    assert not box.state.exists()


def test_a_workspace_behind_a_symlink_is_the_folder_that_it_leads_to(box: Box) -> None:
    link = box.folder / "link"
    link.symlink_to(box.workspace)

    result_of(box.run("edit made.txt hello", workspace=link))

    assert (box.workspace / "made.txt").read_text() == "hello\n"


def test_without_a_workspace_there_is_an_empty_folder_to_write_in(box: Box) -> None:
    user = ":".join(map(str, box.engine.owner))

    told = box.sh("pwd; ls -A; echo x >made; chmod +x made; ls", workspace=None, user=user)

    assert told.split() == ["/workspace", "made"]


def test_a_state_folder_in_the_workspace_is_hidden_from_the_agent(box: Box) -> None:
    state = box.workspace / ".container-runner"
    other = state / "sessions/other/session.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text("what another agent was told\n" * 1000)
    runner = box.runner(state=state)

    options = box.options("sh cd .container-runner; find .; echo kept >$CLAUDE_CONFIG_DIR/tasks/s; echo x >made")
    messages = collect(runner, options)

    result_of(messages)
    found, refused = tool_output(messages).splitlines()
    assert found == "."
    assert "read-only" in refused.lower()
    assert (state / "sessions/tester/tasks/s").read_text() == "kept\n"
    assert not (state / "made").exists()


def test_the_sessions_folder_is_private_to_the_agents_user(box: Box) -> None:
    box.sh("echo kept >$CLAUDE_CONFIG_DIR/tasks/s; echo gone | tee $CLAUDE_CONFIG_DIR/s >$CLAUDE_CONFIG_DIR/projects/s")

    folder = box.state / "sessions/tester"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        "projects", "projects/-workspace", "tasks", "tasks/s"
    }  # fmt: skip
    for path in (folder, folder / "tasks"):
        assert path.stat().st_uid == box.engine.owner[0]
        assert path.stat().st_mode & 0o777 == 0o700


def test_agents_do_not_see_each_others_sessions(box: Box) -> None:
    look = "cd $CLAUDE_CONFIG_DIR/tasks; ls; echo mine >$$"

    assert [box.sh(look, agent=name) for name in ("one", "two")] == ["", ""]


def test_a_folder_that_turned_into_a_symlink_is_not_followed(box: Box) -> None:
    runner, options = box.runner(), box.options("edit a b")
    messages = runner.execute(options)
    box.workspace.rename(box.folder / "moved")
    box.workspace.symlink_to("/etc")

    with pytest.raises(ConfigError, match=r"symlink|/etc"):
        drain(messages)

    assert box.containers() == []
