"""The choice of heads where one head's answers depend on what others leave to it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from gati.agreement import parse_agreement
from gati_export.candidates import Candidate, Candidates
from gati_export.choice import choose
from gati_export.compose import Limits
from gati_export.latency import Times
from gati_export.replay import Rows, Said

RUN, SCENES, CLASSES = 10, 60, 3
ANSWERS = np.eye(CLASSES, dtype=np.float32)[np.arange(SCENES).repeat(RUN) % CLASSES]


class Memory:
    """Knows a scene once one of its frames was answered behind it; stands for `Rows` and their state in one."""

    remembers = True

    def __init__(self) -> None:
        self.restart()

    @property
    def state(self) -> Memory:
        return self

    def restart(self) -> None:
        self.known: set[int] = set()
        self.row = 0

    def ask(self, row: int) -> tuple[np.ndarray, float]:
        self.row = row
        return ANSWERS[row], 0.9 if row // RUN in self.known else -1.0

    def key(self, row: int) -> np.ndarray:
        return np.full((1, 1), row)

    def count(self, answer: np.ndarray) -> None: ...

    def remember(self, keys: np.ndarray, answers: np.ndarray) -> None:
        self.known.add(int(keys[0, 0]) // RUN)


FIRST = np.arange(len(ANSWERS)) % RUN == 0
"""Frames that begin a run."""
AGREEMENT: Any = parse_agreement("top-1")


def sure(where: np.ndarray) -> np.ndarray:
    """Scores of a head that is sure there alone."""
    return np.where(where, 0.9, -1.0).astype(np.float32)


@pytest.mark.parametrize(("late", "expected"), [(0.5, ("memory", "late")), (0.001, ("late",))])
def test_a_memory_learns_from_a_head_behind_it_if_that_does_not_do_alone(late: float, expected: tuple[str]) -> None:
    said = [Said(sure(~FIRST), ANSWERS, cast(Rows, Memory())), Said(sure(np.ones_like(FIRST)), ANSWERS)]
    heads = [Candidate(0, "memory", b"", 0.005), Candidate(1, "late", b"", 0.0)]
    times = Times(np.array([0.01, late, 0.99 - late]), np.zeros(2))
    choice = choose(Candidates(heads, {}, times), said, ANSWERS, AGREEMENT, Limits(0.0))
    assert tuple(heads[place].name for place in choice.composition.chosen) == expected
