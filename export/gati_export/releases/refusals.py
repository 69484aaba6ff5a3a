"""Releases that were refused, each of which is tried again, ever more rarely.

What failed may have been the machine, out of memory say, and not the release.
"""

from __future__ import annotations

from collections.abc import Hashable

from gati.system.backoff import Backoff

FIRST_WAIT, LONGEST_WAIT = 10.0, 600.0
"""Seconds between two attempts, at first and in the end: each wait is twice the one before."""


class Refusals:
    """What was refused, and how long it rests."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Backoff] = {}

    def add(self, what: Hashable) -> None:
        """It was refused, perhaps once more."""
        self._known.setdefault(what, Backoff(FIRST_WAIT)).failed(LONGEST_WAIT)

    def rests(self, what: Hashable) -> bool:
        """Whether it is too early for the next attempt."""
        return what in self._known and self._known[what].rests
