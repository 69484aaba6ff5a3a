"""What may yet differ, an error budget: keeps answers to the promise while it is not known yet whether heads do.

A breaker takes a thousand requests and more to tell heads that differ on 2 % from such as keep to 1 %, and meanwhile
they answer. So each request adds to a budget what may differ of it, and each difference that audits find is taken from
it. While it is overdrawn the backbone answers, and every request is drawn: the breaker then learns fastest, and good
heads that had bad luck are soon back. Whatever comes, of n answers no more than ε n differ, and what the budget held,
as far as audits can tell: risk is controlled online, after Gibbs and Candès (NeurIPS 2021) and Feldman, Ringel, Bates
and Romano (TMLR 2023), by what is seen of a share of the answers.

It is counted in differences that eager audits find, so that it is coarser, and not overdrawn more often, where audits
are rarer. Usual audits are taken for eager ones: they came to be usual by evidence that little differs, and the first
that speaks against it makes them eager again.
"""

from __future__ import annotations

from threading import Lock

START = 1.5
"""What there is before the first request: heads that differ on 0.8 ε are then held up at 1 request in 200."""
MOST = 10.0
"""What good times may save up for bad ones."""


class Budget:
    """Differences that audits may find before the backbone has to answer; below 0, it does.

    Args:
        left: How many there are; as many as another had left, to go on from it.
    """

    def __init__(self, left: float = START) -> None:
        self._left = min(left, MOST)
        self._lock = Lock()

    @property
    def left(self) -> float:
        """How many there are."""
        return self._left

    def renew(self) -> None:
        """Forgives what is overdrawn: who did that answers no more."""
        with self._lock:
            self._left = max(self._left, START)

    @property
    def overdrawn(self) -> bool:
        """Whether more differs than was promised, as far as audits can tell."""
        return self._left < 0

    def earn(self, differences: float) -> None:
        """Takes in requests, in which so many differences may be found."""
        with self._lock:
            self._left = min(self._left + differences, MOST)

    def spend(self, differences: float) -> None:
        """Takes in how many were found."""
        with self._lock:
            self._left -= differences
