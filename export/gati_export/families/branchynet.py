"""BranchyNet's branches (Teerapittayanon et al., arXiv 1709.01686): exits that serve when their entropy is low.

Their architecture is that of SelfXit's exits, and like those they are distilled, from a trained backbone: the paper
trains branches and backbone together, on labels.
"""

from __future__ import annotations

from gati.repository.chain import Tensor
from gati_export.families import selfxit
from gati_export.families.blocks.selector import Certainty
from gati_export.families.family import Distilled, Lookup

NAME = "branchynet"


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """SelfXit's exits, judged by entropy; see `families.family.Family`."""
    return [
        Distilled(exit_.name.replace(selfxit.NAME, NAME), exit_.view, exit_.predictor, Certainty())
        for exit_ in selfxit.lookups(cut, classes)
    ]
