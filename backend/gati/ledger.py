"""The breaker's evidence on disk, so that a restart neither forgets what audits found nor opens what they closed.

One small file a replica, in the workspace: `DIR.gati/breaker/MODEL/REPLICA.json`. It is written beside, fsynced and
renamed, at once when an exit closes, and else every few seconds: what a kill can cost is the evidence of these.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gati.breaker import Alarm, Breaker
from gati.chain import Chain
from gati.release import Release

FORMAT = 1
KEEP_SECONDS = 10.0


class Ledger:
    """Opens releases' breakers, and keeps on disk what the last one knows.

    Args:
        path: The file.
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
        return self._breaker

    def keep(self, *, now: bool = False) -> None:
        """Writes what has changed, if an exit has closed, or the last time is some seconds ago, or `now`."""
        if self._breaker is None:
            return
        closed = self._breaker.alarm != self._alarm
        if not (now or closed or time.monotonic() >= self._due):
            return
        state = self._breaker.state()
        if state != self._kept and self._written(self._about | state):
            self._kept = state
        self._alarm, self._due = self._breaker.alarm, time.monotonic() + KEEP_SECONDS

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
        beside = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
            return True
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._warn(f"{self._path} can't be written ({error.strerror}): a restart will forget what audits found")
            return False
