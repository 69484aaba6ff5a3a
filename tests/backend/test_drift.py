"""Whether answers have changed, on answers as they come: in random order, of popular classes, of a camera's scenes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gati.promise.drift import WINDOW, Drift
from gati_client.workload import hot

POOL = np.arange(1000) % 10
Random = np.random.Generator


def changes(classes: np.ndarray, count: int = 10, rows: int = 1) -> list[int]:
    """After how many answers each change is seen."""
    drift = Drift()
    scores = np.eye(count, dtype=np.float32)[classes]
    return [end for end in range(rows, len(scores) + 1, rows) if drift.take(scores[end - rows : end])]


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("dwell", [2000, 3000])
def test_other_popular_classes_are_seen_within_two_windows(dwell: int, share: float, rows: int) -> None:
    seen = changes(POOL[hot(POOL, 10 * dwell, seed=1, share=share, dwell=dwell)], rows=rows)
    for change in range(dwell, 10 * dwell, dwell):
        assert any(change < at <= change + 2 * WINDOW for at in seen), f"{change} in {seen}"
    assert len(seen) <= 12, "and little else"


STEADY: dict[str, Callable[[Random], np.ndarray]] = {
    "ten classes": lambda random: random.integers(0, 10, 20_000),
    "three classes": lambda random: random.integers(0, 3, 20_000),
    "a thousand classes": lambda random: random.integers(0, 1000, 20_000),
    "one class": lambda _random: np.zeros(5_000, int),
    "one class, mostly": lambda random: random.choice(10, size=20_000, p=[0.91] + 9 * [0.01]),
    "scenes of 30 frames": lambda random: np.repeat(random.integers(0, 10, 700), 30),
    "scenes of 300 frames": lambda random: np.repeat(random.integers(0, 10, 70), 300),
}


@pytest.mark.parametrize("name", STEADY)
def test_traffic_that_goes_on_as_before_is_hardly_ever_a_change(name: str) -> None:
    seen = [len(changes(STEADY[name](np.random.default_rng(seed)), 1000)) for seed in range(3)]
    assert sum(seen) <= 3, "of 300 windows"


def test_a_number_tells_of_no_change() -> None:
    drift, random = Drift(), np.random.default_rng(0)
    assert not any(drift.take(random.normal(place // 1000, 1, (8, 1)).astype(np.float32)) for place in range(1000))


def test_after_a_change_answers_are_held_against_those_since() -> None:
    classes = np.concatenate([np.random.default_rng(0).integers(0, 5, 3000), 5 + np.arange(6000) % 5])
    assert changes(classes) == [3000 + WINDOW]
