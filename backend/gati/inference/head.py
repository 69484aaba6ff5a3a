"""Heads at run time: the contract of a head's ONNX file, and its prediction for a batch of hidden activations.

Input: the cut tensor, batch first. Outputs: the backbone's output (same name, dtype and shape), `score` FP32 [batch]
and `hit` BOOL [batch]. A head may ask for state by extra inputs (gati.inference.state), and then may output `key`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from gati.errors import ReleaseRefused, first_line
from gati.inference.session import CPU, Device, open_session, run
from gati.inference.state import CLASS_MIX, MEMORY_ANSWERS, MEMORY_KEYS, STATE_INPUTS
from gati.repository.chain import Chain, Tensor
from gati.repository.inspection import inspect

SCORE, HIT, KEY = "score", "hit", "key"
THRESHOLD = "threshold"
"""Name of the initialiser that the score is compared with."""
SEGMENTS_KEY = "gati.segments"
"""Metadata of a head's file: JSON list of the SHA-256 of the segments that it was trained behind."""


class Prediction(NamedTuple):
    """A head's prediction for a batch.

    Attributes:
        answer: The predicted output of the backbone, [batch, classes].
        hit: Whether to serve it, bool [batch].
        key: The key to remember each row by, FP32 [batch, dim]; None without a memory.
    """

    answer: np.ndarray
    hit: np.ndarray
    key: np.ndarray | None


@dataclass(frozen=True)
class HeadSpec:
    """Inputs and outputs of a head's file.

    Attributes:
        state: Shapes of the state that it asks for, by input name.
        outputs: Names of its outputs.
    """

    state: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]


def open_head(model: bytes, chain: Chain, index: int, device: Device = CPU) -> tuple[ort.InferenceSession, HeadSpec]:
    """Opens a head's ONNX file, and checks it against the contract.

    The session comes back warm: it has run a batch of one and a batch of the largest size.

    Raises:
        ReleaseRefused: If it can't be read, is more than a head may be (gati.repository.inspection), doesn't keep the
            contract, or was trained behind other segments.
    """
    name = f"head {index} of {chain.model!r}"
    inspect(model, chain, index)
    try:
        session = open_session(model, device)
    except Exception as error:
        raise ReleaseRefused(f"{name} is not an ONNX model that can be run: {first_line(error)}") from error
    if not _fits(session, chain):
        raise ReleaseRefused(f"{name} was trained behind other segments than this chain's.")
    cut = chain.segments[index].output
    spec = _spec(session, cut, chain.output, name)
    for batch in sorted({1, chain.max_batch}):
        _try_out(session, spec, cut, chain, batch, name)
    return session, spec


def _fits(session: ort.InferenceSession, chain: Chain) -> bool:
    """Whether a head was trained behind this chain's segments."""
    try:
        digests = session.get_modelmeta().custom_metadata_map.get(SEGMENTS_KEY, "")
        return json.loads(digests) == list(chain.digests())
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or endless brackets
        return False


def _spec(session: ort.InferenceSession, cut: Tensor, output: Tensor, name: str) -> HeadSpec:
    """Checks the names of a head's inputs and outputs, and the shapes of its state."""
    inputs = {i.name: tuple(i.shape) for i in session.get_inputs()}
    outputs = tuple(o.name for o in session.get_outputs())
    state = {n: shape for n, shape in inputs.items() if n != cut.name}
    if cut.name not in inputs or not set(state) <= STATE_INPUTS:
        raise ReleaseRefused(f"{name} reads {sorted(inputs)}, not the cut tensor {cut.name!r}.")
    if not {output.name, SCORE, HIT} <= set(outputs) or not set(outputs) <= {output.name, SCORE, HIT, KEY}:
        raise ReleaseRefused(f"{name} gives {sorted(outputs)}, not {output.name!r}, 'score' and 'hit'.")
    if any(not isinstance(d, int) for shape in state.values() for d in shape):
        raise ReleaseRefused(f"{name} asks for state of unbounded size.")
    for state_input, shape in state.items():
        rows = state.get(MEMORY_KEYS, shape)[:1]
        expected = {CLASS_MIX: output.shape, MEMORY_ANSWERS: (*rows, *output.shape)}.get(state_input, shape)
        if shape != expected or (state_input == MEMORY_KEYS and len(shape) != 2) or 0 in shape:
            raise ReleaseRefused(f"{name} asks for {state_input!r} of shape {list(shape)}, which does not fit.")
    return HeadSpec(state, outputs)


def _try_out(session: ort.InferenceSession, spec: HeadSpec, cut: Tensor, chain: Chain, batch: int, name: str) -> None:
    """Runs a head on zeros, and checks the shapes and types of its outputs."""
    feeds = {cut.name: cut.zeros(batch)} | {n: np.zeros(shape, np.float32) for n, shape in spec.state.items()}
    try:
        values = dict(zip(spec.outputs, run(session, spec.outputs, feeds), strict=True))
    except Exception as error:
        raise ReleaseRefused(f"{name} fails on zeros: {first_line(error)}") from error
    expected = {
        chain.output.name: ((batch, *chain.output.shape), chain.output.numpy),
        SCORE: ((batch,), np.dtype(np.float32)),
        HIT: ((batch,), np.dtype(np.bool_)),
    }
    if KEY in values:
        expected[KEY] = ((batch, *spec.state.get(MEMORY_KEYS, values[KEY].shape)[1:]), np.dtype(np.float32))
    for output, (shape, dtype) in expected.items():
        if values[output].shape != shape or values[output].dtype != dtype:
            raise ReleaseRefused(
                f"{name} gives {output!r} as {values[output].dtype}{list(values[output].shape)}, "
                f"not {dtype}{list(shape)}."
            )
