"""Warnings that are given once: what fails mostly fails again and again, and a log should stay readable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class WarnOnce:
    """Passes warnings on, those about the same thing only once.

    Args:
        warn: Takes a warning.
        seconds: How long the same thing is not mentioned again; without end by default.
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
        """Lets all warnings be given anew; returns whether any was given."""
        given = bool(self._given)
        self._given.clear()
        return given
