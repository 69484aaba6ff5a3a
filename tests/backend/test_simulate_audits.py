"""scripts/simulate_audits.py: bad heads are soon found out, and good ones left alone."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner
from scripted import load_script

from gati_export.terms import Terms

script = load_script("simulate_audits")
TERMS = Terms()


def streams(share: float, requests: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each stream after how many requests its heads were closed, or all there are, and what share was drawn."""
    differs = np.full(requests, share)
    found = [script._stream(differs, TERMS, np.random.default_rng(seed)) for seed in range(count)]
    return np.array([until for until, _ in found]), np.array([drawn for _, drawn in found])


def test_heads_that_differ_twice_as_often_as_promised_are_soon_found_out_and_good_ones_left_alone() -> None:
    closed, _ = streams(2.15 * TERMS.epsilon, 10_000, 20)
    assert np.median(closed) < 3_000
    closed, drawn = streams(TERMS.epsilon / 5, 20_000, 10)
    assert (closed == 20_000).all()
    assert drawn.mean() < 0.06


def test_it_prints_a_line_for_each_share() -> None:
    done = CliRunner().invoke(
        script.main, ["--shares", "0,20", "--streams", "4", "--requests", "2000", "--good", "100"]
    )
    assert done.exit_code == 0, done.output
    _, none, many = done.output.splitlines()
    assert none.split()[:3] == ["0", "%", "0%"] and "-," in none
    assert many.split()[:3] == ["20", "%", "100%"]
