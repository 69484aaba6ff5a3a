"""What lookups take is measured again and again, and the least of it counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gati.inference import costs
from gati.inference.costs import MOST, Costs

SHARES = {0: 0.1, 2: 0.4, 5: 1.0}


class Clock:
    """Time that passes where somebody says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(costs.time, "monotonic", lambda: self.now)
        patch.setattr(costs.time, "perf_counter", lambda: self.now)

    def taking(self, *seconds: float) -> Callable[[], None]:
        """What takes so long, the last again and again."""
        left = [*seconds]

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_to_the_work_that_is_done_at_an_exit_come_the_lookups_up_to_there(clock: Clock) -> None:
    found = Costs(SHARES, clock.taking(0.010), clock.taking(0.012)).measure()
    assert found == pytest.approx({0: 0.1 + 0.1, 2: 0.4 + 0.2, 5: 1 + 0.2})


def test_the_least_of_all_measurements_counts(clock: Clock) -> None:
    measured = Costs(SHARES, clock.taking(0.010), clock.taking(0.09, 0.015, 0.08, 0.08, 0.08, 0.011))
    assert measured.measure()[5] == pytest.approx(1.5)
    assert measured.measure()[5] == pytest.approx(1.1)


@pytest.mark.parametrize(("looked_up", "cost"), [(0.009, 1.0), (0.1, 1 + MOST)])
def test_a_busy_machine_makes_lookups_neither_a_gain_nor_a_ruin(clock: Clock, looked_up: float, cost: float) -> None:
    assert Costs(SHARES, clock.taking(0.010), clock.taking(looked_up)).measure()[5] == pytest.approx(cost)


def test_it_is_due_a_few_times_and_less_and_less_often(clock: Clock) -> None:
    measured, waited = Costs(SHARES, clock.taking(1e-6), clock.taking(1e-6)), list[float]()
    while measured.due:
        measured.measure()
        waited.append(0)
        while not measured.due and waited[-1] < 1000:
            clock.now += 1
            waited[-1] += 1
    assert waited == [1, 2, 4, 8, 16, 32, 64, 1000]


def test_of_a_large_network_it_takes_little_of_the_time(clock: Clock) -> None:
    measured, taken, began = Costs(SHARES, clock.taking(2.0), clock.taking(3.0)), 0.0, clock.now
    while clock.now < began + 300:
        since = clock.now
        if measured.due:
            measured.measure()
        taken += clock.now - since
        clock.now += 0.25
    assert 5 <= taken <= 0.07 * 300
