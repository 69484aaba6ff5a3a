"""Closes a release's heads when audits show that its promise no longer holds.

A test martingale (betting on the mean of a bounded variable: Waudby-Smith and Ramdas, JRSS-B 2024, section 4): while
the share of differing answers is at most ε, the stake's expectation never grows, so by Ville's inequality the chance
that it ever reaches 1/δ is at most δ, however often it is looked at.
"""

from __future__ import annotations

import math
from threading import Lock

BETS = (0.02, 0.1, 0.3)
"""Shares of the largest admissible bet, 1/ε; the stake is the mean over them."""


class Breaker:
    """Watches one release; once open, it stays open.

    Args:
        epsilon: Promised share of differing answers, at most.
        delta: Chance of a false alarm, at most.
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        self._epsilon = epsilon
        self._bets = [bet / epsilon for bet in BETS]
        self._stakes = [0.0] * len(BETS)
        self._limit = math.log(len(BETS) / delta)
        self._lock = Lock()
        self.open = False

    def observe(self, differs: bool) -> None:
        """Takes in one request, drawn at random among all that the release served, hits and misses alike."""
        with self._lock:
            for i, bet in enumerate(self._bets):
                self._stakes[i] += math.log1p(bet * (differs - self._epsilon))
            top = max(self._stakes)
            total = top + math.log(sum(math.exp(stake - top) for stake in self._stakes))
            self.open = self.open or total >= self._limit
