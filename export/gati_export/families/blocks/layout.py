"""How the dimensions of an activation are to be read: which are channels, which space or time."""

from __future__ import annotations

from torch import Tensor as Torch

from gati.errors import BackboneError
from gati.repository.chain import Tensor

LONG = 8192
"""A last dimension longer than this is taken for time or space, not for channels."""


def channel_axis(cut: Tensor) -> int:
    """Which axis of an activation, its batch dimension left out, holds the channels: the first or the last.

    It is guessed from the sizes. A wrong guess costs hits, never correctness.

    Raises:
        BackboneError: If neither has a fixed size.
    """
    first, last = cut.shape[0], cut.shape[-1]
    if max(first, last) < 1:
        raise BackboneError(f"The cut tensor {cut.name!r} has no dimension of a fixed size, so no head fits it.")
    end = len(cut.shape) - 1
    if min(first, last) < 1:
        return 0 if last < 1 else end
    if len(cut.shape) == 2:  # tokens come first, unless it is a long signal with few channels
        return 0 if last > LONG and first < last else end
    return end if len(cut.shape) == 3 and first == cut.shape[1] != last else 0


def planes(cut: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of an image's activation, which has the channels first or last.

    Raises:
        BackboneError: If it is none, or of sizes that vary.
    """
    if len(cut.shape) != 3 or min(cut.shape) < 1:
        raise BackboneError(f"The cut tensor {cut.name!r} is no image of a fixed size.")
    axis = channel_axis(cut)
    height, width = (size for at, size in enumerate(cut.shape) if at != axis)
    return cut.shape[axis], height, width


def channels_first(hidden: Torch, axis: int) -> Torch:
    """Images [batch, ...], whose channels are at this axis of a row, as [batch, channels, height, width]."""
    return hidden if axis == 0 else hidden.permute(0, 3, 1, 2)
