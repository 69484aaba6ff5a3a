"""Breakers' evidence on disk: neither a restart nor a rollback forgets what audits found, or opens what they closed.

A release that goes back to earlier heads (`Release.origin`) goes on from what audits found of these.

One small file a replica, in the workspace: `DIR.gati/breaker/MODEL/REPLICA.json`. It is written beside, fsynced and
renamed, at once when an exit closes, and else every few seconds, of which a kill can cost the evidence; fewer, while
the breaker is eager for more.

What happened is written down beside, in `REPLICA.jsonl`: a line whenever a release goes live or an exit closes. Those
of replicas that are long gone are removed; not so the evidence, from which one that comes back after weeks goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from gati.breaker import Alarm, Breaker
from gati.chain import Chain
from gati.files import replace
from gati.journal import Journal, forget
from gati.release import Release
from gati.warn_once import WarnOnce

FORMAT = 2
KEEP_SECONDS = 10.0
EAGER_SECONDS = 1.0
HEADS_KEPT = 10
"""Sets of heads that evidence is kept of, those that were live last: as many releases as publishers leave on disk."""
EVENTS_KEPT = 1000
TOUCH_SECONDS = 3600.0
"""Between two signs that a replica is still there, since nothing may happen for weeks."""


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
    """Opens releases' breakers, and keeps on disk what the last ones know.

    Args:
        path: The file; what happens goes into the one beside it with the suffix `.jsonl`.
        chain: Whose promise they watch.
        warn: Called once with why the file can't be read or written, and when it can be again; serving goes on without
            it.
    """

    def __init__(self, path: Path, chain: Chain, warn: Callable[[str], None]) -> None:
        self._path = path
        self._chain = chain
        self._warn = warn
        self._warn_once = WarnOnce(warn)
        self._release = 0
        self._live: Breaker | None = None
        self._breakers: dict[str, Breaker] = {}  # by the heads they watch
        self._kept = self._read()  # by the heads it is about; what was live last is last
        self._alarm: Alarm | None = None
        self._due = 0.0
        self._journal = Journal(path.with_suffix(".jsonl"), EVENTS_KEPT)
        self._events: list[Event] = []
        self._touch_due = 0.0
        self._lock = Lock()  # releases are loaded by one thread, and written down by another
        forget(path.parent)

    def open(self, release: Release) -> Breaker:
        """A breaker for a release that goes live: it goes on from what is known of the same heads."""
        heads = self._identity(release)
        with self._lock:
            if self._live is not None and self._live.alarm != self._alarm:
                self._happened()  # it closed exits of the release before, a moment ago
            breaker = self._breakers.pop(heads, None) or self._resumed(release, heads)
            breaker.went_live()
            self._breakers[heads] = breaker
            self._breakers = dict(list(self._breakers.items())[-HEADS_KEPT:])
            self._release, self._live = release.number, breaker
            self._alarm, self._due = breaker.alarm, 0.0
            self._happened()
            return breaker

    def keep(self, *, now: bool = False) -> None:
        """Writes what has changed, if an exit has closed, or the last time is some seconds ago, or `now`."""
        with self._lock:
            self._keep(now)

    def _keep(self, now: bool) -> None:
        if self._live is None:
            return
        closed = self._live.alarm != self._alarm
        if closed:
            self._happened()
        written = self._write_down()
        if not (now or closed or time.monotonic() >= self._due):
            return
        known = self._known()
        if known != self._kept and self._written(known):
            self._kept = known
        if written and known == self._kept and self._warn_once.forget():
            self._warn(f"{self._path} is written again")
        self._alarm = self._live.alarm
        self._due = time.monotonic() + (EAGER_SECONDS if self._live.eager else KEEP_SECONDS)

    def _identity(self, release: Release) -> str:
        """What tells heads from others, whatever number they are published under.

        Their files don't: a release's number is in them. Their thresholds and the samples behind these do.
        """
        # a field that certificates did not have yet when this was written down says nothing if it has its default
        certificate = {
            field.name: value
            for field in fields(release.certificate)
            if (value := getattr(release.certificate, field.name)) != field.default
        }
        said = [release.origin, release.segments, [head.index for head in release.heads], certificate]
        digest = hashlib.sha256(json.dumps([*said, self._chain.epsilon, self._chain.delta]).encode()).hexdigest()
        return f"{release.origin}:{digest}"

    def _resumed(self, release: Release, heads: str) -> Breaker:
        """A breaker that goes on from the file."""
        promise, together = (self._chain.epsilon, self._chain.delta), release.certificate.together
        exits = release.exits
        past = self._kept.get(heads)
        others = [known for known in self._kept if known.partition(":")[0] == str(release.origin)]
        if past is None and others:
            self._warn(f"{self._path} is about another release {release.origin}: that is passed over")
            for other in others:
                del self._kept[other]
        try:
            return Breaker(*promise, exits, past, together)
        except ValueError as error:
            self._warn(f"{self._path} is damaged ({error}): what audits have found before is forgotten")
            return Breaker(*promise, exits, None, together)

    def _known(self) -> dict[str, Any]:
        """What is to be on disk, by the heads it is about."""
        known = {heads: past for heads, past in self._kept.items() if heads not in self._breakers}
        known |= {heads: breaker.state() for heads, breaker in self._breakers.items() if breaker.knows}
        return dict(list(known.items())[-HEADS_KEPT:])

    def _happened(self) -> None:
        assert self._live is not None
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append(Event(at, self._release, self._live.closed_exits, self._live.alarm))

    def _write_down(self) -> bool:
        """Writes what happened; whether that was possible."""
        try:
            while self._events:
                self._journal.add(asdict(self._events[0]))
                del self._events[0]
            if time.monotonic() >= self._touch_due:
                self._touch_due = time.monotonic() + TOUCH_SECONDS
                self._journal.touch()
            return True
        except OSError as error:
            self._not_written(error)
            return False

    def _read(self) -> dict[str, Any]:
        """What the file says, by the heads it is about."""
        try:
            fields = json.loads(self._path.read_text(encoding="utf-8"))
            if fields["format"] != FORMAT:
                raise ValueError("unknown format")
            return dict(fields["heads"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._warn(f"{self._path} can't be read ({error}): what audits have found before is forgotten")
            return {}

    def _written(self, known: dict[str, Any]) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace(self._path, json.dumps({"format": FORMAT, "heads": known}) + "\n")
            return True
        except OSError as error:
            self._not_written(error)
            return False

    def _not_written(self, error: OSError) -> None:
        self._warn_once(f"{self._path} can't be written ({error.strerror}): a restart will forget what audits found")
