"""Bypass: requests go past heads that cost more than they save, as cache bypassing does (GATI drops no lookup).

Which heads pay was decided when they were composed, for traffic as it was then. When traffic changes, most lookups may
miss, and cost their time for nothing. So the average cost of requests, by the exits that they leave at, is compared
with that of the backbone alone. While the backbone is cheaper, only some requests are looked up, to see when heads pay
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

REMEMBERED = 128
"""Length of the moving average, in rows that were looked up."""
PERIOD, LOOKED_UP = 512, 32
"""While heads do not pay, so many of so many rows are looked up. They are consecutive, since memories know what came
just before. They cost a sixteenth of what all lookups would."""


class Bypass:
    """Judges whether the heads of a release pay.

    Threads share it without a lock: an update that gets lost only shifts an average, or a count of rows, a little.

    Args:
        costs: Time of a row that leaves at each exit ÷ its time without lookups (gati.inference.costs); without costs,
            heads are always asked.

    Attributes:
        cost: Average cost of a row now. It starts at 0, so that new heads have some time to show what they can: a few
            hundred rows if nothing hits.
    """

    def __init__(self, costs: Mapping[int, float] | None = None) -> None:
        self._costs = dict(costs or {})
        self.cost = 0.0
        self._credit = 0  # earned by rows that go past the heads, spent by those that are looked up
        self._looking = False

    @property
    def active(self) -> bool:
        """Whether heads do not pay now, so that most rows go past them."""
        return self.cost > 1

    def takes(self, rows: int) -> bool:
        """Decides whether the next rows are to go past the heads."""
        if not self.active:
            self._credit, self._looking = 0, False
            return False
        if self._looking:
            self._credit -= rows * (PERIOD - LOOKED_UP)
            self._looking = self._credit > 0
            return False
        self._credit += rows * LOOKED_UP
        self._looking = self._credit >= LOOKED_UP * (PERIOD - LOOKED_UP)
        return True

    def learn(self, costs: Mapping[int, float]) -> None:
        """Uses new costs from now on."""
        self._costs = dict(costs)

    def saw(self, exits: Sequence[int]) -> None:
        """Updates the average cost with the exits of rows that were looked up."""
        if self._costs:
            for exit_ in exits:
                self.cost += (self._costs[exit_] - self.cost) / REMEMBERED
