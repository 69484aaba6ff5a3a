"""Which requests are drawn for an audit, and whether heads may answer them: decided before anything is known of them.

So whether a request counts does not depend on what becomes of it, and a breaker's bounds hold however it is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gati.promise.breaker import Breaker

EAGER = 25
"""How many times the usual share is drawn while the breaker is eager: a new release is soon known, and bad heads soon
found out, and else audits cost little. By default each second request is drawn: heads that differ on 2 % where 1 % is
promised close after some 1,300 requests, and 5 % are drawn of the first 20,000 to heads that differ on 0.2 %
(`scripts/simulate_audits.py`)."""
NEW = 1_000
"""Requests, one after another, after which a good release is mostly known to be good: compare times after these."""


NO_PROMISE = 1 - 1e-6
"""An ε that promises nothing, as of a chain that is made to be measured: then there is nothing to find out."""


class Chance(NamedTuple):
    """How requests are drawn: the share of them, and whether they are held, for the backbone to answer.

    `price` is what a difference found among them takes from the budget: of held ones, what others it stands for.
    """

    share: float
    held: bool
    price: float


NONE, ALL_HELD = Chance(0.0, held=False, price=0.0), Chance(1.0, held=True, price=0.0)


class Draws:
    """Draws requests from those that heads may answer.

    Args:
        share: Of them, usually, 0..1.
        epsilon: Promised share of differing answers, at most.
        busy: Whether too many audits wait already: then those drawn are held, so that bad heads are found out under any
            load, and so are heads that are wrong just when there is much to do.
    """

    def __init__(self, share: float, epsilon: float, busy: Callable[[], bool] = lambda: False) -> None:
        share = share if epsilon < NO_PROMISE else 0.0
        eager = min(1.0, EAGER * share)
        self._told = {False: Chance(share, held=False, price=1.0), True: Chance(eager, held=False, price=1.0)}
        self._held = {now: Chance(told.share, held=True, price=1 - told.share) for now, told in self._told.items()}
        self._earned = epsilon * eager
        self._busy = busy

    def chance(self, breaker: Breaker) -> Chance:
        """How requests that this breaker's heads may answer are to be drawn."""
        if not self._earned:
            return NONE
        if breaker.budget.overdrawn:
            return ALL_HELD
        return (self._held if self._busy() else self._told)[breaker.eager]

    def answered(self, breaker: Breaker, requests: int) -> None:
        """Takes in that so many requests were answered, of which some may differ."""
        if self._earned:
            breaker.budget.earn(requests * self._earned)
