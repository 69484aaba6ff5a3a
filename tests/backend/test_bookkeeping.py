"""What is counted of what was served."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from handmade import toy_chain

from gati.promise.breaker import Alarm
from gati.serving.flight import StageRun
from gati.telemetry.bookkeeping import Bookkeeper


class Metrics:
    """Counters and gauges in one dictionary."""

    def __init__(self) -> None:
        self.values: dict[tuple, float] = {}

    def add(self, name: str, amount: float = 1, **labels: Any) -> None:
        key = (name, *labels.values())
        self.values[key] = self.values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: Any) -> None:
        self.values[(name, *labels.values())] = value

    def flush(self) -> None:
        pass


class House:
    """A bookkeeper whose surroundings are written here."""

    def __init__(self) -> None:
        self.metrics, self.said = Metrics(), list[str]()
        budget, bypass = SimpleNamespace(overdrawn=False), SimpleNamespace(active=False)
        self.breaker = SimpleNamespace(alarm=None, bounds=lambda: (0.0, 1.0), budget=budget, closed_exits=())
        self.live = SimpleNamespace(number=3, breaker=self.breaker, bypass=bypass)
        quiet: Any = SimpleNamespace(keep=lambda *_, **__: None, went_live=lambda _: None)
        arguments: Any = toy_chain(), lambda: self.live, self.metrics, quiet, quiet, quiet
        self.books = Bookkeeper(*arguments, self.said.append, pytest.fail)


def test_runs_of_several_stages_are_counted_apart() -> None:
    house = House()
    house.books.timed([StageRun(0, 0.1), StageRun(0, 0.3), StageRun(0, 2.0, joined=True)])
    name = "gati_segment_seconds"
    assert house.metrics.values[f"{name}_sum", 0, "false"] == pytest.approx(0.4)
    assert house.metrics.values[f"{name}_count", 0, "false"] == 2
    assert house.metrics.values[f"{name}_sum", 0, "true"] == 2
    assert house.metrics.values[f"{name}_count", 0, "true"] == 1


def test_a_failure_is_told_once_a_release() -> None:
    house = House()
    for _ in range(2):
        house.books.head_failed(1, ValueError("too\nlong"))
        house.books.joined_failed(ValueError("no room"))
    assert house.said == [
        "head 1 fails, its requests go on as misses: ValueError: too",
        "the fast path fails, its requests run stage by stage: ValueError: no room",
    ]
    house.books.went_live(house.live)  # type: ignore[arg-type]
    house.books.head_failed(1, ValueError("again"))
    assert len(house.said) == 3 and house.metrics.values["gati_head_failures_total", 1] == 3


def test_an_alarm_is_told_once_and_shown_as_long_as_it_lasts() -> None:
    house = House()
    house.books.report()
    assert house.metrics.values["gati_breaker_open",] == 0 and not house.said
    house.breaker.alarm, house.breaker.closed_exits = Alarm(1, 90, 9, 0.05), (1,)
    house.books.report()
    house.breaker.bounds = lambda: (0.1, 0.2)  # it is shown anew, but not told
    house.books.report()
    assert house.metrics.values["gati_breaker_open",] == 1
    assert [house.metrics.values["gati_exit_closed", index] for index in (0, 1)] == [0, 1]
    assert house.metrics.values["gati_disagreement", "lower"] == 0.1
    (told,) = house.said
    assert told.startswith("release 3 breaks its promise of 1.00%: ") and told.endswith("learned anew: exit 1")
    house.live.number = 4
    house.books.report()
    assert len(house.said) == 2, "the next release's is another"
