"""What training comes to: certified heads, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gati.release import Certificate
from gati_export.candidates import Candidate, Candidates
from gati_export.choice import Choice
from gati_export.replay import Said


@dataclass(frozen=True, eq=False)
class Judged:
    """Candidates, which of them were chosen by the tuning samples, and how all do on the calibration samples.

    Attributes:
        candidates: At least one.
        choice: What was chosen, and why.
        said: What each says to the calibration samples.
        agrees: Where that is as good as the backbone's answer, bool [n] each.
        outputs: The backbone's, [n, classes].
        earlier: What the heads said to them that training went on from, by cut point.
    """

    candidates: Candidates
    choice: Choice
    said: Sequence[Said]
    agrees: Sequence[np.ndarray]
    outputs: np.ndarray
    earlier: Mapping[int, Said] = field(default_factory=dict)

    @property
    def chosen(self) -> list[Candidate]:
        """The heads that were chosen, rising by cut point."""
        return [self.candidates.heads[place] for place in self.choice.composition.chosen]

    def refused(self, why: str) -> NoHeads:
        """That these came to nothing, which is the reason of those that were chosen, too."""
        reasons = self.choice.reasons | dict.fromkeys(self.choice.composition.chosen, why)
        return NoHeads(why, self.candidates, replace(self, choice=replace(self.choice, reasons=reasons)))


@dataclass(frozen=True, eq=False)
class Certified:
    """Heads ready to be published.

    Attributes:
        judged: The candidates, of which these were chosen.
        heads: ONNX files of the heads in use, by cut point, thresholds inside.
        certificate: What covers them together.
        seconds: Mean time of a request, on the calibration samples.
        exits: Share of these samples answered at each cut point, and last by the backbone.
        wrong: Which of them are not answered as by the backbone, bool [n].
        within: How errors come in groups, as tuning samples have it; see gati_export.groups.wrong_within.
    """

    judged: Judged
    heads: dict[int, bytes]
    certificate: Certificate
    seconds: float
    exits: tuple[float, ...]
    wrong: np.ndarray
    within: float

    @property
    def candidates(self) -> Candidates:
        """All that was tried."""
        return self.judged.candidates

    @property
    def families(self) -> dict[int, str]:
        """Names of the heads in use, by cut point."""
        return {head.cut: head.name for head in self.judged.chosen}


@dataclass(frozen=True, eq=False)
class NoHeads:
    """A chain that answers from the backbone, until a refresh has more to learn from.

    Attributes:
        why: The reason, in one sentence.
        candidates: All that was tried.
        judged: How that did; None where nothing was tried.
    """

    why: str
    candidates: Candidates
    judged: Judged | None = None


Trained = Certified | NoHeads
