"""Distillation: a predictor learns the backbone's softened answers; no labels are needed.

GATI (arXiv 2101.07344) and SelfXit (arXiv 2209.08625) train their caches so too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import torch
from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

EPOCHS, PATIENCE, STEPS = 40, 5, 4000
"""Training ends after so many epochs, after so many without progress on held-out samples, or after so many steps."""
HELD_OUT = 0.15
RATE, DECAY, CYCLE_DECAY = 1e-3, 0.05, 0.02
DRAWING = Lock()
MARGIN = 2.0
"""Logits whose best two usually lie closer than this are spread before a softmax is taken of them."""

COUNTER = "num_batches_tracked"

Kind = Literal["logits", "probabilities", "log-probabilities"]


@dataclass(frozen=True)
class Schedule:
    """How a predictor that is more than a perceptron is trained: one cycle of the learning rate (arXiv 1708.07120).

    Attributes:
        epochs: Passes over the samples, as long as that makes neither fewer steps than `least` nor more than `most`.
        least: Steps at least.
        most: Steps at most.
        batch: Samples a step.
        peak: Largest learning rate.
    """

    epochs: int
    least: int
    most: int
    batch: int
    peak: float

    def steps(self, samples: int) -> int:
        """How many steps a training on so many samples takes."""
        return min(max(self.epochs * samples // self.batch, self.least), self.most)


class Dropout(nn.Module):
    """Dropout with a generator of its own, so that heads can be trained side by side and still be reproducible."""

    random: torch.Generator | None = None

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Torch) -> Torch:
        """Leaves out numbers at random in training, and none afterwards."""
        if not self.training:
            return features
        kept = torch.rand(features.shape, generator=self.random) >= self.share
        return features * kept / (1 - self.share)


class Predictor(nn.Module):
    """From hidden activations to logits over the backbone's classes, in two steps.

    Both must map every row by itself, take any batch, and be exportable to ONNX.

    Attributes:
        schedule: How to train it; without one, it is trained until held-out samples say that it is done.
    """

    schedule: Schedule | None = None

    def reduce(self, hidden: Torch) -> Torch:
        """Reduces activations, float32 [batch, ...], to features [batch, ...]; see `families.family.Lookup.reduce`."""
        raise NotImplementedError

    def adapt(self, features: Torch) -> None:
        """Sees the training features [n, ...] once before training: to standardise them, say.

        They are float32, or as they are kept, float16 perhaps, where there is a schedule.
        """

    def going_on(self, start: Mapping[str, Torch]) -> Mapping[str, Torch]:
        """The weights to go on from, of the numbers that an earlier predictor's file holds, by name."""
        return start

    def round(self, features: Torch) -> None:
        """Sees training features once after training, as `adapt` does before: to compute in integers, if it can.

        That is asked of those that are to be run on a processor.
        """

    def targets(self, logits: Torch) -> Torch:
        """What is to be learned of the backbone's logits [n, classes]: softened answers."""
        return torch.softmax(logits, 1)

    def loss(self, logits: Torch, targets: Torch) -> Torch:
        """How far logits [batch, classes] are from their targets."""
        return functional.cross_entropy(logits, targets)

    def forward(self, features: Torch) -> Torch:
        """Logits [batch, classes] from features."""
        raise NotImplementedError


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
        return self.logits_of(torch.from_numpy(outputs.astype(np.float64))).float()

    def logits_of(self, outputs: Torch) -> Torch:
        """The same of a tensor, inside a head."""
        if self.kind == "probabilities":
            return torch.log(outputs.clamp_min(1e-12))
        return outputs if self.spread == 1 else outputs * self.spread

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
def torch_threads(count: int) -> Iterator[None]:
    """Sets how many threads PyTorch uses: small matrices gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
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
    *,
    integers: bool = False,
    tell: Callable[[float], None] = lambda _: None,
) -> None:
    """Trains a predictor to answer as the backbone does; the same seed gives the same weights.

    Args:
        predictor: Trained in place, and left in eval mode. The weights that it comes with are drawn anew.
        features: Its reduced activations, [n, ...], n ≥ 2; of any float type.
        logits: The backbone's, [n, classes].
        seed: Of the order of samples and of dropout.
        start: Weights to go on from, as of an earlier predictor of the same shapes; others are not used.
        integers: Whether it may compute in integers afterwards.
        tell: Told at each step which share of the training is done, at least; what it raises ends that.
    """
    inputs = torch.from_numpy(np.ascontiguousarray(features))
    targets = predictor.targets(logits)
    schedule = predictor.schedule
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=random)
    held_out = 0 if schedule else max(1, int(HELD_OUT * len(order)))
    start = None if start is None else predictor.going_on(start)
    warm = start is not None and _fits(predictor, start)
    if start is not None and warm:
        predictor.load_state_dict(dict(start), strict=False)
    else:
        _draw_weights(predictor, seed)
        # planes, which a schedule is for, are not copied: those of one cut point may be gigabytes
        predictor.adapt(inputs if schedule else inputs[order[held_out:]].float())
    for module in predictor.modules():
        if isinstance(module, Dropout):
            module.random = random
    if schedule:
        _cycle(predictor, inputs, targets, schedule, warm, random, tell)
    else:
        _descend(predictor, inputs.float(), targets, order[held_out:], order[:held_out], random, tell)
    predictor.eval()
    if integers:
        predictor.round(inputs)


def _cycle(
    predictor: Predictor,
    inputs: Torch,
    targets: Torch,
    schedule: Schedule,
    warm: bool,
    random: torch.Generator,
    tell: Callable[[float], None],
) -> None:
    """Trains for a set number of steps; a warm start takes a third of them, at a third of the rate.

    Where the processor multiplies bfloat16, products are taken in it: four times as fast, and no worse.
    """
    steps = schedule.steps(len(inputs)) // (3 if warm else 1)
    peak = schedule.peak / (3 if warm else 1)
    size = min(schedule.batch, len(inputs))
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=peak, weight_decay=CYCLE_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    predictor.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        tell(step / steps)
        if len(order) < size:
            order = torch.randperm(len(inputs), generator=random)
        batch, order = order[:size], order[size:]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = predictor(inputs[batch].float())
        loss = predictor.loss(logits.float(), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()


def _draw_weights(predictor: Predictor, seed: int) -> None:
    """Draws them from the seed: those that the constructor drew came from whatever ran before."""
    with DRAWING, torch.random.fork_rng(devices=[]):  # layers know only PyTorch's one generator
        torch.manual_seed(seed)
        for module in predictor.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def _fits(predictor: Predictor, start: Mapping[str, Torch]) -> bool:
    # batch normalisation counts its batches, but nothing reads that, so it is in no head's file
    own = {name: tensor for name, tensor in predictor.state_dict().items() if not name.endswith(COUNTER)}
    return own.keys() == start.keys() and all(own[name].shape == start[name].shape for name in own)


def _descend(
    predictor: Predictor,
    inputs: Torch,
    targets: Torch,
    train: Torch,
    held_out: Torch,
    random: torch.Generator,
    tell: Callable[[float], None],
) -> None:
    """Trains until the held-out loss stops falling, and keeps the weights that it was lowest with."""
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=RATE, weight_decay=DECAY)
    size = 64 if len(train) < 16384 else 256
    best, kept, stale = _loss(predictor, inputs[held_out], targets[held_out]), copy.deepcopy(predictor.state_dict()), 0
    epochs = min(EPOCHS, max(3, STEPS * size // len(train)))
    for epoch in range(epochs):
        tell(epoch / epochs)
        predictor.train()
        for batch in train[torch.randperm(len(train), generator=random)].split(size):
            loss = predictor.loss(predictor(inputs[batch]), targets[batch])
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
        return float(predictor.loss(predictor(inputs), targets))
