"""What refreshes decided, and why: a line of JSON a turn, in `refreshes/<model>.jsonl` of the workspace."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from gati.journal import Journal, decoded
from gati.settings import workspace

KEPT = 1000
"""Turns that are remembered: of twice as many, the older half is forgotten."""


@dataclass(frozen=True)
class Turn:
    """One refresh.

    Attributes:
        at: When it ended, ISO 8601.
        took: Seconds.
        samples: How many it learned from.
        live: The release that served before; 0 for none.
        release: The one that it published; None for none.
        why: Why that was published, or why nothing was, in a sentence.
        plain_seconds: Time of the backbone alone; None where it did not come to that, like the rest.
        live_seconds: Mean time of a request on held-out samples, expected of the release that served before.
        new_seconds: The same of what was learned now.
        live_differs: Share of the held-out samples that the release before answered otherwise than the backbone.
    """

    at: str
    took: float
    samples: int
    live: int
    release: int | None
    why: str
    plain_seconds: float | None = None
    live_seconds: float | None = None
    new_seconds: float | None = None
    live_differs: float | None = None


def note(repository: Path, model: str, turn: Turn) -> None:
    """Adds a turn to what is remembered. One refresh of a model is at work at a time, so nobody else writes."""
    Journal(_path(repository, model), KEPT).add(asdict(turn))


def turns(repository: Path, model: str) -> list[Turn]:
    """The turns that are remembered, oldest first. A line that was not written to its end is passed over."""
    return decoded(Turn, _path(repository, model))


def last_turn(repository: Path, model: str) -> Turn | None:
    """The turn that was noted last; None if none was, or what was noted can't be read."""
    try:
        return next(reversed(turns(repository, model)), None)
    except OSError:
        return None


def _path(repository: Path, model: str) -> Path:
    return workspace(repository) / "refreshes" / f"{model}.jsonl"
