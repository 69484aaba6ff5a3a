"""Bets are fair, and what they refute is what lies beyond the bounds."""

from __future__ import annotations

import numpy as np
import pytest

from gati.promise.betting import LESS, MORE, log_gains, lower_bound, refuted, upper_bound

ONE = np.ones(1)
SHARES = np.array([1e-4, 0.001, 0.01, 0.02, 0.1, 0.5, 0.9, 0.999])


@pytest.mark.parametrize(("multiples", "worse"), [(MORE, 1.001), (LESS, 0.999)], ids=["more", "less"])
def test_capital_is_expected_to_stay_at_the_share_in_question_and_to_grow_only_beyond_it(
    multiples: np.ndarray, worse: float
) -> None:
    yes, no = (np.exp(log_gains(SHARES, ONE, np.array([each]), multiples))[:, 0] for each in (1.0, 0.0))
    assert SHARES * yes + (1 - SHARES) * no == pytest.approx(1)
    beyond = SHARES * worse
    assert (beyond * yes + (1 - beyond) * no > 1).all()
    short = SHARES / worse
    assert (short * yes + (1 - short) * no < 1).all()


@pytest.mark.parametrize("yes", [0, 1, 30, 970, 999, 1000])
def test_shares_below_the_lower_bound_are_refuted_and_none_above_and_so_with_the_upper_one(yes: int) -> None:
    drawn, found = np.array([1000]), np.array([yes])
    shares = np.arange(1, 1000) / 1000
    low, high = lower_bound(drawn, found, ONE, 0.05), upper_bound(drawn, found, ONE, 0.05)
    assert 0 <= low <= yes / 1000 <= high <= 1
    assert (refuted(shares, drawn, found, ONE, 0.05) == (shares <= low)).all()
    assert (refuted(shares, drawn, found, ONE, 0.05, LESS) == (shares >= high)).all()


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.2])
def test_twice_the_share_is_found_out_after_as_many_of_them_whichever_share_that_is(share: float) -> None:
    assert not refuted(share, np.array([30 / share]), np.array([30]), ONE, 0.05)
    assert refuted(share, np.array([15 / share]), np.array([30]), ONE, 0.05)


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.2])
def test_little_more_than_the_share_is_found_out_too_if_late(share: float) -> None:
    """A bet on twice the share alone would lose on 1.3 times as large a one, and for ever."""
    for errors, found in ((30, False), (600, True)):
        assert bool(refuted(share, np.array([errors / (1.3 * share)]), np.array([errors]), ONE, 0.05)) == found
    assert not refuted(share, np.array([600 / (1.3 * share)]), np.array([600]), ONE, 0.05, MORE[MORE >= 2])


def test_of_nothing_nothing_is_known() -> None:
    assert (lower_bound(0 * ONE, 0 * ONE, ONE, 0.05), upper_bound(0 * ONE, 0 * ONE, ONE, 0.05)) == (0, 1)
