"""Releases that were refused, each of which is tried again, ever more rarely.

What failed may have been the machine, out of memory say, and not the release.
"""

from __future__ import annotations

import time
from collections.abc import Hashable

FIRST_WAIT, LONGEST_WAIT = 10.0, 600.0
"""Seconds between two attempts, at first and in the end: each wait is twice the one before."""


class Refusals:
    """What was refused, and how long it rests."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, float]] = {}  # since when, and how long

    def add(self, what: Hashable) -> None:
        """It was refused, perhaps once more."""
        _, before = self._known.get(what, (0.0, FIRST_WAIT / 2))
        self._known[what] = time.monotonic(), min(2 * before, LONGEST_WAIT)

    def rests(self, what: Hashable) -> bool:
        """Whether it is too early for the next attempt."""
        since, wait = self._known.get(what, (0.0, 0.0))
        return time.monotonic() < since + wait
