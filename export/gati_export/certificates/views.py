"""Views: shifted and mirrored copies of images to train on, where samples are few.

Heads learn the backbone's own answers, so a view needs no label: the backbone is asked about it. A view that is unlike
any traffic (a mirrored word, say) is answered honestly and costs a head little; tuning and calibration never see one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gati.repository.chain import Tensor
from gati_export.certificates.splitting import Split

MOST = 9
"""Views of each sample, at most."""
MOST_BYTES = 2 << 30
"""Of all views together, at most: they lie in memory while heads learn, and an export or a refresh is to fit into the
8 GiB of a small machine, beside samples and activations. 174,000 pictures of 32×32 in floats, 3,500 of 224×224."""
REACH = 8
"""A view is shifted by up to one part in so many of its height and width."""
COLOURS = (3, 4)


class ImageAxes(NamedTuple):
    """Which axes of a batch of images are which; axis 0 is the batch."""

    channels: int
    height: int
    width: int


def with_views(
    inputs: Sequence[Tensor], samples: Mapping[str, np.ndarray], split: Split, enough: int, seed: int
) -> tuple[Mapping[str, np.ndarray], Split]:
    """Adds views of the training samples to the training part, where the model's one input is an image.

    Args:
        inputs: The model's.
        samples: By name, [n, ...].
        split: Their parts.
        enough: Training samples to aim at, views included.
        seed: Of how they are shifted and mirrored.

    Returns:
        All samples, the views last, and their parts; what was given, where the input is no image. Views take
        `MOST_BYTES` at most, and memory holds each once.
    """
    axes = image_axes(inputs)
    count = min(MOST * len(split.train), enough - len(split.train))
    if axes is None or count <= 0 or not len(split.train):
        return samples, split
    (name, images), random = next(iter(samples.items())), np.random.default_rng(seed)
    count = min(count, MOST_BYTES // images[0].nbytes)
    mirrored = images.shape[axes.channels] in COLOURS  # grey pictures are often writing
    both = np.empty((len(images) + count, *images.shape[1:]), images.dtype)
    both[: len(images)] = images
    for place, row in enumerate(np.resize(split.train, count), len(images)):
        both[place] = _view(images[row], (axes.height - 1, axes.width - 1), mirrored, random)
    return {name: both}, split.grown(count)


def image_axes(inputs: Sequence[Tensor]) -> ImageAxes | None:
    """The axes of the model's one input; None if it is no image."""
    if len(inputs) != 1 or len(inputs[0].shape) != 3 or inputs[0].numpy.kind not in "fu":
        return None
    first, second, last = inputs[0].shape
    if first in (1, *COLOURS) and min(second, last) >= REACH:
        return ImageAxes(channels=1, height=2, width=3)
    if last in (1, *COLOURS) and min(first, second) >= REACH:
        return ImageAxes(channels=3, height=1, width=2)
    return None


def _view(image: np.ndarray, axes: tuple[int, int], mirrored: bool, random: np.random.Generator) -> np.ndarray:
    """Mirrors an image [...] half of the time, if asked, and shifts it; what moves in at an edge is a reflection.

    Args:
        image: Without a batch axis.
        axes: Of its height and its width.
        mirrored: Whether it may be mirrored.
        random: Decides both.
    """
    if mirrored and random.random() < 0.5:
        image = np.flip(image, axes[1])
    for axis in axes:
        size = image.shape[axis]
        reach = max(1, size // REACH)
        offset = int(random.integers(0, 2 * reach + 1))
        widths = [(reach, reach) if each == axis else (0, 0) for each in range(image.ndim)]
        image = np.pad(image, widths, mode="reflect").take(range(offset, offset + size), axis)
    return image
