"""The result of training: certified heads, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gati.repository.release import Certificate
from gati_export.composition.replay import Said
from gati_export.learning.candidates import Candidate, Candidates
from gati_export.learning.choice import Choice


@dataclass(frozen=True, eq=False)
class Judged:
    """Candidates, which of them were chosen by the tuning samples, and how all do on the calibration samples.

    Attributes:
        candidates: At least one.
        choice: Which were chosen, and why.
        said: Each candidate's scores and answers on the calibration samples.
        agrees: Where these answers agree with the backbone's, bool [n] each.
        outputs: The backbone's outputs, [n, classes].
        earlier: The same as `said`, of the heads that training went on from, by cut point.
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
        """The result if none of them can be used; `why` is also noted as the reason of those that were chosen."""
        reasons = self.choice.reasons | dict.fromkeys(self.choice.composition.chosen, why)
        return NoHeads(why, self.candidates, replace(self, choice=replace(self.choice, reasons=reasons)))


@dataclass(frozen=True, eq=False)
class Certified:
    """Heads ready to be published.

    Attributes:
        judged: The candidates, of which these were chosen.
        heads: ONNX files of the heads in use, with their thresholds, by cut point.
        certificate: The certificate that covers them together.
        seconds: Mean time of a request, on the calibration samples.
        exits: Share of these samples answered at each cut point, and last by the backbone.
        wrong: Which calibration samples are answered otherwise than by the backbone, bool [n].
        within: How errors cluster within groups, by the tuning samples; see
            gati_export.certificates.groups.wrong_within.
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
        """All heads that were tried."""
        return self.judged.candidates

    @property
    def families(self) -> dict[int, str]:
        """Names of the heads in use, by cut point."""
        return {head.cut: head.name for head in self.judged.chosen}


@dataclass(frozen=True, eq=False)
class NoHeads:
    """No heads: the backbone answers all requests, until a refresh has more samples to learn from.

    Attributes:
        why: The reason, in one sentence.
        candidates: All heads that were tried.
        judged: How these did; None if none was tried.
    """

    why: str
    candidates: Candidates
    judged: Judged | None = None


Trained = Certified | NoHeads
