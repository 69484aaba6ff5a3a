"""Latency of a chain's parts on a GPU, for requests of one row, in CUDA graphs as served (gati.inference.ladder).

Called by itself, a stage or a head takes a GPU several times as long as within such a graph. By such times, too few
heads would be chosen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from gati.inference.device import DeviceRunner
from gati.inference.fuse import join, stage_ranges
from gati.inference.head import HeadSpec
from gati.inference.ladder import Ladder, channels_last_pays
from gati.inference.steps import Step
from gati.repository.chain import Chain
from gati_export.composition.replay import state_of

ROUNDS = 200
BUDGET = 2.0
"""Seconds after which no further round of a comparison begins; three rounds are always run."""


class GpuLatency:
    """Measures segments, cuts and heads by comparing ladders with and without them.

    Args:
        chain: The chain.
        models: Its segments' files.
        inputs: The model's inputs, [1, ...] each.
        runner: Runs sessions on the device.
    """

    def __init__(
        self, chain: Chain, models: Sequence[bytes], inputs: Mapping[str, np.ndarray], runner: DeviceRunner
    ) -> None:
        self._chain, self._models, self._inputs, self._runner = chain, models, inputs, runner
        self._channels_last = channels_last_pays(self._steps(()), chain, runner)

    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of each segment as a part of the whole, [cut points + 1], and seconds that cuts add, [cut points].

        Raises:
            Exception: ONNX Runtime's own, if a ladder can't be built; see gati.inference.ladder.
        """
        whole, until, cuts = self._ladder(()), [0.0], []
        (seconds,) = self._compare([whole])
        for index in self._chain.heads:
            one, before, after = self._compare([whole, self._ladder([index])])
            until.append(seconds * min(1, before / one))  # of the same rounds: the machine may be slower by now
            cuts.append(seconds * max(0, (before + after) / one - 1))
        return np.diff(np.maximum.accumulate([*until, seconds])), np.array(cuts)

    def heads(self, heads: Sequence[tuple[int, bytes]]) -> list[float]:
        """Seconds that each head, a pair of cut point and file, adds to its stage until it is known whether it hits.

        Raises:
            Exception: See `segments`.
        """
        found = [0.0] * len(heads)
        bare, left = self._ladder(self._chain.heads), dict(enumerate(heads))
        while left:  # one head a cut point at a time
            turn = {index: place for place, (index, _) in reversed(left.items())}
            taken = self._compare([bare, self._ladder(self._chain.heads, {i: heads[p][1] for i, p in turn.items()})])
            for without, lookup, index in zip(taken, taken[len(taken) // 2 :], self._chain.heads, strict=False):
                if index in turn:
                    found[turn[index]] = max(0.0, lookup - without)
                    del left[turn[index]]
        return found

    def _ladder(self, cuts: Sequence[int], heads: Mapping[int, bytes] | None = None) -> Ladder:
        steps = self._steps(cuts, heads)
        return Ladder(steps, self._chain, self._runner, captured=True, channels_last=self._channels_last)

    def _steps(self, cuts: Sequence[int], heads: Mapping[int, bytes] | None = None) -> list[Step]:
        steps = []
        for place, part in enumerate(stage_ranges(len(self._models), cuts, [len(model) for model in self._models])):
            stage = join([self._models[index] for index in part], prefix=f"stage {place}/")
            head = ModelProto.FromString(heads[part[-1]]) if heads and part[-1] in heads else None
            gives = tuple(value.name for value in head.graph.output) if head else ()
            steps.append(Step(part[-1], stage, head, HeadSpec(state_of(head) if head else {}, gives)))
        return steps

    def _compare(self, ladders: Sequence[Ladder]) -> list[float]:
        """Median seconds of each rung of each ladder; ladders take turns."""
        taken: list[list[float]] = []
        end = time.perf_counter() + BUDGET
        for turn in range(ROUNDS):
            taken.append([seconds for ladder in ladders for seconds in ladder.pace(self._inputs)])
            if turn >= 2 and time.perf_counter() > end:
                break
        return np.median(taken, axis=0).tolist()
