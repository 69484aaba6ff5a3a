"""Encoded images, as a model's input: what `--image` says about size, channels and normalisation."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gati.errors import SamplesError
from gati.imports import import_callable

Decode = Callable[[bytes], np.ndarray]
"""From one encoded image to one row of the model's input, without the batch dimension."""

EXAMPLE = '"32x32 rgb mean=0.49,0.48,0.45 std=0.25,0.24,0.26"'


@dataclass(frozen=True)
class ImageDecode:
    """Decodes with Pillow, resizes (bilinear, antialiased) where asked, scales to 0..1, then normalises.

    Attributes:
        size: Width and height in pixels, or None to leave them as they are.
        gray: One channel of luminance instead of red, green and blue.
        mean: Subtracted after scaling: one value, or one a channel.
        std: Divided by afterwards, likewise.
        channels_last: Give [height, width, channels] instead of [channels, height, width].
    """

    size: tuple[int, int] | None = None
    gray: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels_last: bool = False

    def __call__(self, encoded: bytes) -> np.ndarray:
        """Gives one image as float32, [channels, height, width] or [height, width, channels]."""
        image = Image.open(io.BytesIO(encoded)).convert("L" if self.gray else "RGB")
        if self.size is not None and image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / np.float32(255)
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return pixels if self.channels_last else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def parse_decode(option: str) -> Decode:
    """Reads the option `--image`.

    Args:
        option: Words in any order: `WIDTHxHEIGHT`, `rgb` (default) or `gray`, `chw` (default) or `hwc`, `mean=…`
            and `std=…` with one number or one a channel; or `package.module:function`, a callable from
            encoded bytes to an array.

    Raises:
        SamplesError: If a word is unknown, or the numbers don't fit the channels.
    """
    if re.fullmatch(r"[\w.]+:[\w.]+", option.strip()):
        return import_callable(option.strip(), SamplesError)
    size, mean, std = None, (0.0,), (1.0,)
    flags: set[str] = set()
    for word in option.split():
        if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word):
            size = (int(match[1]), int(match[2]))
        elif word in ("rgb", "gray", "chw", "hwc"):
            flags.add(word)
        elif word.startswith("mean="):
            mean = _numbers(word)
        elif word.startswith("std="):
            std = _numbers(word)
        else:
            raise SamplesError(f"--image does not know the word {word!r}; write it like {EXAMPLE}.")
    if {"rgb", "gray"} <= flags or {"chw", "hwc"} <= flags:
        raise SamplesError("--image takes one of rgb and gray, and one of chw and hwc.")
    channels = 1 if "gray" in flags else 3
    if {len(mean), len(std)} - {1, channels}:
        raise SamplesError(f"--image takes one number for mean and for std, or {channels}: one a channel.")
    if not np.isfinite((*mean, *std)).all() or min(std) <= 0:
        raise SamplesError("--image takes finite numbers for mean, and positive ones for std.")
    return ImageDecode(size, "gray" in flags, mean, std, "hwc" in flags)


def _numbers(word: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in word.partition("=")[2].split(","))
    except ValueError as error:
        raise SamplesError(f"--image can't read {word!r} as numbers; write it like {EXAMPLE}.") from error
