"""What may yet differ, and how requests are drawn by it: whatever comes, answers keep to the promise."""

from __future__ import annotations

import numpy as np
import pytest

from gati.promise.breaker import Breaker
from gati.promise.budget import MOST, START, Budget
from gati.promise.draws import EAGER, NONE, Draws

EPSILON, DELTA = 0.01, 0.05
USUAL = 0.02
EAGERLY = USUAL * EAGER


class Heads:
    """Heads that differ on a share of requests, to one client, audited as they are served."""

    def __init__(self, seed: int, usual: float = USUAL, busy: bool = False) -> None:
        self.breaker = Breaker(EPSILON, DELTA, (0,))
        self.busy = busy
        self.draws = Draws(usual, EPSILON, lambda: self.busy)
        self.random = np.random.default_rng(seed)
        self.answered = self.differed = self.held = 0

    def asked(self, requests: int, share: float) -> None:
        for chance, differs in zip(self.random.random(requests), self.random.random(requests) < share, strict=True):
            self.answered += 1
            if not self.breaker.open_exits:
                continue
            how = self.draws.chance(self.breaker)
            self.draws.answered(self.breaker, 1)
            drawn = chance < how.share
            self.held += drawn and how.held
            self.differed += differs and not (drawn and how.held)
            if drawn:
                self.breaker.settle(self.breaker.draw(1), int(not differs), int(differs), 0, how.price)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("usual", [USUAL, 0.005, 0.5])
@pytest.mark.parametrize("share", [0.015, 0.02, 0.04, 0.3])
def test_a_new_release_that_differs_too_often_keeps_to_the_promise_all_the_same(
    share: float, usual: float, busy: bool
) -> None:
    for seed in range(5):
        heads = Heads(seed, usual, busy)
        eagerly = min(1.0, usual * EAGER)
        for _ in range(8):
            heads.asked(500, share)
            allowed = EPSILON * heads.answered + (START + 1) / eagerly
            unseen = 4 * np.sqrt(
                allowed * (1 - eagerly) / eagerly
            )  # of what differs, how much audits may not have drawn
            assert heads.differed <= allowed + unseen


def test_where_everything_is_audited_no_more_differs_than_the_budget_holds() -> None:
    heads = Heads(1, usual=1.0)
    for share in (0.0, 0.02, 0.011, 0.5):
        heads.asked(1_000, share)
        assert heads.differed <= EPSILON * heads.answered + START + 1


def test_heads_that_turn_bad_after_good_times_have_no_more_than_these_saved() -> None:
    heads = Heads(2, usual=1.0)
    heads.asked(20_000, 0.0)
    assert heads.breaker.budget.left == MOST
    heads.asked(2_000, 0.013)
    assert 0 < heads.differed <= EPSILON * 2_000 + MOST + 1


@pytest.mark.parametrize(("share", "held"), [(0.002, 0.0), (0.006, 0.01), (0.008, 0.05)])
def test_heads_that_keep_the_promise_are_hardly_ever_held(share: float, held: float) -> None:
    many = [Heads(seed) for seed in range(10)]
    for heads in many:
        heads.asked(5_000, share)
        assert heads.breaker.open_exits
    assert np.mean([heads.held / heads.answered for heads in many]) <= held


def test_while_the_budget_is_overdrawn_every_request_is_drawn_and_left_to_the_backbone() -> None:
    breaker, draws = Breaker(EPSILON, DELTA, (0, 1)), Draws(USUAL, EPSILON, lambda: False)
    assert draws.chance(breaker) == (EAGERLY, False, 1.0)
    breaker.settle(breaker.draw(100), 98, 2, 1)
    assert breaker.budget.overdrawn and breaker.alarm is None
    assert draws.chance(breaker) == (1.0, True, 0.0)
    breaker.settle(breaker.draw(5), 0, 1, 1, 0.0)
    missing = -breaker.budget.left
    assert 0 < missing <= 0.5, "what is found meanwhile costs nothing: nobody was told"
    draws.answered(breaker, int(missing / (EPSILON * EAGERLY)) + 1)
    assert draws.chance(breaker) == (EAGERLY, False, 1.0)


@pytest.mark.parametrize("eager", [True, False])
def test_what_a_difference_costs_is_what_it_stands_for(eager: bool) -> None:
    busy = False
    breaker, draws = Breaker(EPSILON, DELTA, (0,)), Draws(USUAL, EPSILON, lambda: busy)
    if not eager:
        breaker.settle(breaker.draw(1000), 1000)
    assert draws.chance(breaker) == ((EAGERLY, False, 1.0) if eager else (USUAL, False, 1.0))
    busy = True
    assert draws.chance(breaker) == ((EAGERLY, True, 1 - EAGERLY) if eager else (USUAL, True, 1 - USUAL))


def test_heads_that_differ_just_while_too_many_audits_wait_are_found_out() -> None:
    closed = []
    for seed in range(8):
        heads = Heads(seed)
        heads.asked(5_000, 0.0)
        assert not heads.breaker.eager
        for _ in range(12):
            for busy, share in ((False, 0.0), (True, 0.06)):
                heads.busy = busy
                heads.asked(500, share)
        closed.append(heads.breaker.alarm is not None)
    assert np.mean(closed) >= 0.75


def test_a_promise_that_no_answer_breaks_is_not_audited() -> None:
    breaker = Breaker(1 - 1e-9, 0.05, (0,))
    assert Draws(0.02, 1 - 1e-9).chance(breaker) == NONE != Draws(0.02, 0.5).chance(Breaker(0.5, 0.05, (0,)))


def test_where_nothing_is_audited_nothing_is_drawn_or_held() -> None:
    breaker = Breaker(EPSILON, DELTA, (0,))
    breaker.budget.spend(100)
    assert Draws(0.0, EPSILON).chance(breaker).share == 0


def test_what_is_overdrawn_is_forgiven_when_who_did_it_is_closed_and_outlives_a_restart_else() -> None:
    breaker = Breaker(EPSILON, DELTA, (0, 1))
    breaker.settle(breaker.draw(200), 196, 4, 1)
    again = Breaker(EPSILON, DELTA, (0, 1), breaker.state())
    assert again.budget.left == breaker.budget.left < 0
    while breaker.alarm is None:
        breaker.settle(breaker.draw(1), 0, 1, 1)
    assert breaker.open_exits == (0,)
    assert breaker.budget.left == START
    breaker.settle(breaker.draw(5), 0, 5, 1)  # was on its way when its exit closed
    assert breaker.budget.left == START
    breaker.settle(breaker.draw(50), 48, 2, 0)
    assert Breaker(EPSILON, DELTA, (0, 1), breaker.state()).budget.left == START - 2
    old = breaker.state()
    del old["left"]
    assert Breaker(EPSILON, DELTA, (0, 1), old).budget.left == START


def test_a_budget_holds_no_more_than_the_most_that_there_may_be() -> None:
    budget = Budget(3 * MOST)
    assert budget.left == MOST
    budget.earn(1)
    assert budget.left == MOST
    budget.renew()
    assert budget.left == MOST
