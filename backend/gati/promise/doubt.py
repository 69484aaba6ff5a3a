"""Doubt about a share: how long to watch closely until it is known to be no larger than promised.

Wald's sequential probability ratio test (Annals of Mathematical Statistics 1945) of a share of ε against one of 2ε. It
ends once what was seen is 1/δ times as likely under ε, so that of shares of 2ε and more, one in 1/δ at most gets there.
That takes some 300 observations without a difference, of ε = 1 % and δ = 5 %, and more the closer the share is to ε.

It says only when enough is known to stop watching closely. Whether too much differs is for gati.promise.betting to say,
whose bounds hold at all times.
"""

from __future__ import annotations

import math

LEAST = 1 / 4
"""Part, at least, of the evidence that is to be gathered again when some stretch speaks against a release: all of it
the first time, half the next. Heads that differ on 0.9 % where 1 % may are drawn half as often so in the long run.
Those that turn bad are found as soon, if they differ on twice as much as may (`scripts/simulate_audits.py`)."""


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
        self._changes = 0  # of traffic that found it over, since it was last suspicious
        self._stretches = 0  # that spoke against what it is about
        self.begin()

    def begin(self) -> None:
        """Forgets what it was told."""
        self._told = 0.0
        self.over = False

    def narrow(self) -> None:
        """Begins anew about the heads that are left when some are closed: no stretch has spoken against these."""
        self.begin()
        self._stretches = 0

    def traffic_changed(self) -> None:
        """Takes in that other things are answered than before; the oftener that went well, the less is gathered again.

        After the n-th change that found the test over, that is 1 ÷ n of the evidence.
        """
        self._changes += self.over
        self._resume(1 / max(self._changes, 1))

    def suspect(self) -> None:
        """Takes in that some stretch speaks against the share; after the n-th, max(1 ÷ n, `LEAST`) is gathered anew."""
        self._stretches += 1
        self._resume(max(1 / self._stretches, LEAST))
        self._changes = 0

    def _resume(self, part: float) -> None:
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
