"""What was learned is held against the newest samples before it serves; `tests/server/test_refresh.py` has the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from handmade import CERTIFICATE, toy_chain
from scipy.stats import binom

from gati_export.certificates.splitting import Split
from gati_export.composition.compose import Composition
from gati_export.composition.latency import Times
from gati_export.learning.candidates import Candidates
from gati_export.learning.choice import Choice
from gati_export.learning.task import Task
from gati_export.learning.trained import Certified, Judged
from gati_export.refreshing.trial import objection
from gati_export.terms import Terms

TERMS = Terms(epsilon=0.01, delta=0.05)
CHAIN = toy_chain()
CANDIDATES = Candidates([], {}, Times(np.ones(len(CHAIN.segments)), np.zeros(len(CHAIN.heads))))
CHOICE = Choice(Composition((), (), 1.0, 1.0, 0.0), np.empty((0, 0)), {}, (), 1.0)
JUDGED = Judged(CANDIDATES, CHOICE, [], [], np.empty((0, 4)))
HEADS = Certified(JUDGED, {}, CERTIFICATE, 1.0, (0.0, 0.0, 1.0), np.zeros(0, bool), 1.0)


def objected(wrong: np.ndarray, groups: np.ndarray | None = None) -> str | None:
    """To what answers calibration samples wrongly like this, in the order of traffic."""
    rows = np.arange(len(wrong))
    split = Split(rows[:0], rows[:0], rows, rows if groups is None else groups, rows)
    return objection(Task(CHAIN, [], {}, split, TERMS), replace(HEADS, wrong=wrong), None, lambda *_: None)


def shares(*parts: tuple[int, float]) -> np.ndarray:
    """A stream in parts: how many samples, and the share of them that is wrong."""
    random = np.random.default_rng(0)
    return np.concatenate([random.random(count) < share for count, share in parts])


def test_errors_that_came_with_a_change_of_traffic_speak_against_it_however_few_they_are_of_all() -> None:
    changed = shares((4000, 0.001), (1000, 0.04))
    assert changed.mean() < TERMS.epsilon
    said = objected(changed)
    assert said is not None and said.startswith("Traffic has changed: ")
    assert objected(np.random.default_rng(0).permutation(changed)) is None


def test_a_scene_is_one_observation() -> None:
    scene = np.zeros(2000, bool)
    scene[-30:] = True
    assert objected(scene) is not None
    groups = np.r_[np.arange(1970), np.full(30, 1970)]
    assert objected(scene, groups) is None


def test_what_keeps_its_promise_is_objected_to_as_rarely_as_said() -> None:
    random = np.random.default_rng(0)
    times = sum(objected(random.random(2000) < TERMS.epsilon) is not None for _ in range(200))
    assert times <= binom.ppf(0.999, 200, TERMS.delta)
