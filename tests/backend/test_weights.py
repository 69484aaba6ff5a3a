"""Weights that are held once: sessions read them, and nothing of a graph is lost."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gati.inference.session import run
from gati.inference.weights import ALIGNED, LEAST, Weights

SIZE = 64
LARGE = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
SMALL = np.arange(SIZE, dtype=np.float32)


def branching() -> onnx.ModelProto:
    """x @ large + small, within a branch, where x's sum is positive; else x."""
    weights = [numpy_helper.from_array(LARGE, "large"), numpy_helper.from_array(SMALL, "small")]
    value = lambda name, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, None)  # noqa: E731
    then = [helper.make_node("MatMul", ["x", "large"], ["m"]), helper.make_node("Add", ["m", "small"], ["a"])]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["full"], to=TensorProto.INT32),
        helper.make_node("Cast", ["full"], ["yes"], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["yes"],
            ["y"],
            then_branch=helper.make_graph(then, "then", [], [value("a")], weights),
            else_branch=helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "else", [], [value("b")]),
        ),
    ]
    graph = helper.make_graph(nodes, "branching", [value("x")], [value("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_what_is_taken_can_be_put_back() -> None:
    model, weights = branching(), Weights()
    before = model.SerializeToString(deterministic=True)
    weights.take(model)
    assert weights.bytes == LARGE.nbytes >= LEAST > SMALL.nbytes
    assert len(model.SerializeToString()) < len(before) - LARGE.nbytes + 100
    weights.open(model)
    weights.put_back(model)
    assert model.SerializeToString(deterministic=True) == before


def test_sessions_read_what_is_held_and_keep_it_alive() -> None:
    model, weights = branching(), Weights()
    weights.take(model)
    sessions = [weights.open(model) for _ in range(2)]
    x = np.ones((2, SIZE), np.float32)
    for values in weights._held.values():
        assert values.ctypes.data % ALIGNED == 0
    del model, weights
    gc.collect()
    _ = [np.full(LARGE.shape, np.nan, np.float32) for _ in range(8)]  # would lie where they lay
    for session in sessions:
        np.testing.assert_allclose(run(session, ["y"], {"x": x})[0], x @ LARGE + SMALL, rtol=1e-4, atol=1e-4)


def test_what_is_added_to_a_fork_is_not_held_before_it() -> None:
    weights = Weights()
    fork = weights.fork()
    fork.take(branching())
    assert (weights.bytes, fork.bytes) == (0, LARGE.nbytes)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8])
def test_other_kinds_of_numbers_are_held_too(kind: type) -> None:
    values = np.arange(LEAST).astype(kind)
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(values, "w")])
    model, weights = helper.make_model(graph), Weights()
    weights.take(model)
    assert weights.bytes == values.nbytes
    weights.put_back(model)
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), values)
