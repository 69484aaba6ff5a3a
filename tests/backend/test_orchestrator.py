"""The orchestrator on a chain whose segments and heads are written here, so that every step can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from handmade import toy_chain

from gati.errors import GatiError, RequestError, UnavailableError
from gati.inference.engine import Shortcuts, Stage
from gati.inference.head import Prediction
from gati.inference.state import CLASS_MIX, MEMORY_ANSWERS, MEMORY_KEYS, HeadState
from gati.inference.steps import Leave, MissedRows
from gati.promise.breaker import Breaker
from gati.promise.draws import EAGER, Draws
from gati.repository.chain import Segment
from gati.serving.audits import Audit
from gati.serving.bypass import Bypass
from gati.serving.flight import BACKBONE, Answer, Flight, Request, StageRun
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Orchestrator

CHAIN = toy_chain()
LAST = len(CHAIN.segments) - 1


class House:
    """Engine, heads, observer and client in one: what happens is noted in `events`, in order.

    A row is [exit, answer, lie, 0]: head `exit` is sure of it, and the heads answer `lie` and the backbone `answer`.
    """

    def __init__(
        self, chain: Any = CHAIN, audit: float = 0, fails: dict[int, Exception] | None = None, cut: int | None = None
    ) -> None:
        self.busy = False
        self.chain = chain
        self.events: list[Any] = []
        self.told: dict[str, Answer | GatiError] = {}
        self.flights: list[Flight] = []
        self.audits: list[Audit] = []
        self.agreed: list[bool] = []
        self.ran: list[int] = []
        self.fails = fails or {}
        self.failed_heads: list[int] = []
        self.unjoined: list[Exception] = []
        self.broken: set[int] = set()
        self.ready = {0, 1}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.keys = False
        self.rows = 1
        self.live = self.release(1)
        draws = Draws(audit, chain.epsilon, lambda: self.busy)
        self.orchestrator = Orchestrator(chain, lambda: self.live, self, self.audit_later, draws, cut)

    def audit_later(self, audit: Audit) -> None:
        if audit.at == LAST:
            self.orchestrator.audit(audit)
        else:
            self.audits.append(audit)

    def release(self, number: int) -> LiveRelease:
        state = {i: HeadState(self.shapes) for i in (0, 1)}
        return LiveRelease(number, self.load_stages(), self, state, Breaker(0.01, 0.05, (0, 1)))

    def load_stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(s.index, s.inputs, self.runner(s.index)) for s in self.chain.segments)

    def runner(self, index: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        return lambda feeds: self.run_segment(index, feeds)

    def run_segment(self, index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        self.events.append(("segment", index, len(next(iter(feeds.values())))))
        if index in self.fails:
            raise self.fails[index]
        value = next(iter(feeds.values()))
        return np.eye(4, dtype=np.float32)[value[:, 1].astype(int)] if index == LAST else value

    def predict(self, index: int, hidden: np.ndarray, state: dict[str, np.ndarray]) -> Prediction | None:
        self.events.append(("head", index, len(hidden)))
        if index in self.broken:
            raise ZeroDivisionError
        if index not in self.ready:
            return None
        answers = np.eye(4, dtype=np.float32)[hidden[:, 2].astype(int)]
        return Prediction(answers, hidden[:, 0] == index, hidden[:, :2] if self.keys else None)

    def run(self, inputs: dict[str, np.ndarray], state: dict[int, HeadState], leave: Leave) -> list[MissedRows]:
        """Joined: rows leave where they say."""
        x = inputs["x"]
        self.events.append(("joined", len(x)))
        if self.fails:
            raise ValueError("what is joined does not say what failed in it")
        exits = np.minimum(x[:, 0], LAST).astype(int)
        answers = np.eye(4, dtype=np.float32)[np.where(exits == LAST, x[:, 1], x[:, 2]).astype(int)]
        for exit_ in np.unique(exits):
            leave(np.flatnonzero(exits == exit_), answers[exits == exit_], int(exit_))
        missed = [np.flatnonzero(exits > index) for index in range(LAST)]
        return [MissedRows(index, rows, x[rows, :2]) for index, rows in enumerate(missed) if len(rows) and self.keys]

    def timed(self, runs: Sequence[StageRun]) -> None:
        self.ran += [one.segment for one in runs if one.seconds >= 0 and not one.joined]

    def head_failed(self, index: int, error: Exception) -> None:
        self.failed_heads.append(index)

    def joined_failed(self, error: Exception) -> None:
        self.unjoined.append(error)

    def served(self, flight: Flight) -> None:
        self.flights.append(flight)

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        self.agreed += agreed.tolist()

    def request(self, name: str, *rows: Sequence[float], exact: bool = False) -> Request:
        def reply(answer: Answer | GatiError, _: bool) -> None:
            self.events.append(("reply", name))
            assert name not in self.told, "a request is replied to once"
            self.told[name] = answer

        return Request({"x": np.array(rows, np.float32)}, exact, reply)

    def exits(self, name: str) -> list[int]:
        answer = self.told[name]
        assert isinstance(answer, Answer)
        return answer.exit[:, 0].tolist()

    def labels(self, name: str) -> list[int]:
        answer = self.told[name]
        assert isinstance(answer, Answer)
        return answer.output.argmax(1).tolist()


def whole(house: House) -> Stage:
    """The backbone of a house as one stage."""
    return Stage(LAST, ("x",), lambda feeds: house.run_segment(LAST, dict(feeds)))


def test_what_no_head_is_asked_about_goes_through_the_backbone_whole() -> None:
    house = House()
    house.live = replace(house.live, shortcuts=Shortcuts(whole=whole(house)))
    house.orchestrator.serve([house.request("exact", [0, 1, 2, 0], exact=True)])
    assert house.events == [("segment", LAST, 1), ("reply", "exact")]
    assert house.exits("exact") == [LAST] and house.labels("exact") == [1]


def test_stage_by_stage_where_hidden_state_is_recorded_on_the_way() -> None:
    house = House(cut=0)
    house.live = replace(house.live, shortcuts=Shortcuts(whole=whole(house)))
    house.orchestrator.serve([house.request("exact", [0, 1, 2, 0], exact=True)])
    assert [event for event in house.events if event[0] == "segment"] == [("segment", i, 1) for i in range(LAST + 1)]


@pytest.mark.parametrize("bypasses", [True, False])
def test_heads_that_do_not_pay_are_bypassed_where_their_costs_are_known(bypasses: bool) -> None:
    house = House()
    costs = {0: 0.3, 1: 0.7, LAST: 1.2} if bypasses else {}
    house.live = replace(house.live, shortcuts=Shortcuts(whole=whole(house)), bypass=Bypass(costs))
    for i in range(600):
        house.orchestrator.serve([house.request(f"hard {i}", [9, 1, 2, 0])])
    house.events.clear()
    house.orchestrator.serve([house.request("easy", [0, 1, 2, 0])])
    assert house.events[0] == ("segment", LAST if bypasses else 0, 1)
    assert house.flights[-1].bypasses == bypasses
    assert house.exits("easy") == [LAST if bypasses else 0]


def test_heads_that_are_left_open_are_bypassed_where_they_do_not_pay() -> None:
    house = House()
    house.live = replace(house.live, breaker=Breaker(0.01, 0.05, (0,)), bypass=Bypass({0: 0.3, 1: 0.7, LAST: 1.2}))
    for i in range(600):
        house.orchestrator.serve([house.request(f"hard {i}", [9, 1, 2, 0])])
    assert house.flights[-1].bypasses and not house.flights[0].bypasses


def test_what_is_answered_past_the_heads_counts_in_the_mix_of_answers() -> None:
    house = House()
    house.shapes = {CLASS_MIX: (4,)}
    house.live = replace(
        house.release(1), shortcuts=Shortcuts(whole=whole(house)), bypass=Bypass({0: 0.3, 1: 0.7, LAST: 1.2})
    )
    house.live.bypass.saw([LAST] * 1000)
    for i in range(100):
        house.orchestrator.serve([house.request(f"hard {i}", [9, 3, 2, 0])])
    assert house.flights[-1].bypasses
    for state in house.live.state.values():
        assert state.feeds()[CLASS_MIX].argmax() == 3
        mixed = HeadState(house.shapes)
        for flight in house.flights:
            mixed.count(flight.output)
        np.testing.assert_allclose(state.feeds()[CLASS_MIX], mixed.feeds()[CLASS_MIX], rtol=1e-6)


def test_what_no_head_was_asked_about_says_nothing_of_what_heads_save() -> None:
    house = House()
    house.live = replace(house.live, bypass=Bypass({0: 0.3, 1: 0.7, LAST: 1.2}))
    house.orchestrator.serve([house.request("exact", [9, 1, 2, 0], exact=True)])
    assert house.live.bypass.cost == 0
    rows = [[0, 1, 1, 0], [np.nan, 1, 1, 0]]
    with np.errstate(invalid="ignore"):
        house.orchestrator.serve([house.request("both", *rows)])
    assert 0 < house.live.bypass.cost < 0.3, "of the one row that a head might answer"


def test_hits_leave_before_the_misses_of_their_batch_go_on() -> None:
    house = House()
    requests = [
        house.request("hard", [9, 1, 2, 0]),
        house.request("easy", [0, 1, 2, 0]),
        house.request("so so", [1, 3, 3, 0]),
    ]
    house.orchestrator.serve(requests)
    assert house.events == [
        ("segment", 0, 3),
        ("head", 0, 3),
        ("reply", "easy"),
        ("segment", 1, 2),
        ("head", 1, 2),
        ("reply", "so so"),
        ("segment", 2, 1),
        ("reply", "hard"),
    ]
    assert [house.labels(name) for name in ("easy", "so so", "hard")] == [[2], [3], [1]]
    assert [house.exits(name) for name in ("easy", "so so", "hard")] == [[0], [1], [LAST]]


def test_rows_of_one_request_find_their_own_answers() -> None:
    house = House()
    house.orchestrator.serve([house.request("a", [9, 1, 2, 0], [0, 1, 2, 0], [1, 1, 3, 0], [9, 0, 3, 0])])
    assert house.exits("a") == [LAST, 0, 1, LAST]
    assert house.labels("a") == [1, 2, 3, 0]
    answer = house.told["a"]
    assert isinstance(answer, Answer)
    assert answer.release[:, 0].tolist() == [BACKBONE, 1, 1, BACKBONE]


def test_a_batch_of_hits_ends_at_its_head() -> None:
    house = House()
    house.orchestrator.serve([house.request("a", [0, 1, 1, 0], [0, 2, 2, 0])])
    assert ("segment", 1, 2) not in house.events
    assert house.exits("a") == [0, 0]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        pytest.param(UnavailableError("segment 1 is away."), "segment 1 is away.", id="expected"),
        pytest.param(
            ZeroDivisionError("/usr/lib/secret.py"), "toy failed on this request; the server's log says more.", id="bug"
        ),
    ],
)
def test_a_failing_segment_fails_only_who_still_waits(error: Exception, says: str) -> None:
    house = House(fails={1: error})
    requests = [house.request("hard", [9, 1, 2, 0]), house.request("easy", [0, 1, 2, 0])]
    if isinstance(error, GatiError):
        house.orchestrator.serve(requests)
    else:
        with pytest.raises(ZeroDivisionError):  # for the log
            house.orchestrator.serve(requests)
    assert house.exits("easy") == [0]
    assert str(house.told["hard"]) == says


@pytest.mark.parametrize("error", [RequestError("there is no word 7"), IndexError("as an engine has it")])
@pytest.mark.parametrize("joined", [False, True])
def test_what_one_request_asks_for_that_can_not_be_is_not_the_others_fault(
    joined: bool, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = cascading(4, fails={99: ValueError()}) if joined else House()
    run = house.run_segment

    def refusing(index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if (next(iter(feeds.values()))[:, 3] == 7).any():
            raise error
        return run(index, feeds)

    monkeypatch.setattr(house, "run_segment", refusing)
    requests = [house.request(name, [9, 1, 2, number]) for name, number in (("a", 0), ("b", 7), ("c", 0))]
    with suppress(IndexError):  # for the log
        house.orchestrator.serve(requests)
    assert house.exits("a") == house.exits("c") == [LAST]
    assert ("there is no word 7" if isinstance(error, RequestError) else "log says more") in str(house.told["b"])
    assert [flight.rows for flight in house.flights] == [1, 1]


def test_a_failing_head_is_a_miss_and_is_told() -> None:
    house = House()
    house.broken = {0}
    house.orchestrator.serve([house.request("a", [0, 1, 2, 0], [1, 3, 3, 0])])
    assert house.exits("a") == [LAST, 1]
    assert house.failed_heads == [0]


@pytest.mark.parametrize("why", ["exact", "nan", "no release", "breaker open", "not ready"])
def test_the_backbone_answers_where_no_head_may(why: str) -> None:
    house = House()
    row = [0, 1, 2, np.nan if why == "nan" else 0]
    if why == "no release":
        house.live = replace(house.release(0), heads=None, state={})
    if why == "breaker open":
        house.live.breaker.open_exits = ()
    if why == "not ready":
        house.ready = set()
    house.orchestrator.serve([house.request("a", row, exact=why == "exact")])
    assert (house.exits("a"), house.labels("a")) == ([LAST], [1])
    looked = [event for event in house.events if event[0] == "head"]
    assert bool(looked) == (why == "not ready")


def test_a_bad_row_does_not_keep_its_neighbours_from_hitting() -> None:
    house = House()
    house.orchestrator.serve([house.request("a", [0, 1, 2, 0], [0, 1, 2, np.nan], [0, 1, 2, 0])])
    assert house.exits("a") == [0, LAST, 0]


def test_one_release_answers_a_flight_though_another_comes_meanwhile() -> None:
    house = House()
    run = house.run_segment

    def swap(index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if index == 1:
            house.live = house.release(2)
        return run(index, feeds)

    house.run_segment = swap  # type: ignore[method-assign]
    house.orchestrator.serve([house.request("a", [0, 1, 1, 0], [1, 1, 1, 0])])
    house.orchestrator.serve([house.request("b", [1, 1, 1, 0])])
    releases = [answer.release[:, 0].tolist() for answer in house.told.values() if isinstance(answer, Answer)]
    assert releases == [[1, 1], [2]]


def test_inputs_that_later_segments_read_are_carried_past_the_exits() -> None:
    seen = {}
    chain = toy_chain(inputs=("x", "mask"))
    first, second, third = chain.segments
    carried: tuple[Segment, ...] = (replace(first, inputs=("x",)), second, replace(third, inputs=("cut1", "mask")))
    house = House(replace(chain, segments=carried))
    run = house.run_segment

    def note(index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        seen[index] = {name: value[:, 3].tolist() for name, value in feeds.items()}
        return run(index, feeds)

    house.run_segment = note  # type: ignore[method-assign]
    request = house.request("a", [0, 1, 1, 5], [9, 1, 1, 6], [1, 1, 1, 7], [9, 1, 1, 8])
    request.inputs["mask"] = request.inputs["x"] + 10
    house.orchestrator.serve([request])
    assert seen == {0: {"x": [5, 6, 7, 8]}, 1: {"cut0": [6, 7, 8]}, 2: {"cut1": [6, 8], "mask": [16, 18]}}


def test_what_goes_on_at_a_cut_point_is_kept_of_all_rows_in_place_of_the_inputs() -> None:
    chain = toy_chain(inputs=("x", "mask"))
    first, second, third = chain.segments
    carried = (replace(first, inputs=("x",)), second, replace(third, inputs=("cut1", "mask")))
    house = House(replace(chain, segments=carried), audit=1, cut=0)
    requests = [house.request("a", [0, 1, 1, 5], [9, 1, 1, 6]), house.request("b", [1, 1, 1, 7], [9, 1, 1, 8])]
    for request in requests:
        request.inputs["mask"] = request.inputs["x"] + 10
    house.orchestrator.serve(requests)
    (flight,) = house.flights
    first_kept, second_kept = flight.kept_of(0), flight.kept_of(1)
    assert {name: value[:, 3].tolist() for name, value in first_kept.items()} == {"cut0": [5, 6], "mask": [15, 16]}
    assert {name: value[:, 3].tolist() for name, value in second_kept.items()} == {"cut0": [7, 8], "mask": [17, 18]}
    assert all(value.base is None for value in second_kept.values()), "or a row would hold its batch in memory"
    assert [audit.kept["cut0"][:, 3].tolist() for audit in house.audits if audit.kept] == [[5], [7]]


def test_where_a_head_before_may_answer_no_features_are_kept_not_even_of_misses() -> None:
    house = House(audit=1, cut=1)
    house.orchestrator.serve([house.request("a", [9, 1, 1, 0])])
    house.orchestrator.serve([house.request("b", [0, 1, 1, 0], [9, 1, 1, 0])])
    assert [flight.kept for flight in house.flights] == [None, None]
    assert [audit.kept for audit in house.audits] == [None]
    house.live = replace(house.live, state={1: HeadState({})}, breaker=Breaker(0.01, 0.05, (1,)))
    house.orchestrator.serve([house.request("c", [1, 1, 1, 5], [9, 1, 1, 6])])
    assert house.flights[-1].kept_of(0)["cut1"][:, 3].tolist() == [5, 6]


def test_every_hit_is_audited_at_a_share_of_one_and_judged_by_the_backbone() -> None:
    house = House(audit=1)
    house.orchestrator.serve([house.request("a", [0, 1, 1, 0], [9, 1, 2, 0], [0, 1, 2, 0], [1, 3, 3, 0])])
    assert [(audit.index, len(audit.served)) for audit in house.audits] == [(0, 2), (1, 1)]
    for audit in house.audits:
        house.orchestrator.audit(audit)
    assert house.agreed == [True, False, True]


def test_no_hit_is_audited_at_a_share_of_zero() -> None:
    house = House(audit=0)
    house.orchestrator.serve([house.request("a", *[[0, 1, 2, 0]] * 8)])
    assert not house.audits


def test_a_request_is_drawn_before_anything_is_known_of_it_and_hits_are_judged_later() -> None:
    house = House(audit=1)
    rows = [[0, 1, 1, 0], [9, 1, 2, 0], [9, 1, 2, np.nan], [1, 1, 3, 0]]
    house.orchestrator.serve([house.request("a", *rows)])
    house.orchestrator.serve([house.request("exact", [0, 1, 1, 0], exact=True)])
    assert house.live.breaker.state()["blocks"] == [[0, 3, 1, 0, 0]], "the miss agrees, the hits are open"
    while house.audits:
        house.orchestrator.audit(house.audits.pop())
    assert house.live.breaker.state()["blocks"] == [[0, 3, 2, 0, 1]]


def test_which_stages_ran_is_told_of_requests_and_of_audits() -> None:
    house = House(audit=1)
    house.orchestrator.serve([house.request("a", [1, 1, 1, 0])])
    assert [ran.segment for ran in house.flights[0].runs] == [0, 1] and house.ran == []
    house.orchestrator.audit(house.audits.pop())
    assert house.ran == [2]


def known_to_be_good(house: House) -> Breaker:
    breaker = house.live.breaker
    breaker.settle(breaker.draw(1000), 1000)
    assert not breaker.eager
    return breaker


@pytest.mark.parametrize("doubt", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_while_too_many_audits_wait_the_backbone_answers_what_is_drawn(joined: bool, doubt: bool) -> None:
    house = cascading(rows=5, audit=1) if joined else House(audit=1)
    house.busy = True
    if not doubt:
        known_to_be_good(house)
    rows = [[0, 1, 2, 0], [9, 1, 2, 0], [1, 3, 3, 0], [0, 1, 1, 0], [0, 1, 2, np.nan]]
    house.orchestrator.serve([house.request("a", *rows), house.request("exact", [0, 1, 2, 0], exact=True)])
    assert not house.audits
    assert (house.exits("a"), house.labels("a")) == ([LAST] * 5, [1, 1, 3, 1, 1])
    assert house.agreed == [False, True, True]
    before = [] if doubt else [[0, 1000, 1000, 0, 0]]
    assert house.live.breaker.state()["blocks"] == [*before, [len(before), 4, 3, 1, 0]]
    assert not house.unjoined


@pytest.mark.parametrize("joined", [False, True])
def test_while_more_differs_than_was_promised_the_backbone_answers_and_heads_when_that_is_made_up_for(
    joined: bool,
) -> None:
    house = cascading(rows=5, audit=0.5 / EAGER) if joined else House(audit=0.5 / EAGER)
    house.live.breaker.settle(house.live.breaker.draw(100), 98, 2, 0)
    rows = [[0, 1, 2, 0], [9, 1, 2, 0], [1, 3, 3, 0], [0, 1, 1, 0], [0, 1, 2, np.nan]]
    house.orchestrator.serve([house.request("a", *rows), house.request("exact", [0, 1, 2, 0], exact=True)])
    assert (house.exits("a"), house.labels("a")) == ([LAST] * 5, [1, 1, 3, 1, 1])
    assert house.flights[0].held == 4
    assert house.agreed == [False, True, True]
    assert house.live.breaker.budget.left == pytest.approx(-0.5 + 4 * 0.005)
    house.orchestrator.serve([house.request(f"b{i}", [0, 1, 1, 0]) for i in range(100)])
    assert house.flights[1].held == 100
    house.orchestrator.serve([house.request(f"c{i}", [0, 1, 1, 0]) for i in range(100)])
    assert house.flights[2].held == 0
    assert house.exits("c0") == [0]


def test_of_a_batch_those_that_are_not_held_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(audit=0.5 / EAGER)
    house.busy = True
    chance = iter([0.1, 0.9, 0.1, 0.9])
    monkeypatch.setattr("random.random", lambda: next(chance))
    house.orchestrator.serve([house.request("a", [0, 1, 2, 0], [0, 1, 2, 0], [1, 1, 1, 0], [9, 1, 2, 0])])
    assert (house.exits("a"), house.labels("a")) == ([LAST, 0, LAST, LAST], [1, 2, 1, 1])
    assert house.agreed == [False, True]
    assert house.live.breaker.state()["blocks"] == [[0, 2, 1, 1, 0]]


def test_a_row_that_is_held_counts_for_the_head_that_would_have_answered_and_teaches_no_memory_before_it() -> None:
    house = House(audit=1)
    house.busy, house.keys = True, True
    house.shapes = {MEMORY_KEYS: (3, 2), MEMORY_ANSWERS: (3, 4)}
    house.live = house.release(1)

    def sure(index: int, hidden: np.ndarray, state: Any) -> Prediction:
        return Prediction(np.eye(4, dtype=np.float32)[[2 - index]], hidden[:, 0] <= index, hidden[:, :2])

    house.predict = sure  # type: ignore[method-assign]
    house.orchestrator.serve([house.request("a", [0, 1, 0, 0])])
    assert house.agreed == [False], "the second head is right, too late"
    assert house.live.breaker.state()["blocks"] == [[0, 1, 0, 1, 0]]
    assert (house.live.state[0].feeds()[MEMORY_KEYS] > 1e14).all()


def test_a_request_that_is_held_and_fails_differs_from_nothing() -> None:
    house = House(audit=1, fails={LAST: UnavailableError("away")})
    house.busy = True
    house.orchestrator.serve([house.request("a", [0, 1, 2, 0])])
    assert isinstance(house.told["a"], UnavailableError)
    assert not house.agreed
    assert house.live.breaker.state()["blocks"] == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize("joined", [False, True])
def test_requests_that_fail_do_not_make_heads_look_right(joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    house = cascading(4, audit=1) if joined else House(audit=1)
    run = house.run_segment

    def refusing(index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if index == LAST and (next(iter(feeds.values()))[:, 3] == 7).any():
            raise RequestError("there is no word 7")
        return run(index, feeds)

    def failing(*_: Any) -> list[MissedRows]:
        raise ValueError("what is joined does not say what failed in it")

    monkeypatch.setattr(house, "run_segment", refusing)
    monkeypatch.setattr(house, "run", failing)
    bad, easy, hard = [9, 1, 2, 7], [0, 1, 1, 0], [9, 1, 2, 0]
    left = house.live.breaker.budget.left
    house.orchestrator.serve([house.request("alone", bad)])
    house.orchestrator.serve([house.request("half", easy, bad)])
    assert house.live.breaker.state()["blocks"] == [[0, 0, 0, 0, 0]] and not house.audits
    assert house.live.breaker.budget.left == left
    house.orchestrator.serve([house.request("bad", bad), house.request("easy", easy), house.request("hard", hard)])
    assert [len(audit.served) for audit in house.audits] == [1]
    house.orchestrator.audit(house.audits.pop())
    assert house.live.breaker.state()["blocks"] == [[0, 2, 2, 0, 0]]
    assert house.live.breaker.budget.left == pytest.approx(left + 2 * 0.01)
    assert all(isinstance(house.told[name], RequestError) for name in ("alone", "half", "bad"))


def test_a_batch_that_can_not_be_put_together_is_answered_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    monkeypatch.setattr(np, "concatenate", lambda _: (_ for _ in ()).throw(MemoryError()))
    house.orchestrator.serve([house.request("easy", [0, 1, 2, 0]), house.request("hard", [9, 1, 2, 0])])
    assert house.exits("easy") + house.exits("hard") == [0, LAST]


def test_hits_of_a_batch_whose_misses_fail_are_audited_all_the_same() -> None:
    house = House(audit=1, fails={2: UnavailableError("away")})
    house.orchestrator.serve([house.request("hit", [0, 1, 2, 0]), house.request("miss", [9, 1, 2, 0])])
    assert isinstance(house.told["miss"], UnavailableError)
    assert [len(audit.served) for audit in house.audits] == [1]
    house.fails.clear()
    house.orchestrator.audit(house.audits.pop())
    assert house.live.breaker.state()["blocks"] == [[0, 1, 0, 1, 0]]


@pytest.mark.parametrize("eager", [True, False])
def test_more_requests_are_drawn_while_the_breaker_is_eager(eager: bool) -> None:
    house = House(audit=1 / EAGER)
    breaker = house.live.breaker
    for _ in range(40):
        breaker.went_live()
        if not eager:
            breaker.settle(breaker.draw(1000), 1000)
        house.orchestrator.serve([house.request("a", *[[0, 1, 1, 0]] * 8)])
        house.told.clear()
    audited = sum(len(audit.served) for audit in house.audits)
    assert audited == 320 if eager else 0 < audited < 40


def test_an_exit_that_is_closed_is_not_asked_and_those_before_it_are() -> None:
    house = House()
    while house.live.breaker.alarm is None:
        house.live.breaker.settle(house.live.breaker.draw(1), 0, 1, 1)
    house.orchestrator.serve([house.request("a", [0, 1, 2, 0], [1, 1, 3, 0])])
    assert house.exits("a") == [0, LAST]
    assert [event[1] for event in house.events if event[0] == "head"] == [0]


def test_heads_that_lie_are_closed_by_their_audits_and_a_new_release_opens_again() -> None:
    house = House(audit=1)
    while house.live.breaker.open_exits:
        house.told.clear()
        house.orchestrator.serve([house.request("lie", [0, 1, 2, 0])])
        house.orchestrator.audit(house.audits.pop())
        assert len(house.agreed) < 200
    house.orchestrator.serve([house.request("truth", [0, 1, 2, 0])])
    assert (house.exits("truth"), house.labels("truth")) == ([LAST], [1])
    house.live = house.release(2)
    house.orchestrator.serve([house.request("again", [0, 1, 1, 0])])
    assert house.exits("again") == [0]


def test_state_counts_all_answers_and_remembers_what_was_answered_behind() -> None:
    house = House()
    house.shapes = {CLASS_MIX: (4,), MEMORY_KEYS: (3, 2), MEMORY_ANSWERS: (3, 4)}
    house.keys = True
    house.live = house.release(1)
    rows = [[0, 1, 2, 0], [9, 3, 2, 0], [9, 3, 2, np.nan], [1, 0, 0, 0]]
    house.orchestrator.serve([house.request("a", *rows)])
    house.orchestrator.serve([house.request("b", [9, 2, 2, 0], exact=True)])
    first, second = (house.live.state[index].feeds() for index in (0, 1))
    assert first[MEMORY_KEYS][:2].tolist() == [[9, 3], [1, 0]]  # what the backbone answered, and the second head
    assert first[MEMORY_ANSWERS].argmax(1).tolist() == [3, 0, 0]
    assert first[MEMORY_ANSWERS].any(1).tolist() == [True, True, False]
    assert (first[MEMORY_KEYS][2:] > 1e14).all()
    assert second[MEMORY_KEYS][0].tolist() == [9, 3]
    assert (second[MEMORY_KEYS][1:] > 1e14).all()
    assert first[CLASS_MIX][2] > first[CLASS_MIX][1]  # the head's answer, as it was served
    np.testing.assert_allclose(first[CLASS_MIX].sum(), 1, rtol=1e-5)


def cascading(rows: int = 1, **settings: Any) -> House:
    house = House(**settings)
    house.rows = rows
    house.live = replace(house.live, shortcuts=Shortcuts(joined=house))
    return house


def test_a_request_of_one_row_goes_through_the_cascade() -> None:
    house = cascading()
    for name, row in {"easy": [0, 1, 2, 0], "so so": [1, 1, 3, 0], "hard": [9, 1, 2, 0]}.items():
        house.orchestrator.serve([house.request(name, row)])
    assert [event for event in house.events if event[0] != "reply"] == [("joined", 1)] * 3
    assert [house.exits(name) for name in ("easy", "so so", "hard")] == [[0], [1], [LAST]]
    assert [house.labels(name) for name in ("easy", "so so", "hard")] == [[2], [3], [1]]
    releases = [answer.release.tolist() for answer in house.told.values() if isinstance(answer, Answer)]
    assert releases == [[[1]], [[1]], [[BACKBONE]]]
    assert [[(ran.segment, ran.joined) for ran in flight.runs] for flight in house.flights] == [
        [(0, True)],
        [(1, True)],
        [(LAST, True)],
    ]


@pytest.mark.parametrize("why", ["exact", "nan", "rows", "requests", "closed", "features"])
def test_what_else_there_is_goes_stage_by_stage(why: str) -> None:
    house = cascading(cut=0 if why == "features" else None)
    if why == "closed":
        house.live.breaker.open_exits = (0,)
    row = [1, 1, 1, np.nan if why == "nan" else 0]
    first = house.request("a", *[row] * (2 if why == "rows" else 1), exact=why == "exact")
    house.orchestrator.serve([first, house.request("b", row)] if why == "requests" else [first])
    assert ("segment", 0, 2 if why in ("rows", "requests") else 1) in house.events
    assert not [event for event in house.events if event[0] == "joined"]
    assert house.exits("a")[0] == (LAST if why in ("exact", "nan", "closed") else 1)


def test_a_batch_goes_through_what_takes_as_many_rows() -> None:
    house = cascading(rows=3)
    hard, easy = house.request("hard", [9, 1, 2, 0], [1, 0, 3, 0]), house.request("easy", [0, 1, 2, 0])
    house.orchestrator.serve([hard, easy])
    assert house.events == [("joined", 3), ("reply", "easy"), ("reply", "hard")]
    assert [house.exits(name) for name in ("easy", "hard")] == [[0], [LAST, 1]]
    assert [house.labels(name) for name in ("easy", "hard")] == [[2], [1, 3]]
    answer = house.told["hard"]
    assert isinstance(answer, Answer) and answer.release[:, 0].tolist() == [BACKBONE, 1]
    assert [[ran.segment for ran in flight.runs] for flight in house.flights] == [[0, 1, LAST]]


@pytest.mark.parametrize("why", ["more", "exact", "nan"])
def test_a_batch_that_is_not_wholly_for_heads_goes_stage_by_stage(why: str) -> None:
    house = cascading(rows=2)
    row = [0, 1, 2, 0]
    other = house.request("b", [0, 1, 2, np.nan] if why == "nan" else row, exact=why == "exact")
    house.orchestrator.serve([house.request("a", *[row] * (2 if why == "more" else 1)), other])
    assert not [event for event in house.events if event[0] == "joined"]
    assert [house.exits(name)[0] for name in ("a", "b")] == [0, 0 if why == "more" else LAST]


def test_a_reply_that_fails_is_not_what_is_joined_that_fails() -> None:
    house = cascading()

    def gone(_answer: Answer | GatiError, _last: bool) -> None:
        raise ConnectionError("the client has left")

    request = replace(house.request("a", [0, 1, 2, 0]), reply=gone)
    with pytest.raises(ConnectionError):
        house.orchestrator.serve([request])
    assert house.events == [("joined", 1)] and not house.unjoined


def test_what_is_left_of_a_batch_that_fails_goes_stage_by_stage() -> None:
    house = cascading(rows=2)
    run = house.run

    def half(inputs: dict[str, np.ndarray], state: dict[int, HeadState], leave: Leave) -> list[MissedRows]:
        run(inputs, state, lambda rows, output, exit_: leave(rows, output, exit_) if exit_ == 0 else None)
        raise ValueError("the second rung gives way")

    house.run = half  # type: ignore[method-assign]
    house.orchestrator.serve([house.request("hard", [9, 1, 2, 0]), house.request("easy", [0, 1, 2, 0])])
    assert [event for event in house.events if event[0] == "reply"] == [("reply", "easy"), ("reply", "hard")]
    assert [house.exits(name) for name in ("easy", "hard")] == [[0], [LAST]]
    assert [str(error) for error in house.unjoined] == ["the second rung gives way"]


def test_what_left_before_what_is_joined_failed_is_counted_and_audited_as_it_was_served() -> None:
    house = cascading(rows=2, audit=1)
    run = house.run

    def half(inputs: dict[str, np.ndarray], state: dict[int, HeadState], leave: Leave) -> list[MissedRows]:
        run(inputs, state, lambda rows, output, exit_: leave(rows, output, exit_) if exit_ == 0 else None)
        house.ready.discard(0)  # stage by stage, the head would say something else
        raise ValueError("the second rung gives way")

    house.run = half  # type: ignore[method-assign]
    house.orchestrator.serve([house.request("hard", [9, 1, 2, 0]), house.request("easy", [0, 1, 2, 0])])
    (flight,) = house.flights
    assert flight.exit.tolist() == [LAST, 0] and flight.release.tolist() == [BACKBONE, 1]
    assert flight.output.argmax(1).tolist() == [1, 2] and house.labels("easy") == [2]
    assert [(audit.index, audit.served.argmax(1).tolist()) for audit in house.audits] == [(0, [2])]


def test_what_was_answered_before_others_of_its_batch_failed_is_counted() -> None:
    house = House(fails={1: RequestError("no word of mine.")}, audit=1)
    rows = house.request("easy", [0, 1, 2, 5], [0, 3, 3, 6]), house.request("hard", [2, 1, 2, 7])
    house.orchestrator.serve([rows[1], rows[0]])
    assert house.exits("easy") == [0, 0] and str(house.told["hard"]) == "no word of mine."
    (flight,) = house.flights
    assert flight.requests == [rows[0]] and flight.spans == [slice(0, 2)] and flight.rows == 2
    assert flight.exit.tolist() == [0, 0] and flight.output.argmax(1).tolist() == [2, 3]
    assert flight.kept_of(0)["x"][:, 3].tolist() == [5, 6] and flight.cacheable.tolist() == [True, True]
    assert [exit_ for exit_, _ in flight.latencies] == [0]
    assert flight.drawn.rows.tolist() == [True, True]
    assert [len(audit.served) for audit in house.audits] == [2]


def test_what_a_batch_was_answered_is_what_is_audited() -> None:
    house = cascading(rows=4, audit=1)
    rows = [1, 1, 1, 5], [0, 1, 2, 6], [9, 1, 2, 7], [1, 3, 2, 8]
    house.orchestrator.serve([house.request("a", *rows)])
    assert [(audit.index, audit.served.argmax(1).tolist()) for audit in house.audits] == [(0, [2]), (1, [1, 2])]
    assert [audit.kept and audit.kept["x"][:, 3].tolist() for audit in house.audits] == [[6], [5, 8]]
    while house.audits:
        house.orchestrator.audit(house.audits.pop(0))
    assert house.agreed == [False, True, False] and house.ran == [0, 1, 2] * 2, "from the inputs to the end"
    assert [sum(block[place] for block in house.live.breaker.state()["blocks"]) for place in (1, 2)] == [4, 2]


def test_what_a_cascade_answered_is_what_is_audited() -> None:
    house = cascading(audit=1)
    for name, row in {"true": [1, 1, 1, 5], "lie": [0, 1, 2, 6], "miss": [9, 1, 2, 7]}.items():
        house.orchestrator.serve([house.request(name, row)])
    assert not [event for event in house.events if event[0] == "segment"]
    assert [(audit.index, audit.served.argmax(1).tolist()) for audit in house.audits] == [(1, [1]), (0, [2])]
    assert [audit.kept and audit.kept["x"][:, 3].tolist() for audit in house.audits] == [[5], [6]]
    while house.audits:
        house.orchestrator.audit(house.audits.pop(0))
    assert house.agreed == [True, False] and house.ran == [0, 1, 2] * 2, "from the inputs to the end"
    assert house.live.breaker.state()["blocks"] == [[0, 3, 2, 1, 0]]


def test_what_a_cascade_can_not_run_goes_stage_by_stage_and_is_told_from_there() -> None:
    house = cascading(fails={1: UnavailableError("segment 1 is away.")})
    house.orchestrator.serve([house.request("hard", [9, 1, 2, 0])])
    house.orchestrator.serve([house.request("easy", [0, 1, 2, 0])])
    assert str(house.told["hard"]) == "segment 1 is away."
    assert house.exits("easy") == [0]
    (error,) = house.unjoined  # of the one that the stages could answer
    assert str(error) == "what is joined does not say what failed in it"


def test_state_learns_from_the_cascade() -> None:
    shapes = {CLASS_MIX: (4,), MEMORY_KEYS: (3, 2), MEMORY_ANSWERS: (3, 4)}
    houses = House(), cascading()
    for house in houses:
        house.keys = True
        house.live = replace(house.live, state={i: HeadState(shapes) for i in (0, 1)})
        for name, row in {"a": [0, 1, 2, 0], "b": [9, 3, 2, 0], "c": [1, 0, 0, 0]}.items():
            house.orchestrator.serve([house.request(name, row)])
    for index, keys in ((0, [[9, 3], [1, 0]]), (1, [[9, 3]])):  # the second head's answer to c is news to the first
        apart, together = (house.live.state[index].feeds() for house in houses)
        assert all((together[name] == apart[name]).all() for name in shapes)
        assert apart[MEMORY_KEYS][: len(keys)].tolist() == keys and (apart[MEMORY_KEYS][len(keys) :] > 1e14).all()


def test_state_learns_from_a_batch_as_from_stages() -> None:
    shapes = {CLASS_MIX: (4,), MEMORY_KEYS: (5, 2), MEMORY_ANSWERS: (5, 4)}
    houses = House(), cascading(rows=3)
    for house in houses:
        house.keys = True
        house.live = replace(house.live, state={i: HeadState(shapes) for i in (0, 1)})
        house.orchestrator.serve([house.request("a", [1, 0, 0, 0], [0, 1, 2, 0]), house.request("b", [9, 3, 2, 0])])
    assert ("joined", 3) in houses[1].events
    for index, keys in ((0, [[1, 0], [9, 3]]), (1, [[9, 3]])):
        apart, together = (house.live.state[index].feeds() for house in houses)
        assert all((together[name] == apart[name]).all() for name in shapes)
        assert (
            sorted(apart[MEMORY_KEYS][: len(keys)].tolist()) == keys and (apart[MEMORY_KEYS][len(keys) :] > 1e14).all()
        )
