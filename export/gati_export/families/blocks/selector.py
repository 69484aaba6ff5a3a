"""Selectors: how sure one can be that a predictor answers as the backbone would.

A selector is fitted on samples that the predictor was not fitted to, and judges by the predictor's logits alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

from gati_export.families.blocks.logistic import FREE, POSITIVE, platt_targets, regress

FIRMNESS = 1.0
CLASS_FIRMNESS = 30.0
"""Roughly, how many samples it takes to believe in a margin's weight, and that answers of one class are surer."""
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


class Certainty(Selector):
    """Low entropy of the softmax scores, as in BranchyNet (arXiv 1709.01686): 1 is none, 0 the most there can be."""

    def forward(self, logits: Torch) -> Torch:
        """Scores logits."""
        log_p = torch.log_softmax(logits, 1)
        return 1 + (log_p.exp() * log_p).sum(1) / math.log(max(logits.shape[1], 2))


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
    """Ours: a logistic model of "the backbone agrees", by how far the best class is ahead and which it is.

    Each operation has its price in a lookup, whatever it does: there are as few as can be. Entropy and energy were
    tried, and said nothing that the margin does not.
    """

    weight: Torch
    bias: Torch

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(4))
        self.register_buffer("bias", torch.zeros(classes, 1))

    def fit(self, logits: Torch, agree: np.ndarray) -> None:
        """Logistic regression, the margin's weight ≥ 0, with Platt's targets.

        Samples that all agree, or none, say nothing of what tells right from wrong: that a wider margin does is
        believed beforehand. No samples give a selector that says 0.5.
        """
        if not len(agree):
            return
        best = logits.double().topk(2, 1)
        margin = (best.values[:, 0] - best.values[:, 1]).numpy()
        center, scale = margin.mean(), max(margin.std(), margin.mean() / 10) + 1e-6
        weight, biases = _weigh((margin - center) / scale, best.indices[:, 0].numpy(), agree, logits.shape[1])
        weight /= scale
        self.weight.copy_(torch.tensor([weight, -weight, 1, 0]))
        self.bias.copy_(torch.from_numpy((biases - center * weight)[:, None]))

    def forward(self, logits: Torch) -> Torch:
        """Estimates P(agree)."""
        best = logits.topk(2, 1)
        biases = functional.embedding(best.indices, self.bias).reshape(-1, 2)
        return torch.sigmoid(torch.cat([best.values, biases], 1) @ self.weight)


def _weigh(margin: np.ndarray, answer: np.ndarray, agree: np.ndarray, classes: int) -> tuple[float, np.ndarray]:
    """The weight of the margin, and a bias for each class, [classes]."""
    seen, place = np.unique(answer, return_inverse=True)  # of others nothing is known, and there may be many thousands
    rows = np.column_stack([margin, np.ones(len(margin)), np.eye(len(seen))[place]])
    penalties = np.concatenate([[FIRMNESS, 0], np.full(len(seen), CLASS_FIRMNESS)])
    prior = np.eye(2 + len(seen))[0]
    x = regress(rows, platt_targets(agree), penalties, [POSITIVE] + [FREE] * (1 + len(seen)), prior)
    biases = np.full(classes, x[1])
    biases[seen] += x[2:]
    return float(x[0]), biases
