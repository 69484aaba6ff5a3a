"""Costs: the time of a row that leaves at each exit, relative to that of the backbone without any lookup."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

ROUNDS, SECONDS = 5, 0.5
"""One measurement runs both ways so often, unless that takes longer than so many seconds."""
TIMES, FIRST_WAIT, SHARE = 8, 1.0, 0.05
"""Number of measurements, seconds between the first two, and the largest share of time that measuring may take. Each
wait is twice as long as the one before."""
MOST = 0.5
"""Largest share of the backbone's time that all lookups together are believed to take. Heads that take more are seldom
chosen: a higher measurement is taken for that of a busy machine."""


class Costs:
    """Measures what lookups cost. Other work disturbs a measurement, so that the least of several counts.

    For one thread, that which looks for releases.

    Args:
        shares: The share of the backbone's work that is done at each exit, in order; 1 at the last one.
        alone: Runs a row through the backbone.
        looked_up: Runs it through the backbone and all heads.
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
        """Whether it is time for another measurement."""
        return self._left > 0 and time.monotonic() >= self._next

    def measure(self) -> dict[int, float]:
        """Measures once more. Returns the time of a row by its exit ÷ its time without lookups, as known so far.

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
        """Costs by exit, if all lookups together take `lookups` of the backbone's time, and each of them the same."""
        heads = max(1, len(self._shares) - 1)
        return {
            exit_: share + lookups * min(place, heads) / heads
            for place, (exit_, share) in enumerate(self._shares.items(), 1)
        }
