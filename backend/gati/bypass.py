"""Bypass: requests go past heads that cost more than they save, as cache bypassing does (GATI drops no lookup).

Which heads pay was settled when they were composed, for traffic as it was then. Where it has become another, most
lookups miss, and each costs what it took. So what requests cost, by the exits that they leave at, is held against what
the backbone takes alone. While that is less, only some are looked up, to see when heads pay again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

REMEMBERED = 128
"""Length of the moving average, in looked-up rows."""
PERIOD, LOOKED_UP = 512, 32
"""Of so many rows, so many are looked up while heads do not pay: in a row, since memories know what came just before.
They cost a sixteenth of what lookups would."""


class Bypass:
    """Judges whether the heads of a release pay.

    Threads share it without a lock: one that is late changes nothing that matters.

    Args:
        costs: What a row takes that leaves at each exit ÷ what it takes where no head is asked (gati.costs); without
            any, heads are always asked.

    Attributes:
        cost: What a row takes now, on average, likewise. At first it is 0: new heads are given the time to show what
            they can, a few hundred rows where nothing hits.
    """

    def __init__(self, costs: Mapping[int, float] | None = None) -> None:
        self._costs = dict(costs or {})
        self.cost = 0.0
        self._credit = 0  # what rows past the heads earn, and those that are looked up spend
        self._looking = False

    @property
    def active(self) -> bool:
        """Whether heads do not pay."""
        return self.cost > 1

    def takes(self, rows: int) -> bool:
        """Whether the next rows are to go past the heads."""
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
        """Goes by these costs from now on."""
        self._costs = dict(costs)

    def saw(self, exits: Sequence[int]) -> None:
        """Takes in where rows left that were looked up."""
        if self._costs:
            for exit_ in exits:
                self.cost += (self._costs[exit_] - self.cost) / REMEMBERED
