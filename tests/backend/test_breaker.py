"""The breaker: seldom a false alarm, soon a true one, and only where the evidence says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from gati.promise.breaker import BLOCK, MOST_BLOCKS, Alarm, Breaker
from gati.promise.doubt import LEAST
from gati.promise.draws import EAGER

EPSILON, DELTA = 0.01, 0.05
STREAMS = 1000
EXITS = (0, 2, 5)
FLIGHT = 10
"""Requests that are drawn together, where a simulation must be quick."""


def allowed(streams: int) -> float:
    """The share of streams that may break a promise of δ, and three times its noise."""
    return DELTA + 3 * float(np.sqrt(DELTA * (1 - DELTA) / streams))


def new(exits: tuple[int, ...] = EXITS) -> Breaker:
    return Breaker(EPSILON, DELTA, exits)


def tell(breaker: Breaker, drawn: int, differed: Iterable[int]) -> None:
    """Draws requests, and says of how many the answers differed, by exit."""
    number = breaker.draw(drawn)
    counts = [int(count) for count in differed]
    breaker.settle(number, drawn - sum(counts))
    for exit_, count in zip(breaker.open_exits, counts, strict=False):
        if count:
            breaker.settle(number, 0, count, exit_)


def audits_until_alarm(breaker: Breaker, differs: np.ndarray) -> int:
    """After how many requests it trips that differ so at the last exit; one more than there are where it does not."""
    for i, found in enumerate(differs):
        breaker.settle(breaker.draw(1), int(not found), int(found), EXITS[-1])
        if breaker.alarm:
            return i + 1
    return len(differs) + 1


# False alarms


def test_false_alarms_are_as_rare_as_promised_with_three_exits() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(STREAMS):
        breaker = new()
        for counts in random.multinomial(FLIGHT, [EPSILON / 2, EPSILON / 4, EPSILON / 4, 1 - EPSILON], 200):
            tell(breaker, FLIGHT, counts[:-1])
        alarms += breaker.alarm is not None
    assert alarms / STREAMS <= allowed(STREAMS)


def test_false_alarms_are_as_rare_when_the_share_of_audits_follows_the_evidence() -> None:
    """Requests are good and as bad as is allowed by turns, at moments that an adversary would choose."""
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(STREAMS):
        breaker = new()
        for _ in range(100):
            share = min(1, 0.1 * EAGER) if breaker.eager else 0.1
            drawn = int(random.binomial(4 * FLIGHT, share))
            tell(breaker, drawn, [random.binomial(drawn, 0 if breaker.eager and random.random() < 0.5 else EPSILON)])
        alarms += breaker.alarm is not None
    assert alarms / STREAMS <= allowed(STREAMS)


def scenes(share: float, run: int, requests: int, random: np.random.Generator) -> np.ndarray:
    """Which of the requests would be answered otherwise than by the backbone: whole scenes of them."""
    return np.repeat(random.random(requests // run) < share, run)


def watch(breaker: Breaker, differs: np.ndarray, random: np.random.Generator) -> int:
    """Draws requests as they are by default; after how many there was no doubt, or more than there are."""
    over = len(differs) + 1
    for place, (found, chance) in enumerate(zip(differs.tolist(), random.random(len(differs)).tolist(), strict=True)):
        if chance < (0.5 if breaker.eager else 0.02):
            breaker.settle(breaker.draw(1), int(not found), int(found), EXITS[-1])
        if not breaker.eager:
            over = min(over, place + 1)
    return over


@pytest.mark.parametrize("run", [10, 30])
def test_false_alarms_are_as_rare_where_scenes_are_wrong_as_a_whole(run: int) -> None:
    random, streams = np.random.default_rng(8), 40
    alarms = {}
    for together in (1.0, float(run)):
        breakers = [Breaker(EPSILON, DELTA, EXITS, together=together) for _ in range(streams)]
        for breaker in breakers:
            watch(breaker, scenes(0.6 * EPSILON, run, 6000, random), random)
        alarms[together] = np.mean([breaker.alarm is not None for breaker in breakers])
    assert alarms[run] <= DELTA < 3 * DELTA < alarms[1.0], "frames taken for independent close what keeps its promise"


def test_doubt_is_not_over_before_enough_scenes_were_seen() -> None:
    random, streams = np.random.default_rng(9), 60
    over = [watch(Breaker(EPSILON, 1e-9 + DELTA, EXITS, together=10.0), differs, random) for differs in
            (scenes(2 * EPSILON, 10, 6000, random) for _ in range(streams))]  # fmt: skip
    assert np.mean(np.array(over) <= 6000) <= allowed(streams)


def test_scenes_that_are_wrong_too_often_close_exits() -> None:
    random = np.random.default_rng(10)
    for together, run in ((10.0, 10), (1e6, 50)):  # what stands still is not waited for without end
        breaker = Breaker(EPSILON, DELTA, EXITS, together=together)
        watch(breaker, scenes(0.1, run, 20_000, random), random)
        assert breaker.alarm is not None and breaker.open_exits == EXITS[:-1]


def test_agreement_alone_opens_nothing_and_one_difference_does_not_either() -> None:
    breaker = new()
    tell(breaker, 1, [1])
    for _ in range(500):
        tell(breaker, FLIGHT, [0])
    tell(breaker, 1, [1])
    assert breaker.alarm is None
    assert (breaker.open_exits, breaker.closed_exits) == (EXITS, ())


# True alarms


@pytest.mark.parametrize("good", [0, 5000], ids="after {} good ones".format)
def test_a_stream_whose_agreement_drops_to_90_percent_trips_within_200_audits(good: int) -> None:
    random = np.random.default_rng(2)
    past = new()
    for count in random.binomial(FLIGHT, EPSILON / 4, good // FLIGHT):
        tell(past, FLIGHT, [count])
    assert past.alarm is None
    streams = random.random((60, 600)) < 0.10
    found = [audits_until_alarm(Breaker(EPSILON, DELTA, EXITS, past.state()), stream) for stream in streams]
    assert np.median(found) <= 200


def test_what_is_closed_stays_closed() -> None:
    breaker = new()
    for _ in range(10):
        tell(breaker, 1, [1])
    for _ in range(1000):
        tell(breaker, 1, [0])
    assert (breaker.open_exits, breaker.closed_exits) == ((), EXITS)
    assert breaker.alarm == Alarm(0, breaker.alarm.drawn, breaker.alarm.differed, breaker.alarm.lower)
    assert breaker.alarm.lower >= EPSILON
    assert breaker.alarm.differed <= breaker.alarm.drawn <= 10


@pytest.mark.parametrize("guilty", range(len(EXITS)), ids="the {}. exit".format)
def test_the_exit_that_lies_closes_and_those_behind_it_while_those_before_serve_on(guilty: int) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        breaker = new()
        shares = np.full(len(EXITS), EPSILON / 20)
        shares[guilty] = 0.05
        for _ in range(100):
            still = len(breaker.open_exits)
            tell(breaker, FLIGHT, random.multinomial(FLIGHT, [*shares[:still], 1 - shares[:still].sum()])[:-1])
        assert (breaker.open_exits, breaker.closed_exits) == (EXITS[:guilty], EXITS[guilty:])
        assert breaker.alarm is not None
        assert breaker.alarm.exit == EXITS[guilty]


def test_exits_that_each_keep_to_the_promise_and_break_it_together_close_from_where_it_breaks() -> None:
    breaker = new()
    for _ in range(100):
        tell(breaker, 125, [1, 0, 1][: len(breaker.open_exits)])
    assert breaker.open_exits == EXITS[:2]
    assert breaker.alarm is not None
    assert breaker.alarm.differed > EPSILON * breaker.alarm.drawn


def test_an_exit_before_those_that_are_closed_can_still_close() -> None:
    breaker = new()
    while breaker.alarm is None:
        tell(breaker, 5, [0, 0, 1])
    assert breaker.open_exits == EXITS[:2]
    while len(breaker.open_exits) == 2:
        tell(breaker, 5, [1, 0])
    assert breaker.closed_exits == EXITS


# The confidence sequence


def test_the_bounds_hold_at_all_times_together() -> None:
    random = np.random.default_rng(4)
    missed, last, streams = 0, [], 450
    for stream in range(streams):
        breaker, held, share = new(), True, (0.002, 0.01, 0.1)[stream % 3]
        for count in random.binomial(5 * FLIGHT, share, 12):
            number = breaker.draw(5 * FLIGHT)
            breaker.settle(number, 5 * FLIGHT - int(count), int(count), EXITS[0])
            lower, upper = breaker.bounds()
            held = held and lower <= share <= upper
        missed += not held
        last.append((lower / share, upper / share))
    assert missed / streams <= allowed(streams)
    assert np.median(last[2::3], axis=0) == pytest.approx([0.6, 1.4], abs=0.2), "and say something"


def test_the_bounds_say_when_the_share_has_changed() -> None:
    breaker = new()
    assert breaker.bounds() == (0, 1)
    for _ in range(300):
        tell(breaker, FLIGHT, [0])
    lower, upper = breaker.bounds()
    assert lower == 0
    assert upper < 0.003
    tell(breaker, 5 * FLIGHT, [2 * FLIGHT])
    lower, upper = breaker.bounds()
    assert lower > 0.1
    assert upper == 1


def test_an_audit_that_is_lost_or_late_counts_for_no_side() -> None:
    lost, clean = new(), new()
    for _ in range(40):
        tell(clean, FLIGHT, [0])
        lost.settle(lost.draw(FLIGHT), FLIGHT - 1)
    assert lost.bounds()[0] == clean.bounds()[0] == 0
    assert lost.bounds()[1] > 0.1 > clean.bounds()[1]
    late, prompt = new(), new()
    numbers = [late.draw(1) for _ in range(4 * BLOCK)]
    for i in range(4 * BLOCK):
        tell(prompt, 1, [i % 40 == 39])
    for i in reversed(range(4 * BLOCK)):
        late.settle(numbers[i], int(i % 40 != 39), int(i % 40 == 39), EXITS[0])
    assert late.bounds() == prompt.bounds()
    assert late.bounds()[0] > 0


# Audits that adapt


def test_it_is_eager_until_it_is_known_that_little_differs() -> None:
    breaker = new()
    tell(breaker, 290, [0])
    assert breaker.eager
    tell(breaker, 10, [0])
    assert not breaker.eager
    doubtful = new()
    for _ in range(6):
        tell(doubtful, 100, [1])
    assert doubtful.eager, "as many as are allowed take longer"


def test_it_is_eager_again_when_something_speaks_against_the_release() -> None:
    breaker = new()
    tell(breaker, 1000, [0])
    assert not breaker.eager
    tell(breaker, 2, [1])
    for _ in range(29):
        tell(breaker, FLIGHT, [0])
        assert breaker.eager
    tell(breaker, FLIGHT, [0])
    assert not breaker.eager


def test_it_is_eager_while_audits_are_on_their_way() -> None:
    breaker = new()
    number = breaker.draw(1000)
    assert breaker.eager
    breaker.settle(number, 1000)
    assert not breaker.eager


def test_it_is_eager_again_when_its_heads_go_live_again() -> None:
    past = new()
    tell(past, 1000, [0])
    assert not past.eager
    past.went_live()
    for breaker in past, Breaker(EPSILON, DELTA, EXITS, past.state()):
        assert breaker.eager
        tell(breaker, 300, [0])
        assert not breaker.eager


def until_known(breaker: Breaker) -> int:
    """How many requests it takes that agree."""
    for count in range(1, 1000):
        breaker.settle(breaker.draw(1), 1)
        if not breaker.eager:
            return count
    raise AssertionError


def test_it_is_eager_the_shorter_the_oftener_what_spoke_against_the_release_came_to_nothing() -> None:
    breaker = Breaker(EPSILON, DELTA, EXITS)
    new, needed = until_known(breaker), []
    for _ in range(6):
        breaker.settle(breaker.draw(500), 500)
        breaker.settle(breaker.draw(1), 0, 1, 0)
        assert breaker.eager
        needed.append(until_known(breaker))
    np.testing.assert_allclose(needed, [new * max(1 / times, LEAST) for times in range(1, 7)], atol=1)
    assert not breaker.alarm


def test_it_is_eager_again_when_traffic_changes_and_the_less_the_oftener_that_went_well() -> None:
    breaker = Breaker(EPSILON, DELTA, EXITS)
    new = until_known(breaker)
    needed = []
    for _ in range(4):
        breaker.traffic_changed()
        assert breaker.eager
        needed.append(until_known(breaker))
    np.testing.assert_allclose(needed, [new / changes for changes in range(1, 5)], atol=1)
    for _ in range(3):
        breaker.traffic_changed()
        breaker.settle(breaker.draw(1), 1)
    assert until_known(breaker) >= new / 5 - 1, "none of these went well yet"
    breaker.traffic_changed()
    breaker.settle(breaker.draw(1), 0, 1, 0)
    assert until_known(breaker) > new / 6 + 50, "what differs meanwhile is made up for"
    for _ in range(3):
        breaker.settle(breaker.draw(1), 0, 1, 0)
    assert until_known(breaker) > new, "something spoke against it"
    breaker.traffic_changed()
    assert until_known(breaker) == new, "as of the first change"


def test_it_is_eager_about_exits_that_are_left_and_about_no_others() -> None:
    breaker = new()
    for _ in range(20):
        tell(breaker, 1, [0, 0, 1])
    assert breaker.open_exits == EXITS[:2]
    assert breaker.eager
    tell(breaker, 300, [0])
    assert not breaker.eager
    breaker.settle(breaker.draw(1), 0, 1, EXITS[2])
    assert not breaker.eager, "one that is late"
    for _ in range(20):
        tell(breaker, 1, [1])
    assert not breaker.open_exits
    assert not breaker.eager


# What it says of itself


def grown() -> Breaker:
    random = np.random.default_rng(5)
    breaker = new()
    for count in random.binomial(FLIGHT, EPSILON, 1500):
        tell(breaker, FLIGHT, [0, 0, int(count)])
    return breaker


def test_what_it_knows_stays_small() -> None:
    blocks = np.array(grown().state()["blocks"])
    assert len(blocks) <= MOST_BLOCKS
    assert blocks[:, 1].sum() == 1500 * FLIGHT
    assert (blocks[-10:, 1] == BLOCK).all(), "of late, bets start often"
    assert blocks[0, 1] > 10 * BLOCK, "and seldom long ago"


def test_one_that_goes_on_from_what_another_said_is_the_same() -> None:
    breaker = grown()
    again = Breaker(EPSILON, DELTA, EXITS, json.loads(json.dumps(breaker.state())))
    for each in (breaker, again):
        while each.alarm is None:
            tell(each, 4, [1])
    assert again.state() == breaker.state()
    closed = Breaker(EPSILON, DELTA, EXITS, json.loads(json.dumps(breaker.state())))
    assert (closed.open_exits, closed.alarm) == ((), breaker.alarm)
    assert closed.bounds() == breaker.bounds()


GOOD = [0, 9, 8, 1, 0, 0]


@pytest.mark.parametrize(
    "past",
    [
        {},
        {"alarm": None},
        {"alarm": {"exit": 0, "drawn": "9", "differed": 1, "lower": 0.1}, "blocks": [GOOD]},
        {"alarm": None, "blocks": []},
        {"alarm": None, "blocks": 3},
        {"alarm": None, "blocks": [[0, 9]]},
        {"alarm": None, "blocks": [GOOD[:-1]]},
        {"alarm": None, "blocks": [[0, 9, 9, 1, 0, 0]]},
        {"alarm": None, "blocks": [[0, 9, 10, -1, 0, 0]]},
        {"alarm": None, "blocks": [[0, 9.5, 8, 1, 0, 0]]},
        {"alarm": None, "blocks": [[1, *GOOD[1:]]]},
        {"alarm": None, "blocks": [GOOD, GOOD]},
        {"alarm": {"exit": 1, "drawn": 9, "differed": 3, "lower": 0.02}, "blocks": [GOOD]},
        {"alarm": {"exit": 2}, "blocks": [GOOD]},
        {"alarm": "yes", "blocks": [GOOD]},
        {"alarm": None, "left": float("nan"), "blocks": [GOOD]},
        {"alarm": None, "left": "much", "blocks": [GOOD]},
        {"alarm": None, "left": [], "blocks": [GOOD]},
    ],
    ids=str,
)
def test_what_no_breaker_says_is_refused(past: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Breaker(EPSILON, DELTA, EXITS, past)
    Breaker(EPSILON, DELTA, EXITS, {"alarm": None, "blocks": [GOOD]})
