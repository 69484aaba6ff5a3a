"""A release as it serves."""

from __future__ import annotations

from dataclasses import dataclass, field

from gati.breaker import Breaker
from gati.bypass import Bypass
from gati.engine import Heads, Shortcuts, Stage
from gati.state import HeadState
from gati.steps import Joined


@dataclass(frozen=True)
class LiveRelease:
    """A release as it serves: the chain's stages, its heads, their state, and its breaker.

    Without any release, that is number 0: no heads, and the backbone in as few stages as can be. Its shortcuts come a
    moment after it, None until then; before that, its heads are never bypassed.
    """

    number: int
    stages: tuple[Stage, ...]
    heads: Heads | None
    state: dict[int, HeadState]
    breaker: Breaker
    shortcuts: Shortcuts | None = None
    bypass: Bypass = field(default_factory=Bypass)

    @property
    def joined(self) -> Joined | None:
        """Stages and heads as one, where there is that."""
        return self.shortcuts.joined if self.shortcuts else None

    @property
    def whole(self) -> Stage | None:
        """The backbone as one stage, where there is that."""
        return self.shortcuts.whole if self.shortcuts else None

    def whole_at(self, cut: int) -> bool:
        """Whether all rows of a batch come to a cut point: if a head before it may answer, the easy ones don't."""
        return all(head >= cut for head in self.state)
