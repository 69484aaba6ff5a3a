"""Distillation: a predictor learns the backbone's softened answers; no labels are needed.

GATI (arXiv 2101.07344) and SelfXit (arXiv 2209.08625) train their caches so too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor as Torch
from torch.nn import functional

from gati_export.predictor import Predictor

EPOCHS, PATIENCE, STEPS = 40, 5, 4000
"""Training ends after so many epochs, after so many without progress on held-out samples, or after so many steps."""
HELD_OUT = 0.15
RATE, DECAY = 1e-3, 0.05
MARGIN = 2.0
"""Logits whose best two usually lie closer than this are spread before a softmax is taken of them."""

Kind = Literal["logits", "probabilities", "log-probabilities"]


@dataclass(frozen=True)
class Scale:
    """What the numbers of a backbone's output mean, so that a head can answer in kind.

    Attributes:
        kind: Whether they are logits, probabilities, or their logarithms.
        spread: By what logits are multiplied before training: a backbone may end in cosines or sigmoids, whose softmax
            is all but flat and teaches nothing.
    """

    kind: Kind
    spread: float = 1.0

    @classmethod
    def of(cls, outputs: np.ndarray) -> Scale:
        """Recognises it by finite outputs [n, classes]."""
        wide = outputs.astype(np.float64)
        if _sums_to_one(wide):
            return cls("probabilities")
        if (wide <= 1e-3).all() and _sums_to_one(np.exp(wide)):
            return cls("log-probabilities")
        best = np.sort(wide, axis=1)[:, -2:]
        margin = float(np.median(best[:, 1] - best[:, 0]))
        return cls("logits", MARGIN / margin if 0 < margin < MARGIN else 1.0)

    def logits(self, outputs: np.ndarray) -> Torch:
        """The backbone's outputs [n, classes] as float32 logits."""
        wide = outputs.astype(np.float64)
        if self.kind == "probabilities":
            wide = np.log(np.maximum(wide, 1e-12))
        return torch.from_numpy((wide * self.spread).astype(np.float32))

    def answer(self, logits: Torch) -> Torch:
        """A head's logits [batch, classes] as the backbone would give them."""
        if self.kind == "probabilities":
            return torch.softmax(logits, 1)
        if self.kind == "log-probabilities":
            return torch.log_softmax(logits, 1)
        return logits if self.spread == 1 else logits / self.spread


def _sums_to_one(rows: np.ndarray) -> bool:
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= 1e-3).all())


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps PyTorch to one thread: batches this small gain nothing from more, and crawl where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def distil(
    predictor: Predictor,
    features: np.ndarray,
    logits: Torch,
    seed: int,
    start: Mapping[str, Torch] | None = None,
) -> None:
    """Trains a predictor to answer as the backbone does; the same seed gives the same weights.

    Args:
        predictor: Trained in place, and left in eval mode. The weights that it comes with are drawn anew.
        features: Its reduced activations, [n, ...], n ≥ 2.
        logits: The backbone's, [n, classes].
        seed: Of the order of samples and of dropout.
        start: Weights to go on from, as of an earlier predictor of the same shapes; others are not used.
    """
    inputs = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    targets = torch.softmax(logits, 1)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(inputs))
        held_out = max(1, int(HELD_OUT * len(order)))
        if start is not None and _fits(predictor, start):
            predictor.load_state_dict(dict(start))
        else:
            _draw_weights(predictor)
            predictor.adapt(inputs[order[held_out:]])
        _descend(predictor, inputs, targets, order[held_out:], order[:held_out])
    predictor.eval()


def _draw_weights(predictor: Predictor) -> None:
    """Draws them from the seed set here: those that the constructor drew came from whatever ran before."""
    for module in predictor.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _fits(predictor: Predictor, start: Mapping[str, Torch]) -> bool:
    own = predictor.state_dict()
    return own.keys() == start.keys() and all(own[name].shape == start[name].shape for name in own)


def _descend(predictor: Predictor, inputs: Torch, targets: Torch, train: Torch, held_out: Torch) -> None:
    """Trains until the held-out loss stops falling, and keeps the weights that it was lowest with."""
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=RATE, weight_decay=DECAY)
    size = 64 if len(train) < 16384 else 256
    best, kept, stale = _loss(predictor, inputs[held_out], targets[held_out]), copy.deepcopy(predictor.state_dict()), 0
    for _ in range(min(EPOCHS, max(3, STEPS * size // len(train)))):
        predictor.train()
        for batch in train[torch.randperm(len(train))].split(size):
            loss = functional.cross_entropy(predictor(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = _loss(predictor, inputs[held_out], targets[held_out])
        if now < best:
            best, kept, stale = now, copy.deepcopy(predictor.state_dict()), 0
        else:
            stale += 1
        if stale >= PATIENCE:
            break
    predictor.load_state_dict(kept)


def _loss(predictor: Predictor, inputs: Torch, targets: Torch) -> float:
    predictor.eval()
    with torch.no_grad():
        return float(functional.cross_entropy(predictor(inputs), targets))
