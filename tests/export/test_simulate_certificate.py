"""scripts/simulate_certificate.py: its figures are right where the truth is known, and show why groups matter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scripted import load_script

script = load_script("simulate_certificate")
EPSILON, DELTA = 0.05, 0.05


def heads(groups: int, size: int, seed: int = 0):
    """Two heads on frames: how hard a scene is decides their scores, and whether they are wrong on all of it."""
    random = np.random.default_rng(seed)
    hard = random.random(groups)
    wrong = np.repeat(random.random(groups) < 0.25 * hard, size)
    shaken = np.repeat(hard, size) + random.normal(size=(2, groups * size)) * 0.02
    scores = np.clip(1 - shaken, 0.001, 1).astype(np.float32)
    return script.Scores(scores, np.broadcast_to(~wrong, scores.shape), np.repeat(np.arange(groups), size))


def test_frames_taken_for_independent_break_the_promise_and_groups_keep_it():
    said = heads(3000, 10)
    asked = {"epsilon": EPSILON, "delta": DELTA, "splits": 250, "calibration": 3000}
    kept = script.simulate(said, **asked)
    broken = script.simulate(said, **asked, grouped=False)
    assert kept.observations == broken.observations == 300 and kept.calibration == 3000
    assert kept.violations_at_most <= DELTA
    assert kept.certified == 250 and kept.hits > 0.25  # and not by certifying nothing
    assert broken.violations / broken.splits > 4 * DELTA


def test_independent_samples_keep_the_promise_and_use_most_of_the_budget():
    seen = script.simulate(heads(20_000, 1), epsilon=EPSILON, delta=DELTA, splits=300, calibration=2000)
    assert seen.violations / seen.splits <= DELTA + 3 * (DELTA * (1 - DELTA) / 300) ** 0.5
    assert seen.violations <= seen.violations_at_most * seen.splits
    assert 0 < seen.unused < 0.4 * EPSILON
    assert 0.8 * seen.best_hits < seen.hits < seen.best_hits + 0.05


def test_outcomes_are_of_the_first_head_that_is_sure():
    said = script.Scores(
        np.array([[0.9, 0.2, 0.9, -1], [0.9, 0.8, 0.1, 0.1]], np.float32),
        np.array([[True, True, False, False], [False, False, True, False]]),
        np.arange(4),
    )
    hit, wrong = script.outcomes(said, np.array([0.95, 0.5, 0.1]))
    assert hit.tolist() == [[False] * 4, [True, True, True, False], [True] * 4]
    assert wrong.tolist() == [[False] * 4, [False, True, True, False], [False, False, True, True]]


def test_path_falls_strictly_and_skips_refused_rows():
    scores = np.random.default_rng(0).random((3, 500)).astype(np.float32)
    scores[0, :400] = -1
    path = script.common_path(scores, 100)
    assert path.dtype == np.float32 and len(path) == 100 and (np.diff(path) < 0).all()
    assert path[0] == scores.max() and path[-1] == scores[scores > 0].min()
    assert not len(script.common_path(np.full((2, 5), -1.0)))


def run(*arguments: str):
    return CliRunner().invoke(script.main, [*arguments])


def test_command_prints_and_writes_what_it_found(tmp_path):
    said = heads(600, 3)
    np.savez(tmp_path / "s.npz", scores=said.scores, agree=said.agree, groups=said.groups * 7 - 3)
    asked = ["--splits", "40", "--calibration", "600", "--epsilon", "0.1", "--json", str(tmp_path / "r.json")]
    result = run(str(tmp_path / "s.npz"), *asked)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["splits"] == 40 and written["observations"] == 200 and written["epsilon"] == 0.1
    assert "40 calibration sets of 600 samples, 200 independent ones" in result.output
    assert "promise broken" in result.output and "unused budget" in result.output
    nothing = run(str(tmp_path / "s.npz"), "--splits", "5", "--calibration", "30")
    assert nothing.exit_code == 0 and "certified        0.00%" in nothing.output and "unused" not in nothing.output


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"scores": np.ones((2, 5))}, "no .npz file with numbers"),
        ({"scores": np.ones((2, 5)), "agree": np.ones((2, 4), bool)}, r"[2, 5], [2, 4] and [5]"),
        ({"scores": np.ones(5), "agree": np.ones(5, bool)}, r"must be [heads, n]"),
        ({"scores": np.ones((1, 2)), "agree": np.ones((1, 2), bool)}, "takes 3 at least"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(tmp_path, arrays, says):
    np.savez(tmp_path / "s.npz", **arrays)
    result = run(str(tmp_path / "s.npz"))
    assert result.exit_code == 1 and says in result.output and "Traceback" not in result.output
    (tmp_path / "t.npz").write_bytes(b"no")
    assert "no .npz file" in run(str(tmp_path / "t.npz")).output
    np.savez(tmp_path / "u.npz", scores=np.ones((1, 50)), agree=np.ones((1, 50), bool))
    assert "between 0 and 1" in run(str(tmp_path / "u.npz"), "--epsilon", "2").output
