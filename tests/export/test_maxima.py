"""Maxima that become poolings, and those that stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from gati.inference.session import open_session, run
from gati_export.learning.maxima import pool_maxima


def largest(shape: tuple[int, ...], axes: list[int], keep: int, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=keep)],
        "largest",
        [helper.make_tensor_value_info("x", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.array(axes), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pooled(model: onnx.ModelProto) -> onnx.ModelProto:
    found = ir.from_proto(model)
    pool_maxima(found)
    return ir.to_proto(found)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(
    ("shape", "axes"), [((7,), [1]), ((7,), [-1]), ((3, 7), [2]), ((3, 4, 5), [2, 3]), ((3, 4, 5), [-1, -2])]
)
def test_a_maximum_over_all_of_a_row_or_channel_is_pooled(shape: tuple[int, ...], axes: list[int], keep: int) -> None:
    model = largest(shape, axes, keep)
    found = pooled(model)
    assert "ReduceMax" not in {node.op_type for node in found.graph.node}
    assert [value.name for value in found.graph.output] == ["y"]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    one, other = (run(open_session(m.SerializeToString()), ["y"], {"x": x})[0] for m in (model, found))
    assert one.shape == other.shape and np.array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "axes", "kind"),
    [
        pytest.param((3, 7), [1], TensorProto.FLOAT, id="over channels"),
        pytest.param((3, 4, 5), [3], TensorProto.FLOAT, id="over part of a channel"),
        pytest.param((2, 3, 4, 5), [4], TensorProto.FLOAT, id="more dimensions"),
        pytest.param((7,), [0], TensorProto.FLOAT, id="over the batch"),
        pytest.param((7,), [1], TensorProto.INT64, id="whole numbers"),
    ],
)
def test_what_is_no_pooling_stays(shape: tuple[int, ...], axes: list[int], kind: int) -> None:
    assert [node.op_type for node in pooled(largest(shape, axes, 0, kind)).graph.node] == ["ReduceMax"]
