"""Costs: what a row takes that leaves a chain at each exit, held against what it takes where no head is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

ROUNDS, SECONDS = 5, 0.5
"""How often all is run when it is measured, as long as that takes no longer."""
TIMES, FIRST_WAIT, SHARE = 8, 1.0, 0.05
"""How often it is measured, seconds before the second time, and the share of time that this takes at most. Each wait is
twice as long as the one before."""


class Costs:
    """Measures, in turns, and once more whenever it is asked to: others are at work meanwhile, so the least counts.

    Args:
        exits: The exits, the backbone's last.
        apart: Runs one row through all stages and heads, and gives the seconds of each stage with its head.
        alone: Runs it through the backbone alone.
        together: Runs it through stages and heads as requests do, and gives where that ended, [(answer, exit)]; None
            where that is the same as apart. Then what is apart only tells how that is shared out among the exits.
    """

    def __init__(
        self,
        exits: Sequence[int],
        apart: Callable[[], Sequence[float]],
        alone: Callable[[], object],
        together: Callable[[], Sequence[tuple[object, int]]] | None = None,
    ) -> None:
        self._exits = list(exits)
        self._ways = apart, alone, together
        self._apart = np.full(len(exits), np.inf)
        self._alone = self._together = np.inf
        self._end = len(exits) - 1
        self._left, self._wait, self._next = TIMES, FIRST_WAIT, 0.0

    @property
    def due(self) -> bool:
        """Whether to measure once more."""
        return self._left > 0 and time.monotonic() >= self._next

    def measure(self) -> dict[int, float]:
        """What a row takes by its exit ÷ what it takes where no head is asked, as far as it is known by now.

        Raises:
            Exception: ONNX Runtime's own, if the row can't be run.
        """
        apart, alone, together = self._ways
        start = time.perf_counter()
        self._left -= 1
        for _ in range(ROUNDS):
            self._apart = np.minimum(self._apart, apart())
            began = time.perf_counter()
            alone()
            self._alone = min(self._alone, time.perf_counter() - began)
            if together is not None:
                began = time.perf_counter()
                ((_, exit_),) = together()
                self._together = min(self._together, time.perf_counter() - began)
                self._end = self._exits.index(exit_)
            if time.perf_counter() > start + SECONDS:
                break
        self._next = time.monotonic() + max(self._wait, (time.perf_counter() - start) / SHARE)
        self._wait *= 2
        reached = np.cumsum(self._apart)
        if together is not None:
            reached *= self._together / reached[self._end]
        return dict(zip(self._exits, (reached / self._alone).tolist(), strict=True))
