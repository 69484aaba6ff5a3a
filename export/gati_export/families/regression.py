"""Regression: for backbones whose outputs are numbers and not scores of classes (agreement `within X`).

A predictor gives each number a mean and a deviation, both learned from the backbone's outputs by the likelihood of a
normal distribution (Nix and Weigend 1994). The larger the largest deviation, the less sure the head is. X it need not
know, since its threshold is chosen, and certified, by what is within X.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor as Torch

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.families import pooled, spatial
from gati_export.families.blocks.distillation import Predictor, distil
from gati_export.families.family import Found, Lesson, Lookup, predictor_weights

NAME = "regression"
LOG_VARIANCE = 12.0
"""Logarithms of variances go no further from 0: what is standardised needs no more."""


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """A pooled perceptron and, on planes, a tower; see `families.family.Family`."""
    found: list[Lookup] = [Regression(f"{NAME}-{pooled.NAME}", pooled.VIEW, pooled.PooledPredictor(cut, 2 * classes))]
    with suppress(BackboneError):  # no planes
        found.append(Regression(f"{NAME}-{spatial.NAME}", spatial.VIEW, spatial.Tower(cut, 2 * classes)))
    return found


class Normal(Predictor):
    """Means and logarithms of variances, [batch, 2 · outputs], of standardised numbers."""

    def __init__(self, inner: Predictor) -> None:
        super().__init__()
        self.inner = inner
        self.schedule = inner.schedule

    def reduce(self, hidden: Torch) -> Torch:
        """As the inner one does."""
        return self.inner.reduce(hidden)

    def adapt(self, features: Torch) -> None:
        """As the inner one does."""
        self.inner.adapt(features)

    def targets(self, logits: Torch) -> Torch:
        """The numbers themselves."""
        return logits

    def loss(self, logits: Torch, targets: Torch) -> Torch:
        """Negative log-likelihood, but for a constant."""
        mean, log_variance = split(logits)
        return 0.5 * ((targets - mean) ** 2 * torch.exp(-log_variance) + log_variance).mean()

    def forward(self, features: Torch) -> Torch:
        """Looks features [batch, features] up."""
        return self.inner(features)


class Regression(Lookup):
    """A predictor of numbers that also says how far off it may be."""

    center: Torch
    spread: Torch

    def __init__(self, name: str, view: str, inner: Predictor) -> None:
        super().__init__()
        self.name = name
        self.view = view
        self.predictor = Normal(inner)
        self.register_buffer("center", torch.zeros(1))
        self.register_buffer("spread", torch.ones(1))

    def reduce(self, hidden: Torch) -> Torch:
        """As the predictor does."""
        return self.predictor.reduce(hidden)

    def learn(self, train: Lesson, tune: Lesson, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Learns the training samples' outputs, standardised. There is no selector to be fitted."""
        self.center = train.logits.mean(0)
        self.spread = train.logits.std(0) + 1e-6 * (1 + self.center.abs())
        standard, before = (train.logits - self.center) / self.spread, predictor_weights(start)
        distil(self.predictor, train.features, standard, seed, before, tell=train.tell)

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        """The means, and a score that falls with the largest deviation."""
        mean, log_variance = split(self.predictor(features))
        deviation = torch.exp(0.5 * log_variance) * self.spread
        return Found(mean * self.spread + self.center, 1 / (1 + deviation.amax(1) / self.spread.amax(0)))


def split(found: Torch) -> tuple[Torch, Torch]:
    """Means and logarithms of variances, [batch, outputs] each."""
    mean, log_variance = found.chunk(2, 1)
    return mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
