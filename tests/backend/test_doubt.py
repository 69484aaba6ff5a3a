"""How much evidence a doubt asks for, when it is reopened."""

from __future__ import annotations

import pytest

from gati.promise.doubt import LEAST, Doubt

EPSILON, DELTA = 0.01, 0.05


def needed(doubt: Doubt) -> int:
    """Answers that agree until it is over."""
    count = 0
    while not doubt.over:
        doubt.take(1, 0)
        count += 1
    return count


def test_the_oftener_traffic_changed_and_all_went_well_the_less_is_gathered_again() -> None:
    doubt = Doubt(EPSILON, DELTA)
    new = needed(doubt)
    for times in range(1, 6):
        doubt.traffic_changed()
        assert needed(doubt) == pytest.approx(new / times, abs=1)
    doubt.suspect()
    assert needed(doubt) == pytest.approx(new, abs=1)
    doubt.traffic_changed()
    assert needed(doubt) == pytest.approx(new, abs=1), "after a suspicion, changes count anew"


def test_each_stretch_that_speaks_against_it_has_less_gathered_again_down_to_a_part() -> None:
    doubt = Doubt(EPSILON, DELTA)
    new = needed(doubt)
    for times in range(1, 8):
        doubt.suspect()
        assert needed(doubt) == pytest.approx(new * max(1 / times, LEAST), abs=1)
    doubt.narrow()
    assert needed(doubt) == new
    doubt.suspect()
    assert needed(doubt) == pytest.approx(new, abs=1), "about fewer heads, stretches count anew"


def test_a_change_while_it_is_open_asks_for_nothing_more_than_it_did() -> None:
    doubt = Doubt(EPSILON, DELTA)
    new = needed(doubt)
    doubt.begin()
    doubt.take(10, 0)
    doubt.traffic_changed()
    assert needed(doubt) == pytest.approx(new, abs=1)
