"""Times, counts and amounts as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as "3.2 s", "2:05 min" or "1:02:05 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{clock(seconds)} {'h' if seconds >= 3600 else 'min'}"


def clock(seconds: float) -> str:
    """Seconds as "0:42" or "1:02:05", which does not jump as it moves."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int) -> str:
    """A number as "950", "12.3k" or "1.2M"."""
    if number < 1000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 999_950 else f"{number / 1_000_000:.1f}M"


def cost(dollars: float) -> str:
    """Dollars as "$0.0125" or "$12.34"."""
    return f"${dollars:.4f}" if dollars < 1 else f"${dollars:.2f}"


def taken(turns: int | None = None, tokens: int | None = None, cost_usd: float | None = None) -> list[str]:
    """What something took, as "2 turns", "12.3k tokens" and "$0.0125"; without what is nothing, or is not known."""
    facts = [f"{turns} turn{'s' * (turns != 1)}"] if turns else []
    facts += [f"{count(tokens)} tokens"] if tokens else []
    facts += [cost(cost_usd)] if cost_usd else []
    return facts
