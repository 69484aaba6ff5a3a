"""Back-off: what fails is tried again, ever more rarely."""

from __future__ import annotations

import time


class Backoff:
    """Waits between attempts, each twice as long as the one before.

    Args:
        first: Seconds to wait after the first failure.
    """

    def __init__(self, first: float) -> None:
        self._wait = first
        self._until = time.monotonic()

    def failed(self, longest: float) -> None:
        """Begins a wait; the next one will last twice as long, `longest` seconds at most."""
        self._until = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, longest)

    @property
    def rests(self) -> bool:
        """Whether it is too early for the next attempt."""
        return time.monotonic() < self._until
