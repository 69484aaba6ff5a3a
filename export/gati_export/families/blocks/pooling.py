"""Pooling: activations of any shape reduced to a few thousand numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor as Torch
from torch.nn import functional

from gati.repository.chain import Tensor
from gati_export.families.blocks.layout import channel_axis, channels_first

VIEW = "pooled"
GRIDS = (4, 2, 1)
POOLED = 1024
"""Most values that a pooling keeps of an activation; average and maximum together keep twice as many."""


class Pooling:
    """Reduces activations [batch, *shape] to [batch, features].

    - [batch, channels, height, width]: average and maximum on a grid as fine as `POOLED` allows;
    - [batch, tokens, channels]: mean and maximum over the tokens, the first token and the last;
    - [batch, channels]: as they are;
    - more dimensions: mean and maximum over all but the channels.

    Attributes:
        features: How many numbers it keeps.
    """

    def __init__(self, cut: Tensor) -> None:
        self._axis = channel_axis(cut)
        self._sizes = tuple(size for axis, size in enumerate(cut.shape) if axis != self._axis)
        channels = cut.shape[self._axis]
        self._grid = _grid(channels, self._sizes)
        self.features = channels * {0: 1, 1: 4}.get(len(self._sizes), 2 * self._grid**2)

    def __call__(self, hidden: Torch) -> Torch:
        """Pools activations."""
        if not self._sizes:
            return hidden
        if self._grid > 1:
            kernel, stride = _windows(self._sizes, [self._grid] * 2)
            planes = channels_first(hidden, self._axis)
            pools = (functional.avg_pool2d, functional.max_pool2d)
            return torch.cat([pool(planes, kernel, stride) for pool in pools], 1).reshape(-1, self.features)
        rows, dim = (hidden.flatten(2), 2) if self._axis == 0 else (hidden.flatten(1, -2), 1)
        parts = [rows.mean(dim), rows.amax(dim)]
        if len(self._sizes) == 1:
            parts += [rows.select(dim, 0), rows.select(dim, -1)]
        return torch.cat(parts, 1)


def _grid(channels: int, sizes: Sequence[int]) -> int:
    """The finest grid that keeps at most `POOLED` values; 1 where there is none, or height or width vary."""
    if len(sizes) != 2:
        return 1
    return next((g for g in GRIDS if channels * g * g <= POOLED and g <= min(sizes)), 1)


def shrunk(planes: Torch, by: int) -> Torch:
    """Averages planes [batch, channels, h, w] down to [batch, channels, h // by, w // by], all of their pixels."""
    if by == 1:
        return planes
    sizes = planes.shape[2:]
    return functional.avg_pool2d(planes, *_windows(sizes, [size // by for size in sizes]))


def _windows(sizes: Sequence[int], grid: Sequence[int]) -> tuple[list[int], list[int]]:
    """Kernel and stride of a grid of windows that cover all of the plane; neighbours may overlap."""
    strides = [size // count for size, count in zip(sizes, grid, strict=True)]
    kernel = [size - (count - 1) * stride for size, count, stride in zip(sizes, grid, strides, strict=True)]
    return kernel, strides
