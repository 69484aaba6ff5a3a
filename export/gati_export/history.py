"""What refreshes decided, and why: a line of JSON a turn, in `refreshes/<model>.jsonl` of the workspace."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gati.settings import workspace
from gati_export.report.decode import decode

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
    path = _path(repository, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _lines(path)
    line = json.dumps(asdict(turn)) + "\n"
    if len(lines) >= 2 * KEPT:
        from gati_export.repository import replace_text  # brings onnx and tritonclient, which reading does without

        replace_text(path, "".join(f"{old}\n" for old in lines[-KEPT:]) + line)
        return
    with path.open("ab") as file:
        if file.tell() and not _whole(path):
            file.write(b"\n")  # its last writer was killed in the middle of a line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def turns(repository: Path, model: str) -> list[Turn]:
    """The turns that are remembered, oldest first. A line that was not written to its end is passed over."""
    found = []
    for line in _lines(_path(repository, model)):
        try:
            turn: Turn = decode(Turn, json.loads(line), "turn")
        except ValueError:
            continue
        found.append(turn)
    return found


def _path(repository: Path, model: str) -> Path:
    return workspace(repository) / "refreshes" / f"{model}.jsonl"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
