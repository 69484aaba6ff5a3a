"""Minutes: what a replica did, a line of JSON for each minute, kept for a few days for `gati report`.

One file a replica, in the workspace: `DIR.gati/minutes/MODEL/REPLICA.jsonl`. A minute without requests has no line.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from gati.system.journal import Journal, forget
from gati.system.warn_once import WarnOnce
from gati.telemetry.histogram import bucket

SECONDS = 60.0
KEPT = 3 * 24 * 60
"""Minutes: three days without a pause."""


@dataclass(frozen=True)
class Minute:
    """What a replica did in about a minute.

    Attributes:
        at: When it ended, ISO 8601.
        seconds: How long it was.
        release: The live release at its end, 0 for none.
        closed: The exits that audits had closed by then.
        exits: Rows answered, by exit.
        audited: Hits audited.
        agreed: Audited hits that the backbone agreed with.
        lower: Lower bound on the share of the release's answers that differ, at the end of the minute.
        upper: Upper bound.
        times: Requests by the time from arrival to answer (gati.telemetry.histogram).
        backbone_times: The same of the requests of which the backbone answered a row. These ran the whole network and,
            unless they were bypassed, all lookups, and they waited in the same queue as the others.
        held: Rows held for the backbone, which heads might have answered.
        bypassed: Rows that went past the heads because these did not pay.
        backbone: The exit at which the backbone answers; −1 in lines of versions that did not write it.
    """

    at: str
    seconds: float
    release: int
    closed: tuple[int, ...]
    exits: dict[int, int]
    audited: int
    agreed: int
    lower: float
    upper: float
    times: dict[int, int]
    backbone_times: dict[int, int]
    held: int = 0
    backbone: int = -1
    bypassed: int = 0


class Minutes:
    """Counts what is served, on any thread, and writes it down every minute; `_lock` guards the counts.

    Args:
        path: The file.
        backbone: The exit at which the backbone answers.
        warn: Called once with why the file can't be written, and when it can be again; serving goes on without it.
    """

    def __init__(self, path: Path, backbone: int, warn: Callable[[str], None]) -> None:
        self._path = path
        self._journal = Journal(path, KEPT)
        self._backbone = backbone
        self._warn, self._warn_once = warn, WarnOnce(warn)
        self._lock = Lock()
        self._clear()
        forget(path.parent)

    def _clear(self) -> None:
        self._since = time.monotonic()
        self._exits: Counter[int] = Counter()
        self._audits: Counter[bool] = Counter()
        self._times: Counter[int] = Counter()
        self._backbone_times: Counter[int] = Counter()
        self._held = self._bypassed = 0

    def served(
        self, exits: Counter[int], latencies: Sequence[tuple[int, float]], held: int = 0, bypassed: int = 0
    ) -> None:
        """Counts a flight.

        Args:
            exits: Its rows, by exit.
            latencies: For each request, the deepest exit of its rows, and seconds from arrival to reply.
            held: How many rows were held.
            bypassed: How many rows went past the heads.
        """
        with self._lock:
            self._exits += exits
            self._held += held
            self._bypassed += bypassed
            for exit_, seconds in latencies:
                step = bucket(seconds)
                self._times[step] += 1
                if exit_ == self._backbone:
                    self._backbone_times[step] += 1

    def audited(self, agreed: Sequence[bool]) -> None:
        """Counts audited hits, by whether the backbone agreed."""
        with self._lock:
            self._audits.update(agreed)

    def keep(self, release: int, closed: Sequence[int], bounds: tuple[float, float], *, now: bool = False) -> None:
        """Writes what was counted, if a minute is over, or `now`."""
        with self._lock:
            seconds = time.monotonic() - self._since
            if seconds < SECONDS and not now:
                return
            minute = Minute(
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(seconds, 1),
                release=release,
                closed=tuple(closed),
                exits=dict(self._exits),
                audited=self._audits.total(),
                agreed=self._audits[True],
                lower=bounds[0],
                upper=bounds[1],
                times=dict(self._times),
                backbone_times=dict(self._backbone_times),
                held=self._held,
                backbone=self._backbone,
                bypassed=self._bypassed,
            )
            self._clear()
        if minute.exits or minute.audited:
            self._write(minute)

    def _write(self, minute: Minute) -> None:
        try:
            self._journal.add(asdict(minute))
            if self._warn_once.forget():
                self._warn(f"{self._path} is written again")
        except OSError as error:
            self._warn_once(f"{self._path} can't be written ({error.strerror}): `gati report` will know nothing of now")
