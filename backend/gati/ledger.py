"""The breaker's evidence on disk, so that a restart neither forgets what audits found nor opens what they closed.

One small file a replica, in the workspace: `DIR.gati/breaker/MODEL/REPLICA.json`. It is written beside, fsynced and
renamed, at once when an exit closes, and else every few seconds: what a kill can cost is the evidence of these.

What happened is written down beside, in `REPLICA.jsonl`: a line whenever a release goes live or an exit closes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gati.breaker import Alarm, Breaker
from gati.chain import Chain
from gati.files import replace
from gati.journal import Journal
from gati.release import Release

FORMAT = 1
KEEP_SECONDS = 10.0
EVENTS_KEPT = 1000


@dataclass(frozen=True)
class Event:
    """A release went live, also again at a start of the server, or exits closed.

    Attributes:
        at: When, ISO 8601.
        release: The live release.
        closed: The exits that are closed from now on; none when a release goes live that nothing speaks against.
        alarm: Why they are; None where none is.
    """

    at: str
    release: int
    closed: tuple[int, ...]
    alarm: Alarm | None


class Ledger:
    """Opens releases' breakers, and keeps on disk what the last one knows.

    Args:
        path: The file; what happens goes into the one beside it with the suffix `.jsonl`.
        chain: Whose promise they watch.
        warn: Called once with why the file can't be read or written; serving goes on without it.
    """

    def __init__(self, path: Path, chain: Chain, warn: Callable[[str], None]) -> None:
        self._path = path
        self._chain = chain
        self._warn = warn
        self._complained = False
        self._about: dict[str, Any] = {}
        self._breaker: Breaker | None = None
        self._kept: dict[str, Any] = {}
        self._alarm: Alarm | None = None
        self._due = 0.0
        self._journal = Journal(path.with_suffix(".jsonl"), EVENTS_KEPT)
        self._events: list[Event] = []

    def open(self, release: Release) -> Breaker:
        """A breaker for a release that goes live: it goes on from the file, where that is about the same release."""
        self._about = {
            "format": FORMAT,
            "release": release.number,
            "heads": {str(head.index): head.sha256 for head in release.heads},
            "epsilon": self._chain.epsilon,
            "delta": self._chain.delta,
        }
        exits = sorted(head.index for head in release.heads)
        self._breaker = Breaker(self._chain.epsilon, self._chain.delta, exits)
        past = self._read()
        if past is not None:
            try:
                self._breaker = Breaker(self._chain.epsilon, self._chain.delta, exits, past)
            except ValueError as error:
                self._warn(f"{self._path} is damaged ({error}): what audits have found before is forgotten")
        self._kept = self._breaker.state()
        self._alarm, self._due = self._breaker.alarm, 0.0
        self._happened(release.number, self._breaker)
        return self._breaker

    def keep(self, *, now: bool = False) -> None:
        """Writes what has changed, if an exit has closed, or the last time is some seconds ago, or `now`."""
        if self._breaker is None:
            return
        closed = self._breaker.alarm != self._alarm
        if closed:
            self._happened(self._about["release"], self._breaker)
        self._write_down()
        if not (now or closed or time.monotonic() >= self._due):
            return
        state = self._breaker.state()
        if state != self._kept and self._written(self._about | state):
            self._kept = state
        self._alarm, self._due = self._breaker.alarm, time.monotonic() + KEEP_SECONDS

    def _happened(self, release: int, breaker: Breaker) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append(Event(at, release, breaker.closed_exits, breaker.alarm))

    def _write_down(self) -> None:
        events, self._events = self._events, []
        try:
            for event in events:
                self._journal.add(asdict(event))
        except OSError as error:
            self._complain(error)

    def _read(self) -> dict[str, Any] | None:
        """What the file says of this release; None where it says nothing of it."""
        try:
            fields = json.loads(self._path.read_text(encoding="utf-8"))
            number = fields["release"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._warn(f"{self._path} can't be read ({error}): what audits have found before is forgotten")
            return None
        if self._about.items() <= fields.items():
            return fields
        if number == self._about["release"]:
            self._warn(f"{self._path} is about another release {number}: it is passed over")
        return None

    def _written(self, fields: dict[str, Any]) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace(self._path, json.dumps(fields) + "\n")
            return True
        except OSError as error:
            self._complain(error)
            return False

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self._warn(f"{self._path} can't be written ({error.strerror}): a restart will forget what audits found")
