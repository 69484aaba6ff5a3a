"""The ledger: breakers' evidence on disk, so that no restart or rollback forgets what audits found, or opens exits.

A release that goes back to earlier heads (`Release.origin`) goes on from what audits found of these.

There is one small file for each replica, in the workspace: `DIR.gati/breaker/MODEL/REPLICA.json`. It is written
atomically: at once when an exit closes, and else every few seconds, or every second while the breaker is eager. A kill
costs the evidence since then.

Events are written beside it, in `REPLICA.jsonl`: a line whenever a release goes live or an exit closes. The events of
replicas that are long gone are removed. Their evidence is not: a replica that comes back after weeks goes on from it.
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

from gati.promise.breaker import Alarm, Breaker
from gati.repository.chain import Chain
from gati.repository.release import Release
from gati.system.files import replace
from gati.system.journal import Journal, forget
from gati.system.warn_once import WarnOnce

FORMAT = 2
KEEP_SECONDS = 10.0
EAGER_SECONDS = 1.0
HEADS_KEPT = 10
"""How many sets of heads evidence is kept of, the last live ones: as many as releases that publishers keep on disk."""
EVENTS_KEPT = 1000
TOUCH_SECONDS = 3600.0
"""Time between two marks that the events of a replica are still in use, since nothing may happen for weeks."""


@dataclass(frozen=True)
class Event:
    """A release went live, perhaps at a restart of the server, or exits closed.

    Attributes:
        at: When, ISO 8601.
        release: The live release.
        closed: The exits that are closed from now on.
        alarm: Why they are closed; None if none is.
    """

    at: str
    release: int
    closed: tuple[int, ...]
    alarm: Alarm | None


class Ledger:
    """Opens the breakers of releases, and keeps the evidence of the last ones on disk.

    `_lock` guards all of it: one thread loads releases, and another writes their evidence down.

    Args:
        path: The file of the evidence; events go into the one beside it with the suffix `.jsonl`.
        chain: The chain whose promise the breakers watch.
        warn: Called once with why a file can't be read or written, and when it can be again; serving goes on without
            it.
    """

    def __init__(self, path: Path, chain: Chain, warn: Callable[[str], None]) -> None:
        self._path = path
        self._chain = chain
        self._warn = warn
        self._warn_once = WarnOnce(warn)
        self._release = 0
        self._live: Breaker | None = None
        self._breakers: dict[str, Breaker] = {}  # by the identity of their heads; the last live one is last
        self._kept = self._read()  # what is on disk, likewise
        self._alarm: Alarm | None = None
        self._due = 0.0
        self._journal = Journal(path.with_suffix(".jsonl"), EVENTS_KEPT)
        self._events: list[Event] = []
        self._touch_due = 0.0
        self._lock = Lock()
        forget(path.parent)

    def open(self, release: Release) -> Breaker:
        """The breaker for a release that goes live, with the evidence that there is about the same heads."""
        heads = self._identity(release)
        with self._lock:
            if self._live is not None and self._live.alarm != self._alarm:
                self._happened()  # exits of the release before closed a moment ago
            breaker = self._breakers.pop(heads, None) or self._resumed(release, heads)
            breaker.went_live()
            self._breakers[heads] = breaker
            self._breakers = dict(list(self._breakers.items())[-HEADS_KEPT:])
            self._release, self._live = release.number, breaker
            self._alarm, self._due = breaker.alarm, 0.0
            self._happened()
            return breaker

    def keep(self, *, now: bool = False) -> None:
        """Writes what has changed: if an exit has closed, if the last time is some seconds ago, or `now`."""
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
        """Identifies heads, under whatever number they are published.

        Their files do not: a release's number is in them. Their certificate does, by its thresholds and its samples.
        """
        # without fields that have their defaults: evidence may be older than such a field
        certificate = {
            field.name: value
            for field in fields(release.certificate)
            if (value := getattr(release.certificate, field.name)) != field.default
        }
        said = [release.origin, release.segments, [head.index for head in release.heads], certificate]
        digest = hashlib.sha256(json.dumps([*said, self._chain.epsilon, self._chain.delta]).encode()).hexdigest()
        return f"{release.origin}:{digest}"

    def _resumed(self, release: Release, heads: str) -> Breaker:
        """A breaker with the evidence that is on disk, if there is any."""
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
        """What is to be on disk, by the identity of the heads."""
        known = {heads: past for heads, past in self._kept.items() if heads not in self._breakers}
        known |= {heads: breaker.state() for heads, breaker in self._breakers.items() if breaker.knows}
        return dict(list(known.items())[-HEADS_KEPT:])

    def _happened(self) -> None:
        """Queues an event of the live release, to be written by the next `keep`."""
        assert self._live is not None
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append(Event(at, self._release, self._live.closed_exits, self._live.alarm))

    def _write_down(self) -> bool:
        """Writes events that wait, and returns whether it could; those that can't be written wait for the next time."""
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
        """What is on disk, by the identity of the heads."""
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
