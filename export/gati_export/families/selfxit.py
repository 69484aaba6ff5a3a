"""SelfXit's exits (Abedi et al., arXiv 2209.08625): self-distilled, confident or not, their architecture searched.

An exit is trained on unlabelled traffic with the backbone's own answers, and serves when its largest softmax score
passes a threshold. Which architecture an exit gets is searched among a few depths and widths of convolutions (or of
linear layers, where there is no image), by what it agrees on and what it costs: here all of them are candidates, and
the composition takes the one that saves most time as measured on this machine.
"""

from __future__ import annotations

import math

from torch import Tensor as Torch
from torch import nn

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.families.blocks.distillation import Predictor, Schedule
from gati_export.families.blocks.layout import channel_axis, channels_first, planes
from gati_export.families.blocks.pooling import shrunk
from gati_export.families.blocks.selector import Confidence
from gati_export.families.family import Distilled

NAME = "selfxit"
SIDE = 8
"""Height and width that a plane is averaged down to first."""


def lookups(cut: Tensor, classes: int) -> list[Distilled]:
    """An exit without a hidden layer, one with a narrow and one with a wider one; see `families.family.Family`."""
    try:
        planes(cut)
        exits: dict[str, Predictor] = {f"c{width}": Exit(cut, classes, width) for width in (0, 32, 96)}
    except BackboneError:
        exits = {f"l{width}": Exit(cut, classes, width) for width in (0, 64, 256)}
    return [Distilled(f"{NAME}-{name}", f"plane{SIDE}", exit_, Confidence()) for name, exit_ in exits.items()]


class Exit(Predictor):
    """A convolution (or a linear layer) of `width` channels, none if 0, pooling, and a linear layer."""

    schedule = Schedule(epochs=15, least=400, most=3000, batch=128, peak=3e-3)

    def __init__(self, cut: Tensor, classes: int, width: int) -> None:
        super().__init__()
        self.axis = channel_axis(cut)
        channels = cut.shape[self.axis]
        self.image = len(cut.shape) == 3 and min(cut.shape) > 0
        self.shrink = max(1, math.ceil(min(planes(cut)[1:]) / SIDE)) if self.image else 1
        layers: list[nn.Module] = []
        if self.image and width:
            layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        elif width:
            layers = [nn.Linear(channels, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(width or channels, classes)

    def reduce(self, hidden: Torch) -> Torch:
        """Averages planes down to about 8×8, all else down to its channels."""
        if self.image:
            return shrunk(channels_first(hidden, self.axis), self.shrink)
        rest = tuple(axis for axis in range(1, hidden.dim()) if axis != self.axis + 1)
        return hidden.mean(rest) if rest else hidden

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features."""
        seen = self.layers(features)
        return self.last(seen.mean((2, 3)) if self.image else seen)
