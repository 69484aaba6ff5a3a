"""What a replica writes down of its minutes, on a real disk."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati.system.journal import FORGOTTEN_SECONDS, Journal, decoded, entries
from gati.telemetry import minutes
from gati.telemetry.histogram import bucket, quantile
from gati.telemetry.minutes import Minute, Minutes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "minutes" / "toy" / "host-8001.jsonl"


def test_a_minute_holds_what_came_and_the_next_one_begins_anew(path: Path) -> None:
    book = Minutes(path, 2, pytest.fail)
    for held in (0, 1):
        book.served(Counter({0: 3, 2: 1}), [(0, 0.001), (2, 0.004)], held)
    book.audited([True, False, True])
    book.keep(7, (1,), (0.001, 0.2))
    assert not path.exists(), "the minute is not over"
    book.keep(7, (1,), (0.001, 0.2), now=True)
    book.keep(7, (1,), (0.001, 0.2), now=True)  # nothing came: no line
    book.served(Counter({2: 1}), [(2, 0.004)])
    book.keep(8, (), (0.0, 1.0), now=True)
    first, second = decoded(Minute, path)
    assert (first.exits, first.audited, first.agreed, first.held) == ({0: 6, 2: 2}, 3, 2, 1)
    assert (first.release, first.closed, first.lower, first.upper) == (7, (1,), 0.001, 0.2)
    assert first.times == {bucket(0.001): 2, bucket(0.004): 2}
    assert first.backbone_times == {bucket(0.004): 2}
    assert (second.exits, second.release, second.times, second.held) == ({2: 1}, 8, {bucket(0.004): 1}, 0)


def test_a_minute_is_written_when_it_is_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "SECONDS", 0.0)
    book = Minutes(path, 2, pytest.fail)
    book.served(Counter({0: 1}), [(0, 0.001)])
    book.keep(1, (), (0.0, 1.0))
    assert len(entries(path)) == 1


def test_where_nothing_can_be_written_that_is_said_once_and_when_it_is_over(path: Path) -> None:
    path.parent.parent.write_text("in the way")
    warned: list[str] = []
    book = Minutes(path, 2, warned.append)
    for _ in range(3):
        book.served(Counter({0: 1}), [(0, 0.001)])
        book.keep(1, (), (0.0, 1.0), now=True)
    assert len(warned) == 1 and "can't be written" in warned[0]
    path.parent.parent.unlink()
    for _ in range(2):
        book.served(Counter({0: 1}), [(0, 0.001)])
        book.keep(1, (), (0.0, 1.0), now=True)
    assert warned[1:] == [f"{path} is written again"]


def test_replicas_that_are_gone_for_a_week_are_forgotten(path: Path) -> None:
    for name, age in (("gone", FORGOTTEN_SECONDS + 60), ("here", FORGOTTEN_SECONDS - 60)):
        Journal(path.with_name(f"{name}.jsonl"), 10).add({})
        os.utime(path.with_name(f"{name}.jsonl"), (time.time() - age,) * 2)
    Minutes(path, 2, pytest.fail)
    assert [file.stem for file in path.parent.iterdir()] == ["here"]


def test_a_journal_is_bounded_over_restarts_and_keeps_the_newest(path: Path) -> None:
    for start in range(0, 50, 7):
        journal = Journal(path, 10)
        for number in range(start, start + 7):
            journal.add({"number": number})
            assert 1 <= len(entries(path)) <= 20
    numbers = [entry["number"] for entry in entries(path)]
    assert numbers == [*range(numbers[0], 56)] and len(numbers) >= 10
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_line_that_was_cut_off_costs_that_line_alone(path: Path) -> None:
    Journal(path, 10).add({"number": 1})
    path.write_bytes(path.read_bytes() + b'{"numb')
    Journal(path, 10).add({"number": 2})
    assert entries(path) == [{"number": 1}, {"number": 2}]


@given(st.lists(st.floats(2e-6, 1000), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_right_to_three_percent_however_counts_were_added_up(times: list[float], share: float) -> None:
    counts = Counter(map(bucket, times[::2])) + Counter(map(bucket, times[1::2]))
    exact = float(np.quantile(times, share, method="inverted_cdf"))
    assert quantile(counts, share) == pytest.approx(exact, rel=0.03)


def test_of_nothing_there_is_no_quantile_and_no_time_is_too_short() -> None:
    assert quantile({}, 0.5) is None
    assert bucket(0.0) == 0
