"""Whitening: features projected to a few directions of equal variance, in which distances mean something."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor as Torch
from torch import nn

RIDGE = 1e-3


class Whitening(nn.Module):
    """A linear map from features [batch, features] to keys [batch, dimensions]."""

    mean: Torch
    matrix: Torch

    def __init__(self, features: int, dimensions: int) -> None:
        super().__init__()
        self.dimensions = min(features, dimensions)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.zeros(features, self.dimensions))

    def fit(self, features: Torch, noise: Torch | None = None) -> Torch:
        """Fits the map to features [n, features], and returns their keys.

        Args:
            features: What is to be told apart.
            noise: Differences that don't matter, [m, features]: of two pictures of one scene, say. Directions are
                then those in which features vary most relative to them (as in Fisher's discriminant), and the
                differences have variance 1 in each.
        """
        wide = features.double().numpy()
        self.mean.copy_(features.mean(0))
        total = np.cov(wide.T)
        ridge = RIDGE * np.trace(total) / len(total) * np.eye(len(total))
        if noise is None:
            values, vectors = np.linalg.eigh(total + ridge)
            matrix = vectors[:, ::-1][:, : self.dimensions] / np.sqrt(values[::-1][: self.dimensions])
        else:
            within = np.cov(noise.double().numpy().T) + ridge
            matrix = _generalized(total, within, self.dimensions)
        self.matrix.copy_(torch.from_numpy(np.ascontiguousarray(matrix)))
        return self(features)

    def forward(self, features: Torch) -> Torch:
        """Keys of features."""
        return features @ self.matrix + -(self.mean @ self.matrix)  # an addition becomes one with the product


def _generalized(total: np.ndarray, within: np.ndarray, dimensions: int) -> np.ndarray:
    """The directions w of largest wᵀ·total·w, given wᵀ·within·w = 1."""
    from scipy.linalg import eigh

    count = len(total)
    _, vectors = eigh(total, within, subset_by_index=[count - dimensions, count - 1])
    return vectors[:, ::-1]
