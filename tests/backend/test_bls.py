"""BLS mode, before a Triton that answers what is written here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from handmade import toy_chain

from gati.errors import GatiError, NotLoadedError, RequestError, UnavailableError
from gati.inference import bls
from gati.inference.bls import BlsCalls, BlsEngine, BlsHeads
from gati.inference.head import HIT, HeadSpec

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


def triton(code: int, message: str) -> Any:
    """One that answers all calls with this error."""
    error = SimpleNamespace(code=lambda: code, message=lambda: message)
    response = SimpleNamespace(has_error=lambda: True, error=lambda: error)
    return SimpleNamespace(
        TritonError=CODES,
        TRITONSERVER_MEMORY_CPU=0,
        PreferredMemory=lambda *_: None,
        Tensor=lambda *_: None,
        InferenceRequest=lambda **_: SimpleNamespace(exec=lambda: response),
    )


def look_up(code: int, message: str) -> object:
    heads = BlsHeads(toy_chain(), 1, {0: HeadSpec({}, ("y", HIT))}, BlsCalls(triton(code, message)))
    return heads.predict(0, np.zeros((1, 4), np.float32), {})


@pytest.mark.parametrize("error", AWAY)
def test_a_head_that_is_not_loaded_is_a_miss(error: tuple[int, str]) -> None:
    assert look_up(*error) is None


def test_a_head_that_fails_raises_so_that_it_is_counted() -> None:
    with pytest.raises(UnavailableError, match=r"toy-head-0 \(version 1\) did not answer: onnx runtime error 6"):
        look_up(*BROKEN)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BROKEN, UnavailableError),
        ((CODES.INVALID_ARG, "unknown word"), RequestError),
        ((CODES.INTERNAL, "onnx runtime error 2: indices element out of data bounds"), RequestError),
    ],
)
def test_what_a_segment_says_is_told(error: tuple[int, str], kind: type[GatiError]) -> None:
    with pytest.raises(kind) as raised:
        BlsCalls(triton(*error)).run("toy-segment-0", 1, {}, ["y"])
    assert not isinstance(raised.value, NotLoadedError)


@pytest.mark.parametrize("times", [1, 2])
def test_a_segment_that_fails_is_asked_once_more_without_whom_triton_ran_it_with(tmp_path: Path, times: int) -> None:
    server, answers = triton(*BROKEN), [triton(*BROKEN).InferenceRequest().exec() for _ in range(times)]
    tensor = SimpleNamespace(name=lambda: toy_chain().segments[0].output.name, as_numpy=lambda: np.ones(3))
    answers.append(SimpleNamespace(has_error=lambda: False, output_tensors=lambda: [tensor]))
    server.InferenceRequest = lambda **_: SimpleNamespace(exec=lambda: answers.pop(0))
    stage = BlsEngine(tmp_path, toy_chain(), server).load_stages([])[0]
    if times == 1:
        assert np.asarray(stage.run({})).tolist() == [1, 1, 1]
    else:
        with pytest.raises(UnavailableError, match="did not answer"):
            stage.run({})


def test_while_a_chain_is_unloaded_audits_begin_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, called = [100.0], list[str](), list[int]()
    server = triton(*BROKEN)
    server.is_model_ready = lambda **model: asked.append(model["model_name"]) or now[0] < 101
    monkeypatch.setattr(bls, "time", SimpleNamespace(monotonic=lambda: now[0]))
    chain = toy_chain()
    engine = BlsEngine(tmp_path, chain, server)
    stages = tuple(replace(stage, run=lambda _: called.append(1)) for stage in engine.load_stages([]))
    detached = engine.detached(stages)
    for _ in range(8):
        detached[0].run({})
        now[0] += bls.STAYS_SECONDS / 2
    assert asked == [chain.model] * 4 and len(called) == 8
    with pytest.raises(UnavailableError, match="toy is being unloaded"):
        detached[1].run({})
    assert len(called) == 8 and not engine.stays
    now[0] = 100.0
    assert engine.stays
    engine.end()
    assert not engine.stays


def test_a_server_that_does_not_say_whether_a_chain_is_loaded_is_ending(tmp_path: Path) -> None:
    server = triton(*BROKEN)
    server.is_model_ready = lambda **_: 1 // 0
    assert not BlsEngine(tmp_path, toy_chain(), server).stays
