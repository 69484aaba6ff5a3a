"""Label-shift correction: a distilled lookup that follows the recent mix of answers, between refreshes and for free.

If classes become rarer or more frequent but look as they did, the posterior is the old one times the ratio of new to
old frequencies (Saerens et al. 2002). The new ones are the orchestrator's `class_mix`. It lags behind traffic and is
made of answers, so it is only believed in part: something is added to every class before the ratio is taken.

That holds for posteriors, which logits give only at the right temperature (Guo et al. 2017). It is fitted with the
shift in place, and the shift is scaled by it instead of the logits, so that answers keep the backbone's scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor as Torch

from gati.inference.state import CLASS_MIX, HeadState
from gati_export.families.blocks.distillation import Predictor
from gati_export.families.blocks.selector import Learned
from gati_export.families.family import Distilled, Found, Lesson, Lookup, logits_of

FLOOR = 0.1
"""Of the mix, what is added to it, spread over all classes alike."""
TEMPERATURES = 0.1, 10.0
"""The least and the highest that is looked for."""
TELLING = 0.05
"""Nats by which the recent mix must foretell answers better than the training samples do; less is chance."""


class Adaptable(Distilled):
    """A distilled lookup with a learned selector, of which there is an adaptive one too."""

    def __init__(self, name: str, view: str, predictor: Predictor, classes: int) -> None:
        super().__init__(name, view, predictor, Learned(classes))
        self.classes = classes

    def derived(self, train: Lesson, tune: Lesson) -> list[Lookup]:
        """The adaptive one, if the mix of answers says what comes next, as it does where popular classes drift."""
        return [Adaptive(self)] if foretold(train, tune, self.classes) > TELLING else []


class Adaptive(Lookup):
    """A trained lookup whose logits are shifted by the log of how much more frequent each class is than in training."""

    prior: Torch
    temperature: Torch

    def __init__(self, base: Adaptable) -> None:
        super().__init__()
        classes = base.classes
        self.name = f"{base.name}+mix"
        self.view = base.view
        self.state = {CLASS_MIX: (classes,)}
        self.base = base
        self.selector = Learned(classes)
        self.register_buffer("prior", torch.full((classes,), 1 / classes))
        self.register_buffer("temperature", torch.ones(1))

    def reduce(self, hidden: Torch) -> Torch:
        """As the base does."""
        return self.base.reduce(hidden)

    def learn(self, train: Lesson, tune: Lesson, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Takes the prior from the training samples; fits all else to the tuning samples in their order."""
        classes = len(self.prior)
        self.prior.copy_(torch.from_numpy(np.bincount(train.labels, minlength=classes) / len(train.labels)))
        logits = logits_of(self.base.predictor, tune.features)
        with torch.no_grad():
            mixes = torch.from_numpy(mixes_before(tune.logits.numpy()))
            self.temperature.fill_(1)
            self.temperature.fill_(temperature(logits.numpy(), self.shift(mixes).numpy(), tune.labels))
            shifted = logits + self.shift(mixes)
        self.selector.fit(shifted, (shifted.argmax(1) == tune.logits.argmax(1)).numpy())

    def shift(self, mix: Torch) -> Torch:
        """What is added to the logits, [..., classes], at a mix [..., classes]."""
        floor = FLOOR / len(self.prior)
        return torch.log((mix + floor) / (self.prior + floor)) * self.temperature

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        """The base's logits, shifted, and the selector's opinion of them."""
        logits = self.base.predictor(features) + self.shift(state[CLASS_MIX])
        return Found(logits, self.selector(logits))


def temperature(logits: np.ndarray, shifts: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 at which softmax(logits / T + shifts), [n, classes], foretells labels [n] best.

    No T is believed beforehand but 1, and that as firmly as one sample is; without any, it is 1.
    """
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        return float(log_t**2 / 2 - log_softmax(logits / np.exp(log_t) + shifts, axis=1)[rows, labels].sum())

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def foretold(train: Lesson, tune: Lesson, classes: int) -> float:
    """By how many nats, on average, the recent mix foretells the tuning samples' answers better than the prior does."""
    prior = np.bincount(train.labels, minlength=classes) / len(train.labels)
    rows = np.arange(len(tune.labels)), tune.labels
    recent = mixes_before(tune.logits.numpy()) + FLOOR / classes
    return float(np.mean(np.log(recent[rows]) - np.log((prior + FLOOR / classes)[tune.labels])))


def mixes_before(answers: np.ndarray) -> np.ndarray:
    """The class mix that each of a sequence of answers, [n, classes], finds: float32 [n, classes]."""
    state = HeadState({CLASS_MIX: (answers.shape[1],)})
    mixes = np.empty(answers.shape, np.float32)
    for row in range(len(answers)):
        mixes[row] = state.feeds()[CLASS_MIX]
        state.count(answers[row : row + 1])
    return mixes
