"""How the dimensions of an activation are to be read: which are channels, which space or time."""

from __future__ import annotations

from gati.chain import Tensor
from gati.errors import BackboneError

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
    """Channels, height and width of an activation [channels, height, width].

    Raises:
        BackboneError: If it is not one, or of sizes that vary.
    """
    if len(cut.shape) != 3 or channel_axis(cut) != 0 or min(cut.shape) < 1:
        raise BackboneError(f"The cut tensor {cut.name!r} is no image of a fixed size, channels first.")
    channels, height, width = cut.shape
    return channels, height, width
