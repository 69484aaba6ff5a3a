"""BLS mode, before a Triton that answers what is written here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from handmade import toy_chain

from gati.bls import BlsCalls, BlsHeads
from gati.errors import GatiError, NotLoadedError, RequestError, UnavailableError
from gati.head import HIT, HeadSpec

CODES = SimpleNamespace(INTERNAL=1, NOT_FOUND=2, INVALID_ARG=3, UNAVAILABLE=4)
BROKEN = (CODES.INTERNAL, "onnx runtime error 6: Non-zero status code while running MatMul")
AWAY = [
    pytest.param((CODES.INTERNAL, "Failed for execute the inference request. Model 'h' is not ready."), id="not ready"),
    pytest.param(
        (CODES.INTERNAL, "Request for unknown model: 'h' version 1 is not at ready state"), id="unloaded since"
    ),
    pytest.param((CODES.NOT_FOUND, "no such model"), id="not found"),
    pytest.param((CODES.UNAVAILABLE, "it is going"), id="unavailable"),
]


def calls(code: int, message: str) -> BlsCalls:
    """Calls that are all answered with this error."""
    error = SimpleNamespace(code=lambda: code, message=lambda: message)
    response = SimpleNamespace(has_error=lambda: True, error=lambda: error)
    triton: Any = SimpleNamespace(
        TritonError=CODES,
        TRITONSERVER_MEMORY_CPU=0,
        PreferredMemory=lambda *_: None,
        Tensor=lambda *_: None,
        InferenceRequest=lambda **_: SimpleNamespace(exec=lambda: response),
    )
    return BlsCalls(triton)


def look_up(calls: BlsCalls) -> object:
    heads = BlsHeads(toy_chain(), 1, {0: HeadSpec({}, ("y", HIT))}, calls)
    return heads.predict(0, np.zeros((1, 4), np.float32), {})


@pytest.mark.parametrize("error", AWAY)
def test_a_head_that_is_not_loaded_is_a_miss(error: tuple[int, str]) -> None:
    assert look_up(calls(*error)) is None


def test_a_head_that_fails_raises_so_that_it_is_counted() -> None:
    with pytest.raises(UnavailableError, match=r"toy-head-0 \(version 1\) did not answer: onnx runtime error 6"):
        look_up(calls(*BROKEN))


@pytest.mark.parametrize(
    ("error", "kind"), [(BROKEN, UnavailableError), ((CODES.INVALID_ARG, "unknown word"), RequestError)]
)
def test_what_a_segment_says_is_told(error: tuple[int, str], kind: type[GatiError]) -> None:
    with pytest.raises(kind) as raised:
        calls(*error).run("toy-segment-0", 1, {}, ["y"])
    assert not isinstance(raised.value, NotLoadedError)
