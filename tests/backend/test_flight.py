"""Flights: requests as one batch, each answered when the last of its rows is."""

from __future__ import annotations

import numpy as np
import pytest

from gati.errors import GatiError
from gati.repository.chain import Tensor
from gati.serving.flight import BACKBONE, Answer, Flight, Request, finite_rows

OUTPUT = Tensor("y", "FP32", (2,))


class Client:
    """Sends requests and keeps what it was told."""

    def __init__(self) -> None:
        self.told: dict[str, Answer | GatiError] = {}
        self.last: set[str] = set()

    def request(self, name: str, x: np.ndarray, *, exact: bool = False) -> Request:
        def reply(answer: Answer | GatiError, last: bool) -> None:
            assert name not in self.told, "a request is replied to once"
            self.told[name] = answer
            if last:
                self.last.add(name)

        return Request({"x": x}, exact, reply)


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None].repeat(3, 1)


def test_a_request_is_answered_when_its_last_row_is() -> None:
    client = Client()
    flight = Flight([client.request("a", rows(1, 2)), client.request("b", rows(3))], OUTPUT)
    flight.finish(np.array([0, 2]), np.array([[1, 0], [3, 0]], np.float32), 0, 7)
    assert list(client.told) == ["b"]
    flight.finish(np.array([1]), np.array([[2, 0]], np.float32), 2, BACKBONE)
    a, b = client.told["a"], client.told["b"]
    assert isinstance(a, Answer)
    assert isinstance(b, Answer)
    assert a.output[:, 0].tolist() == [1, 2]
    assert (a.exit.tolist(), a.release.tolist()) == ([[0], [2]], [[7], [0]])
    assert (b.exit.tolist(), b.release.tolist()) == ([[0]], [[7]])
    assert len(flight.latencies) == 2
    assert client.last == {"a"}


def test_all_that_are_answered_when_nobody_waits_on_are_the_last() -> None:
    client = Client()
    flight = Flight([client.request(name, rows(1)) for name in "abcd"], OUTPUT)
    for answered in ([0], [2], [1, 3]):
        flight.finish(np.array(answered), np.zeros((len(answered), 2), np.float32), 0, 1)
    whole = Flight([client.request(name, rows(1)) for name in "ef"], OUTPUT)
    whole.finish(np.arange(2), np.zeros((2, 2), np.float32), 0, 1)
    assert client.last == set("bdef")


def test_who_still_waits_is_known_and_can_be_taken_out() -> None:
    client = Client()
    flight = Flight([client.request("a", rows(1)), client.request("b", rows(2))], OUTPUT)
    flight.finish(np.array([1]), np.zeros((1, 2), np.float32), 0, 1)
    assert flight.replied_rows.tolist() == [False, True]
    assert flight.take_waiting() == [flight.requests[0]] and not flight.take_waiting()
    assert isinstance(client.told["b"], Answer) and "a" not in client.told


def test_rows_that_are_exact_or_not_finite_are_not_for_heads() -> None:
    client = Client()
    flight = Flight([client.request("a", rows(1, np.nan)), client.request("b", rows(2), exact=True)], OUTPUT)
    assert flight.cacheable.tolist() == [True, False, False]
    assert flight.finite.tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64], ids=lambda d: d.__name__)
def test_one_row_alone_is_judged_as_among_others(dtype: type) -> None:
    values = [1, -2, 0] if dtype is np.int64 else [1, -60_000, 0, np.nan, np.inf, -np.inf]
    for value in values:
        x = np.array([[1, value, 2]], dtype)
        alone = Flight([Client().request("a", x)], OUTPUT)
        among = Flight([Client().request("a", x), Client().request("b", np.ones_like(x))], OUTPUT)
        assert alone.finite.tolist() == alone.cacheable.tolist() == among.finite[:1].tolist()
        assert alone.answerable == alone.finite[0] and among.answerable
        exact = Flight([Client().request("a", x, exact=True)], OUTPUT)
        assert not exact.answerable and exact.finite.tolist() == alone.finite.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_bad_number_anywhere_in_a_row_is_seen(dtype: type, bad: float) -> None:
    value = np.zeros((4, 3, 5), dtype)
    value[2, 1, 4] = bad
    assert finite_rows({"x": value, "ids": np.ones((4, 2), np.int64)}).tolist() == [True, True, False, True]


def test_infinities_that_cancel_are_seen() -> None:
    assert finite_rows({"x": np.array([[np.inf, -np.inf], [1, 2]], np.float32)}).tolist() == [False, True]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("number", "finite"), [(1e20, True), (np.nan, False), (-np.inf, False), (1.0, True)])
def test_a_flight_is_for_heads_where_it_is_finite(rows: int, number: float, finite: bool) -> None:
    """Numbers whose squares overflow are finite, too."""
    x = np.ones((rows, 4), np.float32)
    x[-1, 2] = number
    flight = Flight([Request({"x": x}, False, lambda *_: None)], OUTPUT)
    assert flight.cacheable.tolist() == [True] * (rows - 1) + [finite]
    assert flight.answerable == (finite or rows > 1)


def test_half_precision_does_not_overflow() -> None:
    assert finite_rows({"x": np.full((1, 4), 6e4, np.float16)}).all()


def test_requests_share_a_batch_only_where_their_rows_are_alike() -> None:
    client = Client()
    one, same, other = (
        client.request(n, np.zeros(s, np.float32)) for n, s in (("a", (1, 3)), ("b", (2, 3)), ("c", (1, 4)))
    )
    assert one.signature == same.signature != other.signature
