"""Ours, for every kind of network: a small multilayer perceptron on pooled activations, and a learned selector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

from gati.chain import Tensor
from gati_export.distillation import Dropout, Predictor
from gati_export.families.adaptive import Adaptable
from gati_export.families.family import Lookup
from gati_export.families.layout import channel_axis

NAME = VIEW = "pooled"
GRIDS = (4, 2, 1)
POOLED = 1024
"""Most values that a pooling keeps of an activation; average and maximum together keep twice as many."""
WEIGHTS = 1 << 17
"""Weights of a hidden layer that a head may have before its layer is made narrower: 512 KB."""


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """One lookup for any cut tensor with a dimension of fixed size; see `families.family.Family`."""
    return [Adaptable(NAME, VIEW, PooledPredictor(cut, classes), classes)]


class PooledPredictor(Predictor):
    """Pools activations to at most a few thousand numbers, and puts a small multilayer perceptron on them.

    - [batch, channels, height, width]: average and maximum on a grid as fine as `POOLED` allows;
    - [batch, tokens, channels]: mean and maximum over the tokens, the first token and the last;
    - [batch, channels]: as they are;
    - more dimensions: mean and maximum over all but the channels.

    Where the channels are is guessed from the sizes. A wrong guess costs hits, never correctness.
    """

    mean: Torch
    scale: Torch

    def __init__(self, cut: Tensor, classes: int, width: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.axis = channel_axis(cut)
        self.sizes = tuple(size for axis, size in enumerate(cut.shape) if axis != self.axis)
        channels = cut.shape[self.axis]
        self.grid = _grid(channels, self.sizes)
        features = channels * {0: 1, 1: 4}.get(len(self.sizes), 2 * self.grid**2)
        width = max(width // 2, min(width, WEIGHTS // features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.layers = nn.Sequential(
            Dropout(dropout / 2),
            nn.Linear(features, width),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(width, classes),
        )

    def reduce(self, hidden: Torch) -> Torch:
        """Pools activations [batch, *shape] to features [batch, features]."""
        if not self.sizes:
            return hidden
        if self.grid > 1:
            kernel, stride = _windows(self.sizes, self.grid)
            planes = hidden if self.axis == 0 else hidden.permute(0, 3, 1, 2)
            pools = (functional.avg_pool2d, functional.max_pool2d)
            return torch.cat([pool(planes, kernel, stride).flatten(1) for pool in pools], 1)
        rows, dim = (hidden.flatten(2), 2) if self.axis == 0 else (hidden.flatten(1, -2), 1)
        parts = [rows.mean(dim), rows.amax(dim)]
        if len(self.sizes) == 1:
            parts += [rows.select(dim, 0), rows.select(dim, -1)]
        return torch.cat(parts, 1)

    def adapt(self, features: Torch) -> None:
        """Standardises by the mean and deviation of features [n, features]; one that hardly varies is not blown up."""
        deviation = features.std(0, correction=0)
        floor = max(1e-3 * float(features.std(correction=0)), 1e-6)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / deviation.clamp_min(floor))

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features [batch, features]."""
        # beyond 8 deviations a feature says nothing that training has seen, and must not shout
        return self.layers(((features - self.mean) * self.scale).clamp(-8, 8))


def _grid(channels: int, sizes: Sequence[int]) -> int:
    """The finest grid that keeps at most `POOLED` values; 1 where there is none, or height or width vary."""
    if len(sizes) != 2:
        return 1
    return next((g for g in GRIDS if channels * g * g <= POOLED and g <= min(sizes)), 1)


def _windows(sizes: Sequence[int], grid: int) -> tuple[list[int], list[int]]:
    """Kernel and stride of grid×grid windows that cover all of the plane; neighbours may overlap."""
    strides = [size // grid for size in sizes]
    return [size - (grid - 1) * stride for size, stride in zip(sizes, strides, strict=True)], strides
