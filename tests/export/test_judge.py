"""scripts/judge.py: what a soak finds at its end, and when it calls that broken."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import ModuleType

import pytest
from scripted import load_script

from gati.telemetry.minutes import Minute
from gati_export.report.day import Day
from gati_export.report.history import Turn

EARLY, LATE = 0.0, 500.0


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    for name in ("world", "faults", "traffic"):
        load_script(name)
    return load_script("judge")


def asked(times: list[float], errors: list[float]) -> dict:
    """What one replica was asked, and when it failed."""
    traffic, world = sys.modules["traffic"], sys.modules["world"]
    rows = [(number, 0, 1) for number in range(len(times))]
    one = traffic.Asked(rows, [(at, 0.01) for at in times], [(at, "it is away") for at in errors])
    return {world.Replica("serve-0", (1, 2, 3)): one}


def strikes(of: dict, judge: ModuleType, *starts: float) -> dict:
    return {replica: [judge.Strike("Triton killed", at, at + 20) for at in starts] for replica in of}


def day(rows: int) -> Day:
    now = datetime.now(UTC)
    minute = Minute(now.isoformat(), 60.0, 1, (), {0: rows}, 0, 0, 0.0, 1.0, {}, {})
    return Day(now, {"serve-0": [minute]}, {})


def turn(release: int | None, why: str) -> Turn:
    return Turn("2026-01-01T00:00:00+00:00", 60.0, 2500, 1, release, why)


def test_requests_may_fail_for_a_while_after_a_process_was_killed_and_at_no_other_time(judge: ModuleType) -> None:
    of = asked([EARLY], [101.0, 104.0, 130.0])
    found = {verdict.name: verdict for verdict in judge.failures(of, strikes(of, judge, 100.0, 300.0))}
    assert found["failed while a process was killed or hung"].value == "2"
    alone = found["failed with no excuse"]
    assert (alone.value, alone.kept) == ("1", False)
    assert found["Triton killed: s until none failed, median, most"].value == "2.0, 4.0"


def test_turns_are_counted_by_what_they_came_to_and_one_at_least_has_to(judge: ModuleType) -> None:
    why = "It is faster on held-out samples: {} ms a request, the live release {} ms."
    decided = [turn(2, why.format(1.1, 2.2)), turn(3, why.format(0.9, 1.1)), turn(None, "Traffic has changed: 1.5%.")]
    found = {verdict.name: verdict for verdict in judge.refreshes(decided, 4)}
    assert found["published: It is faster on held-out samples"].value == "2"
    assert found["nothing: Traffic has changed"].value == "1"
    assert found["turns that came to their end, published"] == judge.Verdict(
        "turns that came to their end, published", "3, 2"
    )
    assert [verdict.kept for verdict in judge.refreshes([], 4)] == [True, False]


def test_what_is_written_down_is_all_that_was_answered_but_for_a_minute_before_a_kill(judge: ModuleType) -> None:
    of = asked([EARLY, 450.0, LATE], [])
    killed, spared = strikes(of, judge, 460.0), strikes(of, judge)
    assert [judge.written_down(day(rows), of, killed, []).kept for rows in range(5)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert [judge.written_down(day(rows), of, spared, []).kept for rows in range(5)] == [False] * 3 + [True, False]
    assert judge.written_down(day(2), of, spared, [440.0]).kept


def test_memory_is_told_of_the_process_that_was_seen_most_often(judge: ModuleType) -> None:
    seen = [(1, 100.0), (2, 900.0), *[(1, 100.0 + step) for step in range(1, 6)]]
    (found,) = judge.memory({"orchestrator": seen, "turn": []})
    assert found.value == "900; 103 to 105 in 6 looks"
