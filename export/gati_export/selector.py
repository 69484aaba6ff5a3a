"""Selectors: how sure one can be that a predictor answers as the backbone would.

A selector is fitted on samples that the predictor was not fitted to, and judges by the predictor's logits alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

from gati_export.logistic import FREE, POSITIVE, regress

SIGNALS = 3
FIRMNESS = np.array([1.0, 30.0, 30.0])
"""Roughly, how many samples it takes to believe that a signal says something; the margin is trusted from the start.

Measured on ResNet-18 with 300 samples: with all signals free, a head serves 71.2 % before 1 % of all samples are
errors, with the margin alone 72.4 %, and so 72.5 %; few of 300 samples are errors to learn from.
"""
CLASS_FIRMNESS = 30.0
DECAY = 0.1


class Selector(nn.Module):
    """From logits [batch, classes] to scores 0..1, [batch], larger for surer."""

    def fit(self, logits: Torch, agree: np.ndarray) -> None:
        """Learns from logits of samples that the predictor has not seen, and where it was right, bool [n]."""

    def forward(self, logits: Torch) -> Torch:
        """Scores logits."""
        raise NotImplementedError


class Confidence(Selector):
    """The largest softmax score, as in SelfXit (arXiv 2209.08625)."""

    def forward(self, logits: Torch) -> Torch:
        """Scores logits."""
        return torch.softmax(logits, 1).amax(1)


class Scores(Selector):
    """GATI's selector (arXiv 2101.07344): a linear two-class classifier of the predictor's softmax scores."""

    weight: Torch
    bias: Torch

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes, 1))
        self.register_buffer("bias", torch.zeros(()))

    def fit(self, logits: Torch, agree: np.ndarray) -> None:
        """Logistic regression, with a little weight decay."""
        if not len(agree):
            return
        found = torch.softmax(logits.double(), 1).numpy()
        rows = np.column_stack([found, np.ones(len(found))])
        penalties = np.append(np.full(found.shape[1], DECAY), 0)
        weights = regress(rows, agree.astype(float), penalties, [FREE] * rows.shape[1])
        self.weight.copy_(torch.from_numpy(weights[:-1, None]))
        self.bias.copy_(torch.tensor(weights[-1]))

    def forward(self, logits: Torch) -> Torch:
        """Scores logits."""
        return torch.sigmoid((torch.softmax(logits, 1) @ self.weight).squeeze(1) + self.bias)


class Learned(Selector):
    """Ours: a logistic model of "the backbone agrees", which never falls when a signal of certainty rises."""

    weight: Torch
    bias: Torch

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(SIGNALS + 1, 1))
        self.register_buffer("bias", torch.zeros(classes, 1))

    def fit(self, logits: Torch, agree: np.ndarray) -> None:
        """Logistic regression, weights ≥ 0, with Platt's targets.

        Those are the answers smoothed by one sample of either kind, so that samples that all agree, or none, give a
        probability short of 1, or above 0, and no infinite weights. No samples give a selector that says 0.5.
        """
        if not len(agree):
            return
        found, answer = (part.numpy() for part in signals(logits.double()))
        center, scale = found.mean(0), found.std(0) + 1e-6
        weights, biases = _weigh((found - center) / scale, answer, agree, logits.shape[1])
        weights = weights / scale
        ahead, *others = weights
        self.weight.copy_(torch.tensor([[ahead], [-ahead], *([weight] for weight in others)]))
        self.bias.copy_(torch.from_numpy((biases - center @ weights)[:, None]))

    def forward(self, logits: Torch) -> Torch:
        """Estimates P(agree), in few operations: in a lookup, each costs as much as the next."""
        best, certainty, energy = _certainties(logits)
        found = torch.cat([best.values, certainty, energy], 1) @ self.weight
        return torch.sigmoid(found + functional.embedding(best.indices[:, 0], self.bias)).squeeze(1)


def signals(logits: Torch) -> tuple[Torch, Torch]:
    """What logits [batch, classes] say about their certainty, larger for surer; and the answer.

    Returns:
        [batch, SIGNALS]: how far the best class is ahead of the second, minus the entropy in nats, and the energy
        (log-sum-exp); and the best class, [batch].
    """
    best, certainty, energy = _certainties(logits)
    margin = best.values[:, :1] - best.values[:, 1:]
    return torch.cat([margin, certainty, energy], 1), best.indices[:, 0]


def _certainties(logits: Torch) -> tuple[torch.return_types.topk, Torch, Torch]:
    log_p = torch.log_softmax(logits, 1)
    return logits.topk(2, 1), (log_p.exp() * log_p).sum(1, keepdim=True), torch.logsumexp(logits, 1, keepdim=True)


def _weigh(found: np.ndarray, answer: np.ndarray, agree: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the signals, [SIGNALS], and a bias for each class, [classes]."""
    right = int(agree.sum())
    targets = np.where(agree, (right + 1) / (right + 2), 1 / (len(agree) - right + 2))
    rows = np.column_stack([found, np.ones(len(found)), np.eye(classes)[answer]])
    penalties = np.concatenate([FIRMNESS, [0], np.full(classes, CLASS_FIRMNESS)])
    x = regress(rows, targets, penalties, [POSITIVE] * SIGNALS + [FREE] * (1 + classes))
    return x[:SIGNALS], x[SIGNALS] + x[SIGNALS + 1 :]
