"""scripts/simulate_audits.py: bad heads are soon found out, and good ones left alone."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner
from scripted import load_script

from gati_export.terms import Terms

script = load_script("simulate_audits")
TERMS = Terms()


def streams(share: float, requests: int, count: int) -> np.ndarray:
    """What comes of each stream, [what, streams]."""
    differs = np.full(requests, share)
    return np.array([script._stream(differs, 0, TERMS, np.random.default_rng(seed)) for seed in range(count)]).T


def test_heads_that_differ_twice_as_often_as_promised_are_soon_found_out_and_good_ones_left_alone() -> None:
    closed, _, held, soon, all_ = streams(2.15 * TERMS.epsilon, 10_000, 20)
    assert np.median(closed) < 3_000
    assert held.mean() > 0.1
    assert soon.mean() < 1.3 * TERMS.epsilon
    assert all_.mean() < TERMS.epsilon / 2
    closed, drawn, held, *_ = streams(TERMS.epsilon / 5, 20_000, 10)
    assert np.isinf(closed).all()
    assert drawn.mean() < 0.06
    assert held.mean() == 0


def test_heads_that_keep_their_promise_are_left_alone_where_some_scenes_are_far_longer_than_most() -> None:
    differs = np.full(10_000, TERMS.epsilon)
    closed = {
        taken: np.array([script._stream(differs, 0, TERMS, random, 50, taken, 0.2).until for random in seeds()])
        for taken in (None, 10.8)
    }
    assert np.isfinite(closed[None]).sum() <= 2 < np.isfinite(closed[10.8]).sum()


def seeds() -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(20)]


def test_it_prints_a_line_for_each_share() -> None:
    done = CliRunner().invoke(
        script.main, ["--shares", "0,20", "--streams", "4", "--requests", "2000", "--good", "100", "--run", "5"]
    )
    assert done.exit_code == 0, done.output
    _, none, many = done.output.splitlines()
    assert none.split()[:3] == ["0", "%", "0%"] and "-," in none.replace(" ", "")
    assert many.split()[:3] == ["20", "%", "100%"]
