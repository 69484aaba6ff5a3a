"""What rows take by their exits is measured again and again, and the least of it counts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gati import costs
from gati.costs import Costs


def slept(seconds: float) -> float:
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began


def test_costs_add_up_along_the_chain_and_are_held_against_the_backbone_alone() -> None:
    found = Costs([0, 2, 5], lambda: [0.001, 0.004, 0.007], lambda: slept(0.01)).measure()
    assert [*found] == [0, 2, 5]
    assert found[2] / found[0] == pytest.approx(5) and found[5] / found[0] == pytest.approx(12)
    assert 0.5 < found[5] < 1.25, "a sleep is never too short"


def test_what_is_joined_is_measured_joined_and_shared_out_as_it_is_apart() -> None:
    found = Costs([0, 1], lambda: [1, 3], lambda: slept(0.01), lambda: [(slept(0.02), 1)]).measure()
    assert found[0] * 4 == pytest.approx(found[1]) and 1 < found[1] < 4
    early = Costs([0, 1], lambda: [1, 3], lambda: slept(0.01), lambda: [(slept(0.02), 0)]).measure()
    assert early[1] > 2 * found[1], "it left at the first exit"


def test_the_least_of_all_measurements_counts() -> None:
    def times() -> Iterator[float]:
        yield from [9.0, 2.0, 5.0, 5.0, 5.0]  # the first measurement
        yield 1.0
        while True:
            yield 7.0

    taken = times()
    measured = Costs([0], lambda: [next(taken)], lambda: slept(0.001))
    first, second = measured.measure(), measured.measure()
    assert second[0] < 0.8 * first[0]


def test_it_is_due_a_few_times_and_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(costs.time, "monotonic", lambda: now[0])
    measured, waited = Costs([0], lambda: [1.0], lambda: None), list[float]()
    while measured.due:
        measured.measure()
        waited.append(0)
        while not measured.due and waited[-1] < 1000:
            now[0] += 1
            waited[-1] += 1
    assert waited == [1, 2, 4, 8, 16, 32, 64, 1000]
