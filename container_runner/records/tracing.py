"""OpenTelemetry spans of a run, for programs that have OpenTelemetry.

A span "container_runner.run" stands around "container_runner.create" (the container is found or made),
"container_runner.exec" (the agent's process) and, where one was needed, "container_runner.stop". Its parent is the
span that is current when the run's first message is asked for.

opentelemetry-api is not imported here: where nobody has imported it, nobody has configured it, and there is nothing to
do. Spans are not made current either, because an async generator must not leave a context behind at a yield.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from container_runner.box.plan import Plan
    from container_runner.records.summary import RunSummary

PREFIX: Final = "container_runner."


class RunTrace:
    """The spans of one run; none if OpenTelemetry is not in use. Make one when the run begins."""

    def __init__(self, plan: Plan) -> None:
        self._api: Any = sys.modules.get("opentelemetry.trace")
        self._exec: Span | None = None
        self._context: Any = None
        if self._api is None:
            return
        from container_runner import __version__

        self._tracer = self._api.get_tracer("container_runner", __version__)
        self._run: Span = self._start(
            "run",
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": plan.agent,
                "container.image.name": plan.image,
                "container.name": plan.container,
                PREFIX + "run_id": plan.run_id,
                PREFIX + "engine": plan.run[0],
                PREFIX + "ephemeral": plan.ephemeral,
            },
        )
        self._context = self._api.set_span_in_context(self._run)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span of the run, for the length of a block that has no yield in it."""
        if self._api is None:
            yield
            return
        span = self._start(name)
        try:
            yield
        except BaseException as error:
            self._fail(span, getattr(error, "kind", type(error).__name__))
            raise
        finally:
            span.end()

    def begin_exec(self) -> None:
        """The agent's process is started."""
        if self._api is not None:
            self.end_exec(None)  # of an attempt before this one
            self._exec = self._start("exec")

    def end_exec(self, exit_code: int | None) -> None:
        """It has ended, or was given up. Nothing happens if it had not begun."""
        if self._exec is not None:
            if exit_code is not None:
                self._exec.set_attribute("process.exit.code", exit_code)
            self._exec.end()
            self._exec = None

    def end(self, summary: RunSummary) -> None:
        """The run has ended."""
        if self._api is None:
            return
        self.end_exec(None)
        usage = summary.tokens
        attributes = {
            "gen_ai.conversation.id": summary.session_id,
            "gen_ai.response.model": summary.model,
            "gen_ai.usage.input_tokens": None if usage is None else usage.total - usage.output_tokens,
            "gen_ai.usage.output_tokens": None if usage is None else usage.output_tokens,
            "process.exit.code": summary.exit_code,
            PREFIX + "outcome": summary.outcome,
            PREFIX + "turns": summary.turns,
            PREFIX + "cost_usd": summary.cost_usd,
        }
        self._run.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if summary.container is not None:  # another one than at the start, if that was tried again
            self._run.set_attribute("container.name", summary.container)
        if summary.kind is not None:
            self._fail(self._run, summary.kind, summary.message)
        self._run.end()

    def _start(self, name: str, attributes: Mapping[str, Any] | None = None) -> Span:
        span: Span = self._tracer.start_span(PREFIX + name, context=self._context, attributes=attributes)
        return span

    def _fail(self, span: Span, kind: str, message: str | None = None) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, message))
