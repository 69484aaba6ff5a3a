"""Ours, for every kind of network: a small multilayer perceptron on pooled activations, and a learned selector."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

from gati.repository.chain import Tensor
from gati_export.families.adaptive import Adaptable
from gati_export.families.blocks.distillation import Dropout, Predictor
from gati_export.families.blocks.pooling import VIEW, Pooling
from gati_export.families.family import Lookup

NAME = "pooled"
SHOUT = 8.0
WIDTH = 128
"""Of the hidden layer."""
DROPOUT = 0.3
WEIGHTS = 1 << 17
"""Weights of a hidden layer that a head may have before its layer is made narrower: 512 KB."""


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """One lookup for any cut tensor with a dimension of fixed size; see `families.family.Family`."""
    return [Adaptable(NAME, VIEW, PooledPredictor(cut, classes), classes)]


class PooledPredictor(Predictor):
    """A small multilayer perceptron on pooled activations, standardised."""

    mean: Torch
    scale: Torch

    def __init__(self, cut: Tensor, classes: int) -> None:
        super().__init__()
        self.pooling = Pooling(cut)
        features = self.pooling.features
        width = max(WIDTH // 2, min(WIDTH, WEIGHTS // features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.layers = nn.Sequential(
            Dropout(DROPOUT / 2),
            nn.Linear(features, width),
            nn.ReLU(),
            Dropout(DROPOUT),
            nn.Linear(width, classes),
        )

    def reduce(self, hidden: Torch) -> Torch:
        """Pools activations [batch, *shape] to features [batch, features]."""
        return self.pooling(hidden)

    def adapt(self, features: Torch) -> None:
        """Standardises by the mean and deviation of features [n, features]; one that hardly varies is not blown up."""
        deviation = features.std(0, correction=0)
        floor = max(1e-3 * float(features.std(correction=0)), 1e-6)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / deviation.clamp_min(floor))

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features [batch, features]."""
        # beyond 8 deviations a feature says nothing that training has seen, and must not shout
        reach = SHOUT / self.scale
        kept = features.clamp(self.mean - reach, self.mean + reach)
        if self.training:
            return self.layers((kept - self.mean) * self.scale)
        # the same, with the standardisation inside the first layer, where it costs no operation of its own
        first = cast(nn.Linear, self.layers[1])
        weight = first.weight * self.scale
        return self.layers[2:](functional.linear(kept, weight, first.bias - weight @ self.mean))
