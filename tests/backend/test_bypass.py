"""Requests go past heads that cost more than they save, and come back to them when they pay again."""

from __future__ import annotations

import numpy as np
import pytest

from gati.serving.bypass import LOOKED_UP, PERIOD, Bypass

COSTS = {0: 0.2, 1: 0.7, 2: 1.2}
MISS = 2


def looked_up(bypass: Bypass, exits: list[int]) -> list[bool]:
    """Which of single rows were looked up, if they leave there when they are."""
    asked = []
    for exit_ in exits:
        asked.append(not bypass.takes(1))
        if asked[-1]:
            bypass.saw([exit_])
    return asked


def test_heads_that_pay_are_always_asked() -> None:
    exits = np.random.default_rng(0).choice(3, 20_000, p=(0.2, 0.3, 0.5)).tolist()  # 0.85 of the backbone's time
    assert all(looked_up(Bypass(COSTS), exits))


def test_heads_that_miss_are_given_a_few_hundred_rows_and_then_a_sixteenth() -> None:
    asked = looked_up(Bypass(COSTS), [MISS] * 20_000)
    first = asked.index(False)
    assert 100 < first < 500
    assert sum(asked[first:]) / len(asked[first:]) == pytest.approx(LOOKED_UP / PERIOD, rel=0.05)
    *runs, _ = "".join(".x"[one] for one in asked[first:]).split(".")
    assert {len(run) for run in runs if run} == {LOOKED_UP}, "one after another: memories know what came just before"


def test_heads_that_hit_again_are_asked_again_within_two_periods() -> None:
    bypass = Bypass(COSTS)
    looked_up(bypass, [MISS] * 5_000)
    assert bypass.active
    asked = looked_up(bypass, [0] * 3 * PERIOD)
    assert all(asked[2 * PERIOD :]) and not bypass.active


def test_heads_that_miss_cost_little_more_than_none() -> None:
    asked = looked_up(Bypass(COSTS), [MISS] * 50_000)
    assert np.mean([COSTS[MISS] if one else 1 for one in asked]) < 1.02


@pytest.mark.parametrize("rows", [1, 7, 8, 32, 64, 512, 1000])
def test_rows_of_batches_count_as_many(rows: int) -> None:
    bypass = Bypass(COSTS)
    bypass.saw([MISS] * 1_000)
    taken = [bypass.takes(rows) for _ in range(10_000)]
    assert sum(taken) / len(taken) == pytest.approx(1 - LOOKED_UP / PERIOD, abs=0.02)


def test_without_costs_heads_are_always_asked() -> None:
    assert all(looked_up(Bypass(), [MISS] * 5_000))
