"""Doubt about a share: how long to watch closely until it is known to be no larger than promised.

Wald's sequential probability ratio test (Annals of Mathematical Statistics 1945) of a share of ε against one of 2ε. It
ends once what was seen is 1/δ times as likely under ε, so that of shares of 2ε and more, one in 1/δ at most gets there.
That takes some 300 observations without a difference, of ε = 1 % and δ = 5 %, and more the closer the share is to ε.

It says only when enough is known for ease. That too much differs is for gati.betting to say, which holds for all time.
"""

from __future__ import annotations

import math


class Doubt:
    """A test that goes on until it is over, and can begin anew.

    Args:
        epsilon: The share that is promised, above 0 and below 1.
        delta: Chance of ease with twice as large a share, at most.
        together: How many answers depend on one another, at least 1: so many say as much as one.
    """

    def __init__(self, epsilon: float, delta: float, together: float = 1.0) -> None:
        double = min(2 * epsilon, (1 + epsilon) / 2)
        self._agreed = math.log1p(-epsilon) - math.log1p(-double)
        self._differed = math.log(epsilon) - math.log(double)
        self._enough = -math.log(delta) * together
        self.begin()

    def begin(self) -> None:
        """Forgets what it was told."""
        self._told = 0.0
        self.over = False

    def resume(self, part: float) -> None:
        """Reopens a test, so that this part of the evidence has to be gathered again.

        No effect where more is missing already.
        """
        if self.over:
            self._told, self.over = self._enough, False
        self._told = min(self._told, (1 - part) * self._enough)

    def take(self, agreed: int, differed: int) -> None:
        """Takes in how many answers agreed, and how many did not; nothing once it is over."""
        if not self.over:
            self._told += agreed * self._agreed + differed * self._differed
            self.over = self._told >= self._enough
