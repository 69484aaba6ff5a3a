from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

import gati_client
from gati_client import errors
from gati_client.errors import (
    ClientError,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    translated,
)


def translate(error: Exception, failures: tuple[type[Exception], ...] = ()) -> ClientError:
    with pytest.raises(ClientError) as caught, translated("m", "grpc://h:1", 2.5, failures):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize(
    "status, kind",
    [
        ("StatusCode.INVALID_ARGUMENT", InvalidRequest),
        ("400", InvalidRequest),
        ("StatusCode.NOT_FOUND", ModelNotFound),
        ("404", ModelNotFound),
        ("StatusCode.UNAVAILABLE", ServerUnavailable),
        ("503", ServerUnavailable),
        ("StatusCode.DEADLINE_EXCEEDED", RequestTimeout),
        ("504", RequestTimeout),
        ("StatusCode.INTERNAL", ServerError),
        ("500", ServerError),
        ("StatusCode.SOMETHING_NEW", ServerError),
        (None, InvalidRequest),
    ],
)
def test_statuses(status: str | None, kind: type[ClientError]) -> None:
    assert type(translate(InferenceServerException("why", status))) is kind


def test_what_the_network_raises() -> None:
    class Odd(Exception):
        pass

    assert type(translate(ConnectionRefusedError("refused"))) is ServerUnavailable
    assert type(translate(Odd(), (Odd,))) is ServerUnavailable
    assert str(translate(TimeoutError())) == "'m' at grpc://h:1 did not answer within 2.5 s."


def test_a_client_error_passes_and_a_bug_too() -> None:
    with pytest.raises(ModelNotFound, match=r"^as it is$"), translated("m", "u", 1):
        raise ModelNotFound("as it is")
    with pytest.raises(KeyError), translated("m", "u", 1):
        raise KeyError


@pytest.mark.parametrize(
    "words, reason",
    [
        ("[request id: <id_unknown>] too large", "too large"),
        ("failed: boom\n\nAt:\n  model.py(3): execute\n", "failed: boom"),
        ("unexpected shape. Expected [3], got [4]. ", "unexpected shape; Expected [3], got [4]"),
        ("", "InferenceServerException"),
        ("x" * 1000, "x" * errors.LONGEST + "…"),
    ],
)
def test_messages_are_one_sentence(words: str, reason: str) -> None:
    message = str(translate(InferenceServerException(words, "500")))
    assert message == f"'m' at grpc://h:1 failed: {reason}."


def test_every_error_is_drawn_and_exported() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClientError)]
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
        assert getattr(gati_client, kind.__name__) is kind
