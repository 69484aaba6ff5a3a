"""The live release: what serves, as one object that is swapped as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from gati.inference.engine import Heads, Shortcuts, Stage
from gati.inference.state import HeadState
from gati.inference.steps import Joined
from gati.promise.breaker import Breaker
from gati.serving.bypass import Bypass


@dataclass(frozen=True)
class LiveRelease:
    """A release as it serves.

    Without any release this is number 0, with no heads and the backbone in as few stages as possible.

    Attributes:
        number: The release's number.
        stages: The chain's stages.
        heads: The heads; None without a release.
        state: The state of each head, by cut point.
        breaker: Closes exits when audits contradict the certificate.
        shortcuts: Faster ways through stages and heads; None until they are loaded, a moment after it goes live.
        bypass: Says when requests go past heads that do not pay.
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
        """Stages and heads in one; None if there is no such shortcut."""
        return self.shortcuts.joined if self.shortcuts else None

    @property
    def whole(self) -> Stage | None:
        """The backbone as one stage; None if there is no such shortcut."""
        return self.shortcuts.whole if self.shortcuts else None

    def whole_at(self, cut: int) -> bool:
        """Whether every row of a batch gets to a cut point: not if a head before it may answer some."""
        return all(head >= cut for head in self.state)
