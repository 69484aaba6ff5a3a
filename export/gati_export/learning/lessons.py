"""Lessons: lookups are trained in parallel, one on each core, with progress, and can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch

from gati.inference.session import threads
from gati_export.families.blocks.distillation import torch_threads
from gati_export.families.contract import blamed, check_trained
from gati_export.families.family import Lesson, Lookup
from gati_export.learning.heads import weights_of
from gati_export.samples.activations import View

TELL_SECONDS = 0.5
"""Time between two reports of progress."""


@dataclass
class Lessons:
    """What lookups are trained on.

    Attributes:
        train: Indices of the samples to train on.
        tune: Indices of the samples that selectors are fitted to.
        groups: The group of every sample, int [n]; samples of one group depend on each other.
        seed: Seed of random numbers.
        features: Activations of the samples that train, and then of those that tune, by cut point and view.
        logits: The backbone's outputs for the same, [samples, classes].
    """

    train: np.ndarray
    tune: np.ndarray
    groups: np.ndarray
    seed: int
    features: Mapping[View, np.ndarray] = field(default_factory=dict)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def train_all(
        self, tasks: Sequence[tuple[int, Lookup]], init: Mapping[int, bytes], tell: Callable[[float], None]
    ) -> list[tuple[int, Lookup]]:
        """Trains lookups in parallel, one on each core.

        An exception in this thread meanwhile, a KeyboardInterrupt say, ends the others at their next step.

        Args:
            tasks: Cut points and lookups.
            init: Earlier heads to start from, by cut point.
            tell: Called, in this thread, with how many are trained: those under way count by the share that is done.

        Returns:
            Each lookup, and those that are derived from it, with its cut point.
        """
        start = {index: weights_of(model) for index, model in init.items()}
        shares, ended = [0.0] * len(tasks), Event()

        def train(place: int) -> list[Lookup]:
            def step(share: float) -> None:
                shares[place] = share
                if ended.is_set():
                    raise CancelledError

            index, lookup = tasks[place]
            found = self._trained(index, lookup, start.get(index), step)
            shares[place] = 1.0
            return found

        with torch_threads(1), ThreadPoolExecutor(threads()) as pool:
            learning = [pool.submit(train, place) for place in range(len(tasks))]
            try:
                while (so_far := wait(learning, TELL_SECONDS, FIRST_EXCEPTION)).not_done:
                    tell(sum(shares))
                    for future in so_far.done:
                        future.result()  # raises what went wrong
                found = [(task[0], future.result()) for task, future in zip(tasks, learning, strict=True)]
            finally:
                ended.set()
                for future in learning:
                    future.cancel()
        return [(index, lookup) for index, lookups in found for lookup in lookups]

    def _trained(
        self,
        index: int,
        lookup: Lookup,
        start: Mapping[str, torch.Tensor] | None,
        tell: Callable[[float], None],
    ) -> list[Lookup]:
        features, count = self.features[index, lookup.view], len(self.train)
        train = Lesson(features[:count], self.logits[:count], self.groups[self.train], tell)
        tune = Lesson(features[count:], self.logits[count:], self.groups[self.tune])
        with blamed(lookup.name, f"learn at exit {index}"):
            lookup.learn(train, tune, self.seed * 1000 + index, start)
            derived = lookup.derived(train, tune)
            for each in derived:
                each.learn(train, tune, self.seed * 1000 + index, start)
        learned = [each.eval() for each in (lookup, *derived)]
        for each in learned:
            check_trained(each, tune.features, self.logits.shape[1])
        return learned
