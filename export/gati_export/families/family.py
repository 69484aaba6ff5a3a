"""What a family of heads is: how hidden activations become an answer, and how sure that answer is.

A family is a module beside this one with a function `lookups(cut, classes)` that gives untrained `Lookup`s, and its
name in `FAMILIES` of `gati_export.families`: the tests of all families are then its tests, too. Training, ONNX, replay,
certificate and composition are the same for all. `contract` tries what a family does before its heads are certified.

To build one from: `Pooling` makes vectors of any activations, `Whitening` few and comparable numbers of these;
`Distilled` trains a `Predictor` that is a network; a `Selector` makes a score of logits, and `regress` one of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor as Torch
from torch import nn

from gati.repository.chain import Tensor
from gati_export.families.blocks.distillation import Predictor, distil
from gati_export.families.blocks.selector import Selector

BATCH = 64
"""Samples that a predictor is asked about together."""


@dataclass(frozen=True)
class Lesson:
    """Samples to learn from, in the order of traffic.

    Attributes:
        features: What `reduce` gave, [n, ...]; float32, or float16 where a row is more than 4,096 numbers.
        logits: The backbone's, float32 [n, classes]. Not every class need be among the answers.
        groups: Which of them belong together, as frames of one scene do; int64 [n].
        tell: Told again and again which share of the learning is done, 0..1; what it raises ends that.
    """

    features: np.ndarray
    logits: Torch
    groups: np.ndarray
    tell: Callable[[float], None] = lambda _: None

    @property
    def labels(self) -> np.ndarray:
        """The backbone's answers, int64 [n]. Where these are numbers, not scores of classes, it is of no use."""
        return self.logits.argmax(1).numpy()


class Found(NamedTuple):
    """What a lookup finds for a batch.

    Attributes:
        logits: What the backbone would say, float32 [batch, classes], on the scale of `Lesson.logits`.
        score: How sure that is, 0..1, float32 [batch]. What matters is its order: a threshold is found for it.
        key: What the row is to be remembered by, float32 [batch, dim]; None but of those that ask for `memory_keys`.
    """

    logits: Torch
    score: Torch
    key: Torch | None = None


class Lookup(nn.Module):
    """The predictor and the selector of one head.

    Every step must map every row by itself, take any batch, and be exportable to ONNX by `torch.onnx.export`: no branch
    may depend on values. What has been learned is kept in parameters and buffers, which make the file.

    Attributes:
        name: Of the family, and of the variant where it has several: `gati-pool`.
        view: What `reduce` gives. Lookups at the same cut point with the same view share features: those that reduce as
            another family does take its `VIEW`, others a name of their own.
        state: Shapes of what the orchestrator is asked to keep between requests, by name (`gati.inference.state`).
        integers: Whether to compute in integers what can be: for a processor, where that takes less. It is set before
            `learn`, and may be ignored.
    """

    name: str
    view: str
    state: Mapping[str, tuple[int, ...]] = {}
    integers = False

    def reduce(self, hidden: Torch) -> Torch:
        """Reduces activations, float32 [batch, ...], to features [batch, ...].

        Nothing in it is trained. A row with a NaN or an infinity must give features with one: it is never a hit.
        """
        return hidden

    def learn(self, train: Lesson, tune: Lesson, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Learns.

        Lookups learn at the same time, a thread each: draw from a generator of your own, as PyTorch's is shared.

        Args:
            train: What the predictor learns from.
            tune: What the selector learns from: none of it is in `train`. It may be small, and hold other classes.
            seed: The same seed gives the same weights.
            start: Weights of the head that served here before, by the names of `state_dict`, to go on from: perhaps
                another family's, or of other shapes. It may be ignored.
        """
        raise NotImplementedError

    def derived(self, train: Lesson, tune: Lesson) -> list[Lookup]:
        """Lookups that come of this one when it has learned, for these samples, and learn after it."""
        return []

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        """Looks features [batch, ...] up."""
        raise NotImplementedError


class Family(Protocol):
    """A way to make heads."""

    def __call__(self, cut: Tensor, classes: int) -> Sequence[Lookup]:
        """Untrained lookups for a cut tensor, each a candidate of its own.

        Args:
            cut: The cut tensor. Its shape is without the batch dimension, −1 where it varies.
            classes: Of the backbone's output; or how many numbers it gives.

        Raises:
            BackboneError: If the cut tensor is none that this family can read: `--explain` says so, and others go on.
        """
        ...


class Distilled(Lookup):
    """A predictor that is distilled from the backbone, and a selector that judges its logits."""

    def __init__(self, name: str, view: str, predictor: Predictor, selector: Selector) -> None:
        super().__init__()
        self.name = name
        self.view = view
        self.predictor = predictor
        self.selector = selector

    def reduce(self, hidden: Torch) -> Torch:
        """As the predictor does."""
        return self.predictor.reduce(hidden)

    def learn(self, train: Lesson, tune: Lesson, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Distils the predictor, then fits the selector on samples that the predictor has not seen."""
        before = predictor_weights(start)
        distil(self.predictor, train.features, train.logits, seed, before, integers=self.integers, tell=train.tell)
        logits = logits_of(self.predictor, tune.features)
        self.selector.fit(logits, (logits.argmax(1) == tune.logits.argmax(1)).numpy())

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        """The predictor's logits, and the selector's opinion of them."""
        logits = self.predictor(features)
        return Found(logits, self.selector(logits))


def logits_of(predictor: Predictor, features: np.ndarray) -> Torch:
    """What a predictor says to features, [n, classes], a few at a time: a tower holds 400 KB and more of each."""
    starts = range(0, len(features), BATCH)
    with torch.no_grad():
        return torch.cat([predictor(torch.from_numpy(features[at : at + BATCH].astype(np.float32))) for at in starts])


def predictor_weights(start: Mapping[str, Torch] | None) -> dict[str, Torch] | None:
    """Of an earlier head's weights, those of its predictor; its selector is fitted anew."""
    named = ((name.partition("predictor.")[2], tensor) for name, tensor in (start or {}).items())
    return {name: tensor for name, tensor in named if name} or None
