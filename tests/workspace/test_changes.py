"""What there is to know of a run's work, read from the shadow."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from container_runner.errors import ConfigError, WorkspaceError
from container_runner.workspace.changes import ChangedFile, Changes, Notes, write_notes
from container_runner.workspace.findings import Finding
from tests.workspace.scene import FILES, RUN, changes_of, commit, everything, git, look, make_folder, ran, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES)


async def test_files_come_with_their_lines(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, everything)

    found = {file.path: (file.status, file.added, file.removed) for file in changes.files}
    assert found == {
        b"a": ("modified", 1, 1),
        b"b": ("deleted", 0, 1),
        b"bin\xff": ("added", None, None),
        b"blob": ("added", None, None),
        b"e f": ("deleted", 0, 1),
        b"e f/g": ("added", 1, 0),
        b"new/one/x": ("added", 1, 0),
        b"new/y": ("added", 1, 0),
        b"run": ("modified", 0, 0),
        b"sub/c": ("modified", 1, 1),
        b"sub/deep": ("added", 1, 0),
        b"sub/deep/d": ("deleted", 0, 1),
        b"way": ("added", 1, 0),
    }
    assert (changes.head, changes.commits, changes.findings) == (None, (), ())


async def test_commits_come_oldest_first_with_what_was_not_committed_in_the_files(work: Path, state: Path) -> None:
    def edit(box: Path) -> None:
        write(box, {"one": "1\n"})
        commit(box, "the first\n\nwith a body")
        write(box, {"two": "2\n"})
        commit(box, "the second")
        write(box, {"three": "3\n"})

    changes = await changes_of(work, state, edit)

    assert [commit.subject for commit in changes.commits] == ["the first", "the second"]
    assert changes.commits[-1].sha == changes.head
    assert [file.path for file in changes.files] == [b"one", b"three", b"two"]


async def test_the_difference_is_shown_as_git_shows_it(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, lambda box: write(box, {"b": "B\n"}))

    assert "-b\n+B\n" in await changes.diff()
    assert "1 file changed, 1 insertion(+), 1 deletion(-)" in await changes.diff(stat=True)


async def test_no_program_of_the_user_or_the_agent_shows_the_difference(
    work: Path, state: Path, tmp_path: Path
) -> None:
    ran_by_git = tmp_path / "ran"
    git(work, "config", "diff.x.textconv", f"touch {ran_by_git}; cat")
    git(work, "config", "diff.external", f"touch {ran_by_git}; true")

    changes = await changes_of(work, state, lambda box: write(box, {"b": "B\n", ".gitattributes": "* diff=x\n"}))

    assert "-b\n+B\n" in await changes.diff()
    assert not ran_by_git.exists()


async def test_findings_are_of_the_work_and_of_the_way_out(work: Path, state: Path) -> None:
    def edit(box: Path) -> None:
        write(box, {"sub/.envrc": "x", "ops.sh": "x", ".idea/x": "x", "package.json": '{"scripts": {"install": "x"}}'})
        (box / "way").symlink_to("../../outside")

    shadow = await ran(work, state, edit)
    told = (Finding("socket", b"agent.sock"),)
    await write_notes(shadow, RUN, Notes(findings=told, protected=("ops.sh",), unprotected=(".idea",)))

    assert {(finding.kind, finding.path) for finding in (await Changes.load(shadow, RUN)).findings} == {
        ("protected", b"ops.sh"),
        ("scripts", b"package.json"),
        ("tool", b"sub/.envrc"),
        ("link", b"way"),
        ("socket", b"agent.sock"),
    }


async def test_they_are_written_as_json_and_read_again(work: Path, state: Path) -> None:
    def edit(box: Path) -> None:
        write(box, {".envrc": "x", "caf\u00e9": "x"})
        commit(box, "caf\u00e9")

    changes = await changes_of(work, state, edit)

    again = Changes.from_dict(orjson.loads(orjson.dumps(changes.to_dict())))
    assert again == changes
    with pytest.raises(WorkspaceError, match="Only what is to be told"):
        await again.diff()
    with pytest.raises(ConfigError):
        Changes.from_dict({"run": 7})


async def test_a_name_that_is_no_text_does_not_break_the_json(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, lambda box: write(box, {"bin\udcff": "x"}))

    assert orjson.loads(orjson.dumps(changes.to_dict()))["files"] == [
        {"path": "bin\\xff", "status": "added", "added": 1, "removed": 0}
    ]
    assert changes.files == (ChangedFile(path=b"bin\xff", status="added", added=1, removed=0),)


async def test_what_is_discarded_is_gone_and_the_folder_stays(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, everything)
    before = look(work)

    await changes.discard()

    assert look(work) == before
    with pytest.raises(WorkspaceError, match="Nothing is kept of run"):
        await Changes.open(work, RUN, state)
