"""What a person sees at a terminal: lines that stay, and below them a region that moves.

Everything that an agent wrote goes through `clean`, and reaches rich as `Text`, which interprets no markup.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio
import attrs
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from container_runner.cli.text import MOST_CHANGED, change_lines, clean, job_facts, render, tool_call, tool_result
from container_runner.cli.text import line as one_line
from container_runner.cli.view import NOTHING_YET, QUIET, View
from container_runner.fleet.job import Job, JobResult
from container_runner.records.edits import edits
from container_runner.records.figures import clock, duration, taken
from container_runner.records.tally import Tally
from container_runner.records.transcript import retry_told
from container_runner.stream import messages

FRAME: Final = 0.1
"""Seconds between two pictures."""

MOST_PENDING: Final = 500
"""Lines that wait for the next picture; more are drawn at once, so that an agent that floods is slowed down."""

MOST_STREAMED: Final = 256 * 1024
"""Characters of an unfinished text that are kept to be compared with the finished one."""

LEAST_FOR_BARS: Final = 50
"""Columns of a terminal below which a batch has no bars: the jobs' names need the room."""

MOST_MARKDOWN: Final = 64 * 1024
"""Characters of a text that are rendered as Markdown."""

MOST_TOOLS: Final = 4
"""Tools at work that are shown."""


class Screen(View):
    """Lines that stay, and a region below them that is drawn anew for each picture.

    A terminal that has gone away is no error: from then on nothing is drawn.
    """

    def __init__(self, console: Console | None = None) -> None:
        # `force_terminal`, because it was decided already whether this is one.
        self.console = console or Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False)
        self._live = Live(self, console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._pending: list[RenderableType] = []
        self._gone = False
        self._began = time.monotonic()
        self.noted = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the first picture."""
        return time.monotonic() - self._began

    def start(self) -> None:
        """Draw the first picture."""
        self._began = time.monotonic()
        self._attempt(self._live.start)

    def show(self, *lines: RenderableType) -> None:
        """Add lines that stay."""
        self._pending += lines
        if len(self._pending) > MOST_PENDING:
            self.draw()

    def draw(self) -> None:
        """Draw a picture now."""
        pending, self._pending = self._pending, []
        if pending:  # the region follows what is printed
            self._attempt(lambda: self.console.print(Group(*pending)))
        else:
            self._attempt(self._live.refresh)

    async def beside(self) -> None:
        """Draw pictures until it is cancelled."""
        while not self._gone:
            self.draw()
            await anyio.sleep(FRAME)

    def note(self, text: str, end: str = "\n") -> None:
        """Say what we are doing instead of what the work does."""
        del end
        self.noted = text
        self.draw()

    def stop(self) -> None:
        """Take the region away, and give the cursor back."""
        if self._pending:
            self.draw()
        self._attempt(self._live.stop)

    def end(self, rows: Iterable[str]) -> None:
        """Add the last lines. They are not wrapped, so that they can be copied."""
        for row in rows:
            self._attempt(partial(self.console.print, _styled(row), soft_wrap=True))

    def __rich__(self) -> RenderableType:
        """The region that moves."""
        raise NotImplementedError

    def fitted(self, text: Text) -> Text:
        """*text* cut to one row, with room for the ^C that a terminal may echo behind it."""
        text.truncate(max(1, self.console.width - 3), overflow="ellipsis")
        return text

    def _attempt(self, draw: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            draw()
        except OSError:
            self._gone = True


@attrs.define
class _Tool:
    """A tool at work."""

    block: messages.ToolUseBlock
    indent: str
    began: float = attrs.Factory(time.monotonic)

    def line(self, mark: str, style: str) -> Text:
        name, told = tool_call(self.block.name, self.block.input)
        return Text.assemble((f"{self.indent}{mark} ", style), (name, "bold"), f" {told}")


class RunView(Screen):
    """One run: what the agent says and does, and what it has taken so far."""

    def __init__(self, tally: Tally, prompt: str, place: str | None, console: Console | None = None) -> None:
        super().__init__(console)
        self._tally = tally
        self._activity = "starting the container"
        self._tools: dict[str, _Tool] = {}
        self._streamed = ""
        self._printed = 0
        self._spaced = False
        self._spinner = Spinner("dots", style="cyan")
        self._started_at: float | None = None
        """When the agent started, as long as it has said nothing."""
        if place is not None:
            title = self.fitted(Text.assemble(("▸ ", "cyan"), (one_line(prompt), "bold")))
            self.show(title, Text(f"  {clean(place)}", "dim"))

    def agent_started(self) -> None:
        self._started_at = time.monotonic()

    async def take(self, message: messages.Message) -> None:
        """Show one more message."""
        self.add(message)

    def add(self, message: messages.Message) -> None:
        """Show one more message."""
        self._started_at = None
        match message:
            case messages.StreamEvent():
                self._stream(message)
            case messages.AssistantMessage():
                self._activity = "waiting for the model"
                indent = "  " if message.parent_tool_use_id else ""
                for block in message.content:
                    self._say(block, indent)
            case messages.UserMessage():
                for block in message.content:
                    if isinstance(block, messages.ToolResultBlock):
                        self._finish_tool(block, message.tool_use_result)
                self._activity = "waiting for the model"
            case messages.ResultMessage():
                self._activity = "finishing"
            case messages.SystemMessage() if message.is_init:
                self._activity = "waiting for the model"
                self.show(Text(f"  session {one_line(message.session_id)}, {one_line(message.model)}", "dim"))
            case messages.ApiRetryMessage():
                self._activity = retry_told(message)
                self.show(self.fitted(Text(render(message) or "", "yellow")))
            case messages.ErrorMessage():
                pass  # the end tells of it
            case _:
                if text := render(message):
                    self._activity = "at work"
                    self.show(Text(text))

    def draw(self) -> None:
        self._flush()
        super().draw()

    def stop(self) -> None:
        """The end, and with it the tools that never answered."""
        self._flush(whole=True)
        self.show(*(tool.line("○", "yellow") for tool in self._tools.values()))
        self._tools.clear()
        super().stop()

    def end(self, rows: Iterable[str]) -> None:
        error = self._tally.error
        super().end(["", *((render(error) or "").split("\n") if error else []), *rows])

    def __rich__(self) -> RenderableType:
        rows: list[Text] = []
        if rest := clean(self._streamed[self._printed :][-1000:]):
            wrapped = Text(rest).wrap(self.console, max(10, self.console.width - 1))
            rows += wrapped[-3:]
        tools = list(self._tools.values())
        for tool in tools[-MOST_TOOLS:]:
            took = time.monotonic() - tool.began
            row = tool.line("●", "yellow")
            row.truncate(max(1, self.console.width - 14), overflow="ellipsis")
            rows.append(self.fitted(row.append(f"  {duration(took)}", "dim")))
        if len(tools) > MOST_TOOLS:
            rows.append(Text(f"  and {len(tools) - MOST_TOOLS} more", "dim"))
        self._spinner.update(text=self.fitted(self._status()))
        return Group(Text(), *rows, self._spinner)

    def _status(self) -> Text:
        tally = self._tally
        tools = len(self._tools)
        if self._started_at is not None:
            has_waited = time.monotonic() - self._started_at >= QUIET
            self._activity = NOTHING_YET if has_waited else NOTHING_YET.partition(":")[0]
        activity = {0: self._activity, 1: "a tool at work"}.get(tools, f"{tools} tools at work")
        facts = [clock(self.elapsed), *taken(tally.turns, tally.tokens)]
        if tally.cost_usd:
            facts.append(f"${tally.cost_usd:.2f}")
        facts.append("Ctrl-C again leaves at once" if self.noted else "Ctrl-C stops")
        return Text.assemble(one_line(self.noted or activity), (f"  {' · '.join(facts)}", "dim"))

    def _stream(self, event: messages.StreamEvent) -> None:
        if event.parent_tool_use_id:
            return
        if event.event_type == "content_block_start":
            block = event.event.get("content_block")
            kind = block.get("type") if isinstance(block, dict) else None
            name = one_line(str(block.get("name", ""))[:80]) if isinstance(block, dict) else ""
            self._activity = {"text": "writing", "thinking": "thinking"}.get(str(kind), f"calling {name}".strip())
        if event.event_type in ("message_start", "content_block_start"):
            self._flush(whole=True)
        self._streamed += event.text
        if len(self._streamed) > MOST_STREAMED:
            self._flush(whole=True)

    def _flush(self, *, whole: bool = False) -> None:
        """Let the finished paragraphs of a text that still comes stay, or *whole*: all of it, and begin anew."""
        end = len(self._streamed) if whole else self._printed + _paragraphs(self._streamed[self._printed :])
        if end > self._printed:
            begin, self._printed = self._printed, end  # before it is shown, which may draw, and so come here again
            self._write(self._streamed[begin:end])
        if whole:
            self._streamed, self._printed = "", 0

    def _say(self, block: object, indent: str) -> None:
        match block:
            case messages.TextBlock(text=text):
                shown = 0
                if not indent:
                    if self._printed and text.startswith(self._streamed[: self._printed]):
                        shown = self._printed
                    self._streamed, self._printed = "", 0
                if text[shown:].strip():
                    self._write(text[shown:], indent)
            case messages.ToolUseBlock(id=key):
                if len(self._tools) >= 64:  # nobody runs that many; they are not answered
                    self._show_tool(self._tools.pop(next(iter(self._tools))), Text())
                self._tools[key] = _Tool(block, indent)
            case messages.ThinkingBlock():
                self._activity = "thinking"
            case _:
                pass

    def _write(self, text: str, indent: str = "") -> None:
        """The agent's own words, which are Markdown, set apart by an empty line."""
        text = clean(text).strip("\n")
        # More than that would take the renderer more than a moment.
        shown = Markdown(text, hyperlinks=False) if len(text) <= MOST_MARKDOWN else Text(text)
        self.show(Text(), Padding(shown, (0, 0, 0, len(indent))))
        self._spaced = False

    def _finish_tool(self, block: messages.ToolResultBlock, details: object) -> None:
        tool = self._tools.pop(block.tool_use_id, None) or _Tool(messages.ToolUseBlock(name="?"), "")
        changes = [] if block.is_error else edits(tool.block.name, tool.block.input, details)
        mark, style = ("✗", "red") if block.is_error else ("└", "dim")
        rows = [
            Text(f"{tool.indent}  {mark} {text}", {"+": "green", "-": "red"}.get(mark, "dim"))
            for mark, text in change_lines(changes, MOST_CHANGED)
        ] or [Text.assemble((f"{tool.indent}  {mark} ", "dim"), (tool_result(block), style))]
        if (took := time.monotonic() - tool.began) >= 1:
            rows[-1].append(f" · {duration(took)}", "dim")
        self._show_tool(tool, *rows, failed=block.is_error)

    def _show_tool(self, tool: _Tool, *told: Text, failed: bool = False) -> None:
        if not self._spaced:
            self.show(Text())
            self._spaced = True
        self.show(tool.line("●", "red" if failed else "green"), *map(self.fitted, told))


class BatchView(Screen):
    """A batch: a row with a bar for each job at work, one for all, and above them what has ended."""

    def __init__(self, jobs: Sequence[Job], before: Mapping[str, JobResult], console: Console | None = None) -> None:
        super().__init__(console)
        self._jobs = len(jobs)
        self._done = len(before)
        self._failed = sum(not result.succeeded for result in before.values())
        self._cost = 0.0
        self._name_width = min(24, max((cell_len(clean(job.id)) for job in jobs), default=1))
        self._rows: dict[str, _Row] = {}
        bars = [BarColumn(12, pulse_style="cyan", complete_style="cyan")] * (self.console.width >= LEAST_FOR_BARS)
        width = max(self._name_width, len(f"{self._jobs} of {self._jobs}"))
        self._progress = Progress(
            SpinnerColumn(style="yellow"),
            TextColumn("{task.description}", markup=False, table_column=Column(width=width, no_wrap=True)),
            *bars,
            TextColumn("{task.fields[told]}", "dim", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            TimeElapsedColumn(),
            console=self.console,
            auto_refresh=False,
            expand=True,
        )
        self._all = self._progress.add_task("", total=max(1, self._jobs), told="")

    def started(self, job: Job) -> None:
        limit = job.options.agent.max_turns or job.options.timeout
        self._rows[job.id] = _Row(job, self._progress.add_task(clean(job.id), total=limit, told=""))

    def agent_at_work(self, job: Job) -> None:
        self._rows[job.id].silent_since = time.monotonic()

    def said(self, job: Job, message: messages.Message) -> None:
        self._rows[job.id].add(message)

    def ended(self, result: JobResult) -> None:
        self._progress.remove_task(self._rows.pop(result.id).task)
        self._done += 1
        self._failed += not result.succeeded
        self._cost += result.cost_usd or 0
        mark, style = ("✓ ", "green") if result.succeeded else ("✗ ", "red")
        told = one_line((result.result if result.succeeded else result.message) or "")
        name = Text(clean(result.id))
        name.truncate(self._name_width, overflow="ellipsis", pad=True)
        told_in = "" if result.succeeded else style
        text = Text.assemble((mark, style), name, (f"  {job_facts(result)}  ", "dim"), (told, told_in))
        self.show(self.fitted(text))

    def end(self, rows: Iterable[str]) -> None:
        super().end(["", *rows])

    def __rich__(self) -> RenderableType:
        for row in self._rows.values():
            self._progress.update(row.task, completed=row.used, told=row.told)
        facts = [self.noted] * bool(self.noted) + [f"{self._failed} failed"] * bool(self._failed)
        facts += [f"{len(self._rows)} at work", *([f"${self._cost:.2f}"] if self._cost else [])]
        facts += ["Ctrl-C again leaves at once" if self.noted else "Ctrl-C stops"]
        done = f"{self._done} of {self._jobs}"
        self._progress.update(self._all, completed=self._done, description=done, told=" · ".join(facts))
        every, *work = self._progress.tasks
        room = max(1, self.console.height - 5)
        below = [Text(f"and {len(work) - room} more at work", "dim")] * (len(work) > room)
        table = self._progress.make_tasks_table([*work[:room], every])
        return Group(Text(), *below, Padding(table, (0, 3, 0, 0)))  # room for the ^C that a terminal may echo


@attrs.define
class _Row:
    """A job at work."""

    job: Job
    task: TaskID
    activity: str = "starting the container"
    tally: Tally = attrs.Factory(Tally)
    began: float = attrs.Factory(time.monotonic)
    silent_since: float | None = None
    """When its agent started, as long as it has said nothing."""

    @property
    def told(self) -> str:
        """What it does."""
        if self.silent_since is None:
            return self.activity
        return NOTHING_YET if time.monotonic() >= self.silent_since + QUIET else NOTHING_YET.partition(":")[0]

    @property
    def used(self) -> float:
        """How much it has used of its turns or its time. A bar that is full would stop its clock."""
        turns, timeout = self.job.options.agent.max_turns, self.job.options.timeout
        if turns is not None:
            return min(self.tally.turns or 0, turns - 0.1)
        return min(time.monotonic() - self.began, 0.99 * timeout) if timeout is not None else 0

    def add(self, message: messages.Message) -> None:
        self.tally.add(message)
        self.silent_since = None
        match message:
            case messages.ApiRetryMessage():
                self.activity = retry_told(message)
            case messages.AssistantMessage() if message.content:
                match message.content[-1]:
                    case messages.ToolUseBlock(name=name, input=arguments):
                        self.activity = " ".join(tool_call(name, arguments))
                    case messages.TextBlock(text=text) if text.strip():
                        self.activity = one_line(text)
                    case _:
                        self.activity = "thinking"
            case messages.SystemMessage() if message.is_init:
                self.activity = "waiting for the model"
            case messages.OutputLine() if message.data.strip():
                self.activity = one_line(message.text)
            case _:
                self.activity = one_line(render(message) or self.activity)


def _paragraphs(text: str) -> int:
    """Where the last paragraph of a Markdown text begins: what stands before will not change any more."""
    end, is_code = 0, False
    for match in re.finditer(r"^ {0,3}(?:```|~~~)|\n\n(?=\S)", text, re.MULTILINE):
        if match[0].strip():
            is_code = not is_code
        elif not is_code:
            end = match.end()
    return end


def _styled(row: str) -> Text:
    """One line of the end, in the colour of its mark."""
    if row.startswith(("✓", "✗")):
        return Text(row, "bold green" if row.startswith("✓") else "bold red")
    return Text(row, {"✗": "red", "+": "green", "~": "yellow", "-": "red", "!": "yellow"}.get(row.strip()[:1], ""))
