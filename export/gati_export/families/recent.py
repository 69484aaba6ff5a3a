"""Ours, for near-duplicates: a memory of recent activations and what was answered to them; nothing to refresh.

A camera's frames resemble the one before. Each request that it misses leaves its key, a projection of an early
activation, and the output of the backbone, or of the later head that answered, in a ring of the orchestrator's
(`gati.inference.state`); one whose key is near enough to a remembered one is answered alike. The projection is learned
from the runs of near-duplicates among the samples: it keeps what tells scenes apart, and little of what varies within
one (Fisher's discriminant). The selector judges by the distance, by the distance of the nearest entry with another
answer, and by how far the answer was ahead of the second best, for that distance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor as Torch

from gati.inference.state import EMPTY, MEMORY_ANSWERS, MEMORY_KEYS
from gati.repository.chain import Tensor
from gati_export.families.blocks.logistic import FREE, POSITIVE, regress
from gati_export.families.blocks.pooling import VIEW, Pooling
from gati_export.families.blocks.whitening import Whitening
from gati_export.families.family import Found, Lesson, Lookup

NAME = "recent"
ENTRIES, DIMENSIONS = 64, 48
SIGNALS = 3
NEAR, FAR = 1e-5, 400.0
"""Distances are cut off here: beyond it, nothing is remembered."""
NOWHERE = float(EMPTY) / 2
"""Entries further away are empty. What is remembered can be beyond `FAR`: projections of few scenes overshoot."""
FIRMNESS = 1.0


def lookups(cut: Tensor, classes: int) -> list[Lookup]:
    """One lookup for any cut tensor with a dimension of fixed size; see `families.family.Family`."""
    return [Recent(cut, classes)]


class Recent(Lookup):
    """Answers as the nearest remembered activation was answered."""

    weight: Torch
    bias: Torch
    reach: Torch
    ahead: Torch

    def __init__(self, cut: Tensor, classes: int) -> None:
        super().__init__()
        self.name = NAME
        self.view = VIEW
        self.pooling = Pooling(cut)
        self.whitening = Whitening(self.pooling.features, DIMENSIONS)
        self.state = {MEMORY_KEYS: (ENTRIES, self.whitening.dimensions), MEMORY_ANSWERS: (ENTRIES, classes)}
        self.register_buffer("weight", torch.zeros(SIGNALS))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("reach", torch.ones(()))
        ahead = [[1.0], [-1.0]] if classes > 1 else [[0.0]]  # a single number has no second best
        self.register_buffer("ahead", torch.tensor(ahead), persistent=False)

    def reduce(self, hidden: Torch) -> Torch:
        """Pools activations [batch, ...] to [batch, features]."""
        return self.pooling(hidden)

    def learn(self, train: Lesson, tune: Lesson, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Learns the projection from the training samples' runs, and the selector from the tuning samples'."""
        features = torch.from_numpy(train.features.astype(np.float32))
        pairs = _neighbours(train.groups)
        repeats = len(tune.groups) - len(np.unique(tune.groups))  # views and extra samples are among `train` alone
        noise = features[pairs[:, 0]] - features[pairs[:, 1]] if repeats > len(tune.groups) // 20 < len(pairs) else None
        self.whitening.fit(features, noise)
        keys = self.whitening(torch.from_numpy(tune.features.astype(np.float32)))
        found, agree = _rehearse(self, keys, tune)
        if len(agree) and agree.any():
            self._fit(found, agree)

    def _fit(self, found: Torch, agree: np.ndarray) -> None:
        """Logistic regression; a signal of certainty never counts against."""
        self.reach.copy_(found[:, 0].median() / 2)
        signals = self.signals(found).double().numpy()
        scale = signals.std(0) + 1e-6
        rows = np.column_stack([signals / scale, np.ones(len(signals))])
        penalties = np.append(np.full(SIGNALS, FIRMNESS), 0)
        prior = np.append(np.full(SIGNALS, 1 / SIGNALS), 0)  # where all agree, nothing says which are surer
        weights = regress(rows, agree.astype(float), penalties, [POSITIVE] * SIGNALS + [FREE], prior)
        told = signals.any(0)  # while a single answer was known, nothing was apart: what that is worth is not known
        self.weight.copy_(torch.from_numpy(weights[:-1] / scale * told))
        self.bias.copy_(torch.tensor(weights[-1]))

    def nearest(self, keys: Torch, state: Mapping[str, Torch]) -> tuple[Torch, Torch]:
        """What is known of the nearest entry, [batch, 3], and its answer, [batch, classes].

        That is its distance, the logarithm of how many times as far the nearest with another answer is, and by how much
        its answer is ahead of the second best. While no other answer is remembered, it counts as just as far: the first
        few entries would else answer whatever comes, and a memory learns from nothing that it answers.
        """
        ring, said = state[MEMORY_KEYS], state[MEMORY_ANSWERS]
        away = torch.linalg.vector_norm(keys[:, None] - ring, dim=2)
        distance = away.clamp(NEAR, FAR)
        near = distance.amin(1, keepdim=True)
        answers = said.index_select(0, distance.argmin(1))
        others = said.argmax(1) != answers.argmax(1, keepdim=True)
        rival = torch.where(others, away, NOWHERE).amin(1, keepdim=True)
        rival = torch.where(rival < NOWHERE, rival.clamp(NEAR, FAR), near)
        apart = torch.log(rival / near).clamp(0.0, 5.0)
        return torch.cat([near, apart, answers.topk(len(self.ahead), 1).values @ self.ahead], 1), answers

    def signals(self, found: Torch) -> Torch:
        """What speaks for the nearest entry, [batch, SIGNALS], larger for surer.

        The backbone changes its mind where what has changed since outweighs the margin that its answer had. Changes
        that the key does not show are as large as usual ones: `reach`, half the distance that is usual.
        """
        near, apart, margin = found.split(1, 1)
        return torch.cat([-near, apart, margin / (near + self.reach)], 1)

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        """Answers as the nearest entry does; 0 is the score of anything while the ring is empty."""
        keys = self.whitening(features)
        found, answers = self.nearest(keys, state)
        score = torch.sigmoid(self.signals(found) @ self.weight + self.bias)
        return Found(answers, torch.where(found[:, 0] < FAR, score, 0.0), keys)


def _neighbours(groups: np.ndarray) -> np.ndarray:
    """Pairs of samples that follow one another in the same run, int64 [pairs, 2]."""
    order = np.argsort(groups, kind="stable")
    same = groups[order[1:]] == groups[order[:-1]]
    return np.stack([order[1:][same], order[:-1][same]], 1)


def _rehearse(recent: Recent, keys: Torch, tune: Lesson) -> tuple[Torch, np.ndarray]:
    """Replays samples in order, the first of each run and one in eight others being remembered.

    Returns:
        What was found, as `Recent.nearest` gives it, [n, 3], and whether it was right, bool [n].
    """
    ring = torch.full((ENTRIES, keys.shape[1]), float(EMPTY))
    said = torch.zeros(ENTRIES, tune.logits.shape[1])
    state = {MEMORY_KEYS: ring, MEMORY_ANSWERS: said}
    found, agree, place, seen, labels = [], [], 0, set(), tune.labels
    for row, group in enumerate(tune.groups.tolist()):
        if place:
            near, answer = recent.nearest(keys[row : row + 1], state)
            found.append(near)
            agree.append(int(answer.argmax()) == labels[row])
        if group not in seen or row % 8 == 0:
            ring[place % ENTRIES], said[place % ENTRIES] = keys[row], tune.logits[row]
            place += 1
            seen.add(group)
    return torch.cat(found) if found else torch.empty(0, SIGNALS), np.array(agree, bool)
