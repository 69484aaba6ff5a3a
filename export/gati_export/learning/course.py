"""The course of traffic: what heads do to all of it in its order, of which the samples that calibrate judge them.

What a memory holds when a sample comes is what came shortly before, whatever part that belongs to. Asked about the
calibration samples alone, it would have met a quarter of the near-duplicates that it may mistake for them. So all
traffic passes by, and errors count where heads have learned nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from gati.repository.agreement import Agreement
from gati_export.composition.replay import Said, replay
from gati_export.learning.candidates import Candidate, Heard, ask
from gati_export.learning.task import Task
from gati_export.progress import Progress
from gati_export.samples.activations import collect, open_segments


@dataclass(frozen=True, eq=False)
class Course:
    """What a chain's heads say to n samples in the order of traffic, m of which judge them.

    Attributes:
        said: By each head, in the order of the chain.
        outputs: By the backbone, [n, classes].
        judges: Places of those that judge, int [m]; by default all.
    """

    said: Sequence[Said]
    outputs: np.ndarray
    judges: np.ndarray | EllipsisType = ...

    def served(self, thresholds: Sequence[float], agreement: Agreement) -> tuple[np.ndarray, np.ndarray]:
        """The exit of each sample that judges, int64 [m], and which get another answer than the backbone's, bool [m].

        The exit is the head's place, or the number of heads for the backbone.
        """
        exits, answers = replay(self.said, thresholds, self.outputs)
        exits = exits[self.judges]
        agrees = agreement(answers[self.judges], self.outputs[self.judges])
        return exits, (exits < len(self.said)) & ~agrees

    def walk(
        self, path: np.ndarray, agreement: Agreement, safe: Callable[[np.ndarray], bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is served at each step of a path, as far as that is safe.

        Args:
            path: Thresholds, strictest first, [steps, heads].
            agreement: When an answer is as good as the backbone's.
            safe: Whether what is wrong at a step, bool [m], is few enough. After one that is not, no further step is
                looked at, since replays take time: they are all taken to be wrong.

        Returns:
            As of `served`, of each step: int64 [steps, m] and bool [steps, m].
        """
        judging = len(self.outputs[self.judges])
        exits = np.full((len(path), judging), len(self.said))
        wrong = np.ones((len(path), judging), bool)
        for step, thresholds in enumerate(path):
            exits[step], wrong[step] = self.served(thresholds.tolist(), agreement)
            if not safe(wrong[step]):
                break
        return exits, wrong


def course(task: Task, heads: Sequence[Candidate], held_out: Heard, learned: np.ndarray, progress: Progress) -> Course:
    """What heads say in the course of the traffic, judged by the calibration samples.

    Where any has state, all are run on all traffic. That is for heads in use only: what they say to it takes four times
    the memory that it takes of a candidate.

    Args:
        task: What was to be learned.
        heads: The heads in use.
        held_out: What they say to the calibration samples alone: the same, where none has state.
        learned: What the backbone says to the samples that train, and then to those that tune, [samples, classes].
        progress: Told how far it is.
    """
    if all(one.rows is None for one in held_out.said):
        return Course(*held_out)
    split, sessions = task.split, open_segments(task.segment_paths)
    outputs = np.empty((len(split.groups), *task.chain.output.shape), task.chain.output.numpy)
    known = np.concatenate([split.train, split.tune, split.calibrate])
    outputs[known] = np.concatenate([learned, held_out.outputs])
    others = np.setdiff1d(split.traffic, known)  # some samples are in no part
    if len(others):
        outputs[others] = collect(task.chain, sessions, task.samples, {}, progress, others).outputs
    heard = ask(task.chain, sessions, heads, task.samples, split.traffic, progress, outputs[split.traffic])
    return Course(*heard, split.calibrate)
