"""scripts/simulate_refreshes.py: what serves keeps its promise, however often heads are learned anew."""

from __future__ import annotations

import re

import numpy as np
from click.testing import CliRunner
from scripted import load_script

script = load_script("simulate_refreshes")


def test_what_stays_has_to_pass_once_more() -> None:
    requests = script.Requests.drawn(np.random.default_rng(0), 5000)
    assert script._is_better(requests, 0.5, 0.0, asked=True), "nothing served before"
    assert not script._is_better(requests, 0.5, 0.5, asked=True)
    assert script._is_better(requests, 0.5, 0.6, asked=True), "1.1 % of these differ"
    assert not script._is_better(requests, 0.5, 0.6, asked=False)


def test_it_prints_a_line_for_both() -> None:
    done = CliRunner().invoke(script.main, ["--streams", "2", "--turns", "2"])
    assert done.exit_code == 0, done.output
    for line in done.output.splitlines():
        assert re.search(r"breaks its promise \d+\.\d% of the time, .* releases of 2 turns$", line)
    assert len(done.output.splitlines()) == 2
