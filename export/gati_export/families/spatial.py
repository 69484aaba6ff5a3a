"""Ours, for images: a small convolutional tower, which sees where things are; for the first cut points above all.

Early activations hold edges and textures: averaging them away leaves little to tell classes apart by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor as Torch
from torch import nn

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.families.adaptive import Adaptable
from gati_export.families.blocks.distillation import Dropout, Predictor, Schedule
from gati_export.families.blocks.integers import Integers, weights_before
from gati_export.families.blocks.layout import channel_axis, channels_first, planes
from gati_export.families.blocks.pooling import shrunk
from gati_export.families.family import Lookup

NAME = "spatial"
SIDE = 16
"""Height and width that a plane is averaged down to before anything is learned."""
VIEW = f"plane{SIDE}"
SMALLEST = 4
"""A smaller plane has no more to say than its pooled values."""
WIDTHS = (64, 96, 128)
"""Channels of the tower, from planes of 16 pixels down to those of 4."""
NARROW = WIDTHS[0]
"""Channels on planes of 4 pixels, where classes are no more: twice as many told ten classes apart no better."""
DROPOUT = 0.2
EXAMPLES = 256
"""Training samples by which numbers are rounded."""


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """One lookup for an image's cut tensor of at least 4×4; see `families.family.Family`."""
    return [Adaptable(NAME, VIEW, Tower(cut, classes), classes)]


class Tower(Predictor):
    """Convolutions and poolings down to 4×4, then the mean and maximum of each channel, and a linear layer.

    On large planes, which are early ones, the first convolution is a separable one (arXiv 1704.04861): there it costs
    few hits and spares much of a lookup's time; further on it costs more hits than it spares time.
    """

    schedule = Schedule(epochs=8, least=600, most=2400, batch=128, peak=6e-3)

    def __init__(self, cut: Tensor, classes: int) -> None:
        super().__init__()
        channels, height, width = planes(cut)
        self.axis = channel_axis(cut)
        if min(height, width) < SMALLEST:
            raise BackboneError(f"The planes of {cut.name!r} are smaller than {SMALLEST}×{SMALLEST}.")
        self.shrink = max(1, math.ceil(min(height, width) / SIDE))
        side = min(height, width) // self.shrink
        first = 0 if side > 8 else 1 if side > 4 else 2
        widths = (NARROW,) if first == 2 and classes <= NARROW else WIDTHS[first:]
        layers: list[nn.Module] = []
        if channels > widths[-1]:  # a 3×3 filter on all of them would outweigh the rest of the tower
            layers += _convolution(channels, widths[-1], 1)
            channels = widths[-1]
        if self.shrink > 1:
            layers += [*_convolution(channels, channels, 3, groups=channels), *_convolution(channels, widths[0], 1)]
        else:
            layers += _convolution(channels, widths[0], 3)
        for before, after in pairwise(widths):
            layers += [nn.MaxPool2d(2), *_convolution(before, after, 3)]
        self.layers = nn.Sequential(*layers)
        self.integers: Integers | None = None
        self.last = nn.Sequential(Dropout(DROPOUT), nn.Linear(2 * widths[-1], classes))

    def reduce(self, hidden: Torch) -> Torch:
        """Averages activations to [batch, channels, height, width] of about 16×16."""
        return shrunk(channels_first(hidden, self.axis), self.shrink)

    def going_on(self, start: Mapping[str, Torch]) -> Mapping[str, Torch]:
        """The weights that an earlier tower was trained to."""
        return weights_before(start, self.layers, "layers")

    def round(self, features: Torch) -> None:
        """Computes in integers from now on."""
        self.integers = Integers(self.layers, features[:EXAMPLES].float())

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features [batch, channels, height, width]."""
        seen = self.integers(self.layers, features) if self.integers else self.layers(features)
        return self.last(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1))


def _convolution(before: int, after: int, size: int, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, size, padding=size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]
