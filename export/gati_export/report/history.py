"""The history of refreshes: what each decided, and why.

It has a line of JSON for each, in `refreshes/<model>.jsonl` of the workspace.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from gati.repository.workspace import workspace
from gati.system.journal import Journal, decoded

KEPT = 1000
"""How many turns are kept, at least; see gati.system.journal."""


@dataclass(frozen=True)
class Turn:
    """One turn: a refresh.

    Attributes:
        at: When it ended, ISO 8601.
        took: Seconds.
        samples: How many samples it trained on and certified with.
        live: The release that served before; 0 for none.
        release: The release that it published; None for none.
        why: Why it published that, or nothing, in a sentence.
        plain_seconds: Time of the backbone alone; None if it was not measured, like the rest.
        live_seconds: Expected mean time of a request with the release before, on held-out samples.
        new_seconds: The same with the new heads.
        live_differs: Share of held-out samples that the release before answered otherwise than the backbone.
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
    """Adds a turn to the history. Only one refresh of a model is at work at a time, so that nobody else writes."""
    Journal(_path(repository, model), KEPT).add(asdict(turn))


def turns(repository: Path, model: str) -> list[Turn]:
    """The turns in the history, oldest first. A line that was not written to its end is left out."""
    return decoded(Turn, _path(repository, model))


def last_turn(repository: Path, model: str) -> Turn | None:
    """The last turn in the history; None if there is none, or it can't be read."""
    try:
        return next(reversed(turns(repository, model)), None)
    except OSError:
        return None


def _path(repository: Path, model: str) -> Path:
    return workspace(repository) / "refreshes" / f"{model}.jsonl"
