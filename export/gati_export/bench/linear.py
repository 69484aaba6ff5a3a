"""A head as small as can be: pooled activations and one linear layer. It shows what the mechanism itself costs."""

from __future__ import annotations

from torch import Tensor as Torch
from torch import nn

from gati.repository.chain import Tensor
from gati_export.families.blocks.distillation import Predictor, Scale
from gati_export.families.blocks.pooling import VIEW, Pooling
from gati_export.families.blocks.selector import Confidence
from gati_export.families.family import Distilled
from gati_export.learning.heads import Head, head_model


class Linear(Predictor):
    """A linear layer on pooled activations; nobody trains it."""

    def __init__(self, cut: Tensor, classes: int) -> None:
        super().__init__()
        self.pooling = Pooling(cut)
        self.layer = nn.Linear(self.pooling.features, classes)

    def reduce(self, hidden: Torch) -> Torch:
        """Pools activations [batch, *shape] to features [batch, features]."""
        return self.pooling(hidden)

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features [batch, features]."""
        return self.layer(features)


def linear_head(cut: Tensor, output: Tensor) -> bytes:
    """The head's file, with a threshold that no score reaches.

    Raises:
        BackboneError: If the cut tensor has no dimension of a fixed size.
    """
    lookup = Distilled("linear", VIEW, Linear(cut, output.shape[-1]), Confidence())
    return head_model(Head(lookup, Scale("logits"), output), cut, output)
