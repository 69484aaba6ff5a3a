"""Costs: what a row takes that leaves a chain at each exit, held against what it takes where no head is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

ROUNDS, SECONDS = 5, 0.5
"""How often all is run when it is measured, as long as that takes no longer."""
TIMES, FIRST_WAIT, SHARE = 8, 1.0, 0.05
"""How often it is measured, seconds before the second time, and the share of time that this takes at most. Each wait is
twice as long as the one before."""
MOST = 0.5
"""Of the backbone's time, what all lookups together are believed to take. Heads are seldom chosen that take more, and
what a busy machine makes of it is no reason to do without them."""


class Costs:
    """Measures what lookups take, once more whenever it is asked to: others are at work meanwhile, so the least counts.

    Args:
        shares: By exit, the share of the backbone's work that is done by then, 1 at the last; in order.
        alone: Runs a row through the backbone.
        looked_up: Runs it through the backbone and all lookups.
    """

    def __init__(
        self, shares: Mapping[int, float], alone: Callable[[], object], looked_up: Callable[[], object]
    ) -> None:
        self._shares = dict(shares)
        self._ways = alone, looked_up
        self._least = [math.inf, math.inf]
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
        start = time.perf_counter()
        self._left -= 1
        try:
            for _ in range(ROUNDS):
                self._run_both()
                if time.perf_counter() > start + SECONDS:
                    break
        finally:
            self._next = time.monotonic() + max(self._wait, (time.perf_counter() - start) / SHARE)
            self._wait *= 2
        alone, looked_up = self._least
        return self._by_exit(min(max(looked_up / alone - 1, 0), MOST))

    def _run_both(self) -> None:
        for way, run in enumerate(self._ways):
            began = time.perf_counter()
            run()
            self._least[way] = min(self._least[way], time.perf_counter() - began)

    def _by_exit(self, lookups: float) -> dict[int, float]:
        """Lookups, as a share of the backbone's time, are taken to cost the same each: all of them up to an exit."""
        heads = max(1, len(self._shares) - 1)
        return {
            exit_: share + lookups * min(place, heads) / heads
            for place, (exit_, share) in enumerate(self._shares.items(), 1)
        }
