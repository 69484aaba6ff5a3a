"""GATI's published heads (Balasubramanian et al., arXiv 2101.07344, section 4): FC, Pool and Conv, and its selector.

As in the authors' code: the activation is flattened; FC has a hidden layer of 1,024, Pool averages neighbours down
to 8,192 numbers before it, Conv is one filter of width and stride 5 and a linear layer. The selector is a linear
two-class classifier of the predictor's softmax scores.
"""

from __future__ import annotations

import math

from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.families.blocks.distillation import Predictor, Schedule
from gati_export.families.blocks.selector import Scores
from gati_export.families.family import Distilled, Lookup

HIDDEN, POOLED, FILTER = 1024, 8192, 5
LARGEST = 64 << 20
"""Bytes above which a variant is left out: FC behind the first block of ResNet-18 would take 268 MB, six backbones."""


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """FC, Pool and Conv, as far as they are not out of all proportion; see `families.family.Family`."""
    size = math.prod(cut.shape) if min(cut.shape) > 0 else 0
    if not size:
        raise BackboneError(f"The cut tensor {cut.name!r} varies in size, and GATI's heads need a fixed one.")
    pooled = min(size, POOLED)
    variants = {"fc": size * HIDDEN, "pool": pooled * HIDDEN, "conv": size // FILTER * classes}
    sensible = {"fc": True, "pool": pooled < size, "conv": size >= 2 * FILTER}
    return [
        Distilled(f"gati-{kind}", f"flat-{kind}", Flat(kind, size, classes), Scores(classes))
        for kind, weights in variants.items()
        if sensible[kind] and 4 * weights <= LARGEST
    ]


class Flat(Predictor):
    """One of GATI's three predictors on an activation of `size` numbers."""

    schedule = Schedule(epochs=12, least=300, most=3000, batch=64, peak=1e-3)

    def __init__(self, kind: str, size: int, classes: int) -> None:
        super().__init__()
        first = {
            "fc": lambda: [nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)],
            "pool": lambda: [nn.Linear(POOLED, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)],
            "conv": lambda: [
                nn.Conv1d(1, 1, FILTER, FILTER),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(size // FILTER, classes),
            ],
        }
        self.kind = kind
        self.size = size
        self.layers = nn.Sequential(*first[kind]())

    def reduce(self, hidden: Torch) -> Torch:
        """Flattens activations [batch, ...]; Pool averages the numbers' neighbours: [batch, features]."""
        flat = hidden.flatten(1)
        if self.kind == "conv":
            return flat.unsqueeze(1)
        if self.kind == "pool":
            window = math.ceil(self.size / POOLED)
            padded = functional.pad(flat.unsqueeze(1), (0, window * POOLED - self.size))
            return functional.avg_pool1d(padded, window).flatten(1)
        return flat

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features."""
        return self.layers(features)
