"""Freeze Inference's cache (Kumar et al., arXiv 2002.02645): nearest neighbours among reduced activations.

Activations are pooled, whitened and projected to few dimensions, and a request is answered as its neighbours were.
Two variants reduce the cache's size: `centroids` keeps the k-means centres of each answer, `knn` a sample of the
activations themselves. The softmax over negative squared distances gives the logits; its temperature, like the
selector, is fitted on samples that are not in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor as Torch
from torch.nn import functional

from gati.repository.chain import Tensor
from gati_export.families.blocks.pooling import VIEW, Pooling
from gati_export.families.blocks.selector import Learned
from gati_export.families.blocks.whitening import Whitening
from gati_export.families.family import Found, Lesson, Lookup

DIMENSIONS = 48
CENTRES, NEIGHBOURS = 24, 2048
"""Centroids of each answer, and activations kept, at most."""
TEMPERATURES = np.geomspace(0.02, 8, 24)
FLOOR = -1e4
"""The logit of an answer that nothing in the cache has."""


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """Both variants, for any cut tensor with a dimension of fixed size; see `families.family.Family`."""
    return [Nearest(kind, cut, classes) for kind in ("centroids", "knn")]


class Nearest(Lookup):
    """A cache of points, each with an answer."""

    points: Torch
    answers: Torch
    temperature: Torch

    def __init__(self, kind: str, cut: Tensor, classes: int) -> None:
        super().__init__()
        self.name = f"nearest-{kind}"
        self.view = VIEW
        self.kind = kind
        self.classes = classes
        self.pooling = Pooling(cut)
        self.whitening = Whitening(self.pooling.features, DIMENSIONS)
        self.selector = Learned(classes)
        self.register_buffer("points", torch.zeros(1, self.whitening.dimensions))
        self.register_buffer("answers", torch.zeros(1, classes))
        self.register_buffer("temperature", torch.ones(()))

    def reduce(self, hidden: Torch) -> Torch:
        """Pools activations [batch, ...] to [batch, features]."""
        return self.pooling(hidden)

    def learn(self, train: Lesson, tune: Lesson, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Fills the cache; fits temperature and selector on the tuning samples. There is no warm start."""
        keys = self.whitening.fit(torch.from_numpy(train.features.astype(np.float32)))
        chosen = self._centroids if self.kind == "centroids" else self._sample
        points, labels = chosen(keys.numpy(), train.labels, np.random.default_rng(seed))
        self.points = torch.from_numpy(points.astype(np.float32))
        self.answers = functional.one_hot(torch.from_numpy(labels), self.classes).float()
        features = torch.from_numpy(tune.features.astype(np.float32))
        agree = torch.from_numpy(tune.labels)
        losses = [float(functional.cross_entropy(self._logits(features, float(t)), agree)) for t in TEMPERATURES]
        self.temperature.fill_(TEMPERATURES[int(np.argmin(losses))])
        logits = self._logits(features, float(self.temperature))
        self.selector.fit(logits, (logits.argmax(1) == agree).numpy())

    def _centroids(self, keys: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple:
        points, answers = [], []
        for label in np.unique(labels):
            members = keys[labels == label]
            count = min(CENTRES, max(1, len(members) // 4), len(np.unique(members, axis=0)))
            centres, owner = kmeans2(members, count, minit="++", rng=rng, missing="warn")
            centres = centres[np.unique(owner)]
            points.append(centres)
            answers += [label] * len(centres)
        return np.concatenate(points), np.array(answers)

    def _sample(self, keys: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple:
        rows = rng.permutation(len(keys))[:NEIGHBOURS]
        return keys[rows], labels[rows]

    def _logits(self, features: Torch, temperature: float | Torch) -> Torch:
        """Of each answer, the log of how near its points are."""
        keys = self.whitening(features)
        near = (keys.pow(2).sum(1, keepdim=True) - 2 * keys @ self.points.T + self.points.pow(2).sum(1)) * -0.5
        near = near / temperature
        weights = torch.exp(near - near.amax(1, keepdim=True)) @ self.answers
        return torch.log(weights.clamp_min(1e-30)).clamp_min(FLOOR)

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        """Answers as the neighbours of features [batch, features] do."""
        logits = self._logits(features, self.temperature)
        return Found(logits, self.selector(logits))
