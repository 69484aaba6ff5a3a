"""A release as it serves."""

from __future__ import annotations

from dataclasses import dataclass

from gati.breaker import Breaker
from gati.engine import Stage
from gati.head import Heads
from gati.state import HeadState
from gati.steps import Joined


@dataclass(frozen=True)
class LiveRelease:
    """A release as it serves: the chain's stages, its heads, their state, and its breaker.

    Without any release, that is number 0: no heads, and the backbone in as few stages as can be. Joined, stages and
    heads do the same for as many rows as that takes, sooner; it comes a moment after them, where it can be had.
    """

    number: int
    stages: tuple[Stage, ...]
    heads: Heads | None
    state: dict[int, HeadState]
    breaker: Breaker
    joined: Joined | None = None

    def whole_at(self, cut: int) -> bool:
        """Whether all rows of a batch come to a cut point: if a head before it may answer, the easy ones don't."""
        return all(head >= cut for head in self.state)
