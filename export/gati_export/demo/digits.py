"""Handwritten digits as traffic: scikit-learn's 1,797 scans, of which every request shows another view.

A view is a digit, enlarged to 64×64, shifted, turned, scaled and noisy, as one camera sees an object again and again.
No view is ever repeated. The network is trained on other digits than those that requests show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

SIZE = 64
TRAINING = 700
"""Digits that the network is trained on; requests show the other 1,097."""


@dataclass(frozen=True)
class Pool:
    """Digits to take views of: scans [n, 1, 8, 8] in 0..1, and what they are, int64 [n]."""

    scans: torch.Tensor
    labels: np.ndarray


def pools(seed: int = 0) -> tuple[Pool, Pool]:
    """Two disjoint pools: for the network's training, and for requests."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    scans = torch.from_numpy(pixels[order] / 16).float().reshape(-1, 1, 8, 8)
    labels = digits[order].astype(np.int64)
    return Pool(scans[:TRAINING], labels[:TRAINING]), Pool(scans[TRAINING:], labels[TRAINING:])


def views(pool: Pool, index: np.ndarray, seed: int, size: int = SIZE) -> np.ndarray:
    """A new view of each digit named, float32 [n, 1, size, size].

    Shifts are up to 3 % of the width, turns up to 5°, scales within 4 %, brightness within 10 %, noise σ 2 %.
    """
    generator = torch.Generator().manual_seed(seed)

    def within(limit: float) -> torch.Tensor:
        return (torch.rand(len(index), generator=generator) * 2 - 1) * limit

    angle, scale = within(np.pi / 36), 1 + within(0.04)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    moves = torch.stack([torch.stack([cos, -sin, within(0.06)], 1), torch.stack([sin, cos, within(0.06)], 1)], 1)
    large = functional.interpolate(pool.scans[torch.from_numpy(index)], (size, size), mode="bicubic").clamp(0, 1)
    grid = functional.affine_grid(moves, list(large.shape), align_corners=False)
    seen = functional.grid_sample(large, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(seen.shape, generator=generator) * 0.02
    return (seen * (1 + within(0.1))[:, None, None, None] + noise).numpy()
