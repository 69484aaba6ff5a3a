"""Warnings that are given once: what fails once mostly fails again and again, and a log should stay readable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class WarnOnce:
    """Passes warnings on, those about the same thing only once.

    Threads may share it without a lock: at worst, two that warn at the same moment both get through.

    Args:
        warn: Called with each warning that gets through.
        seconds: How long nothing more is said about the same thing; for ever by default.
    """

    def __init__(self, warn: Callable[[str], None], seconds: float = math.inf) -> None:
        self._warn = warn
        self._seconds = seconds
        self._given: dict[str, float] = {}

    def __call__(self, message: str, about: str = "") -> None:
        """Gives a warning, unless one about the same thing was given before."""
        given, now = self._given.get(about), time.monotonic()
        if given is None or now - given > self._seconds:
            self._given[about] = now
            self._warn(message)

    def forget(self) -> bool:
        """Lets every warning be given once more; returns whether any had been given."""
        given = bool(self._given)
        self._given.clear()
        return given
