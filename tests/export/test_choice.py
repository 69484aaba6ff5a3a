"""The choice of heads where one head's answers depend on what others leave to it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from gati.repository.agreement import parse_agreement
from gati_export.composition.compose import Composition, Limits
from gati_export.composition.latency import Times
from gati_export.composition.replay import Rows, Said
from gati_export.learning.candidates import Candidate, Candidates
from gati_export.learning.choice import REPLAYED_STEPS, Choice, choose
from gati_export.learning.trained import Judged

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
    assert choice.gap is None, "of what depends on each other, nothing is proved"
    alone = choose(Candidates(heads[1:], {}, times), said[1:], ANSWERS, AGREEMENT, Limits(0.0))
    assert alone.gap == 0


def test_a_memory_is_taken_with_heads_behind_it_that_do_not_starve_it() -> None:
    said = [Said(sure(FIRST), ANSWERS), Said(sure(~FIRST), ANSWERS, cast(Rows, Memory())), Said(sure(FIRST), ANSWERS)]
    heads = [Candidate(0, "thief", b"", 0.0), Candidate(1, "memory", b"", 0.0), Candidate(2, "late", b"", 0.0)]
    times = Times(np.array([0.28, 0.02, 0.6, 0.1]), np.zeros(3))
    choice = choose(Candidates(heads, {}, times), said, ANSWERS, AGREEMENT, Limits(0.0))
    assert [heads[place].name for place in choice.composition.chosen] == ["memory", "late"]


class Mixed(Memory):
    """A head that follows the mix of answers and remembers no rows; whose scores do not depend on it here."""

    remembers = False


def test_most_replays_are_spent_where_errors_are_about_as_many_as_allowed() -> None:
    random = np.random.default_rng(0)
    scores = np.sort(random.random(4000).astype(np.float32))[::-1]
    truth = np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, 4000)]
    wrong = random.random(4000) > scores
    answers = np.where(wrong[:, None], np.roll(truth, 1, axis=1), truth)
    heads = [Candidate(0, "sure+mix", b"", 0.001)]
    times = Times(np.array([0.01, 0.99]), np.zeros(1))
    paths = []
    for rows in (cast(Rows, Mixed()), cast(Rows, Memory()), None):
        said = [Said(scores, answers, rows)]
        paths.append(choose(Candidates(heads, {}, times), said, truth, AGREEMENT, Limits(0.01)).path)
    *replayed, whole = paths
    even = whole[np.linspace(0, len(whole) - 1, REPLAYED_STEPS).astype(int)]

    def near(steps: np.ndarray) -> int:
        shares = np.array([(wrong & (scores >= step)).mean() for step in steps[:, 0]])
        return int(np.sum((shares > 0.005) & (shares < 0.02)))

    for few in replayed:
        assert len(few) <= REPLAYED_STEPS < len(whole) and {*few[:, 0]} <= {*whole[:, 0]}
        assert few[0] == whole[0] and few[-1] == whole[-1]
        assert 1.5 * near(even) < near(few) <= near(whole)


class Gullible(Memory):
    """A memory that, asked alone, knows half of what begins a scene, and in a chain answers anything, wrongly."""

    def ask(self, row: int) -> tuple[np.ndarray, float]:
        return np.roll(ANSWERS[row], 1), 0.9


def test_a_memory_alone_is_taken_where_another_errs_on_what_it_leaves() -> None:
    half = FIRST & (np.arange(len(ANSWERS)) // RUN % 2 == 0)
    said = [Said(sure(~FIRST), ANSWERS, cast(Rows, Memory())), Said(sure(half), ANSWERS, cast(Rows, Gullible()))]
    heads = [Candidate(0, "memory", b"", 0.005), Candidate(1, "gullible", b"", 0.005)]
    times = Times(np.array([0.01, 0.09, 0.90]), np.zeros(2))
    choice = choose(Candidates(heads, {}, times), said, ANSWERS, AGREEMENT, Limits(0.0))
    assert [heads[place].name for place in choice.composition.chosen] == ["memory"]


def test_what_is_refused_is_the_reason_of_heads_that_were_chosen() -> None:
    composition = Composition((1,), (0.5,), 1.0, 2.0, 0.5)
    choice = Choice(composition, np.ones((1, 1)), {0: "It hits nothing.", 1: "It is worth it."}, (), 1.0)
    candidates = Candidates([], {}, Times(np.ones(2), np.zeros(1)))
    refused = Judged(candidates, choice, [], [], np.empty((0, 4))).refused("Nothing is safe.")
    assert refused.why == "Nothing is safe." and refused.candidates is candidates and refused.judged is not None
    assert refused.judged.choice.reasons == {0: "It hits nothing.", 1: "Nothing is safe."}
