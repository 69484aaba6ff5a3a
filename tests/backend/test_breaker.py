"""The breaker: seldom a false alarm, and soon a true one."""

from __future__ import annotations

import numpy as np

from gati.breaker import Breaker

EPSILON, DELTA = 0.01, 0.05
STREAMS = 1000


def trips(share: float, length: int, streams: int, seed: int) -> np.ndarray:
    """After how many audits the breaker opened, `length` + 1 where it did not."""
    random = np.random.default_rng(seed)
    found = np.full(streams, length + 1)
    for stream in range(streams):
        breaker = Breaker(EPSILON, DELTA)
        for i, differs in enumerate(random.random(length) < share):
            breaker.observe(bool(differs))
            if breaker.open:
                found[stream] = i + 1
                break
    return found


def test_false_alarms_are_as_rare_as_promised() -> None:
    alarms = (trips(EPSILON, 500, STREAMS, 0) <= 500).mean()
    noise = 3 * np.sqrt(DELTA * (1 - DELTA) / STREAMS)
    assert alarms <= DELTA + noise


def test_heads_that_agree_nine_times_in_ten_are_found_out_within_200_audits() -> None:
    assert np.median(trips(0.10, 2000, 200, 1)) <= 200


def test_it_stays_open() -> None:
    breaker = Breaker(EPSILON, DELTA)
    for _ in range(100):
        breaker.observe(True)
    for _ in range(1000):
        breaker.observe(False)
    assert breaker.open


def test_agreement_alone_never_opens_it() -> None:
    breaker = Breaker(EPSILON, DELTA)
    for _ in range(5000):
        breaker.observe(False)
    assert not breaker.open


def test_a_single_difference_does_not_open_it() -> None:
    breaker = Breaker(EPSILON, DELTA)
    breaker.observe(True)
    assert not breaker.open
