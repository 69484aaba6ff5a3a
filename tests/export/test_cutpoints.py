"""Cut points: all that separate the graph and no others, and the choice among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import Graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import CutPoint, choose_cutpoints, find_cutpoints
from gati_export.backbones.graph import Kind, classify, nodes_between, reads, separators


def load(graph: Graph, output: str, folder: Path) -> Backbone:
    return load_backbone(str(graph.save(folder / "m.onnx", output)), None, folder)


def names(graph: Graph, output: str, folder: Path) -> list[str]:
    return [point.tensor.name for point in find_cutpoints(load(graph, output, folder))]


def test_plain_layers(tmp_path):
    graph = Graph()
    h = graph.node("Relu", graph.linear(graph.input("x", ["n", 6]), 6, 8, name="a"), name="b")
    graph.linear(graph.linear(h, 8, 8, name="c"), 8, 4, name="y")
    points = find_cutpoints(load(graph, "y", tmp_path))
    assert [point.tensor for point in points] == [Tensor(name, "FP32", (8,)) for name in "abc"]
    assert [point.share for point in points] == [48 / 144, 48 / 144, 112 / 144]
    assert [point.node for point in points] == [0, 1, 2]


def test_residual_addition_is_a_cut_point_and_what_it_bridges_is_not(tmp_path):
    graph = Graph()
    a = graph.linear(graph.input("x", ["n", 6]), 6, 6, name="a")
    b = graph.node("Add", graph.linear(graph.linear(a, 6, 6), 6, 6), a, name="b")
    graph.linear(b, 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["a", "b"]


def test_residual_of_the_input_itself(tmp_path):
    graph = Graph()
    x = graph.input("x", ["n", 6])
    graph.linear(graph.node("Add", graph.linear(x, 6, 6), x, name="b"), 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["b"]


def test_dense_connections_leave_nothing_to_cut(tmp_path):
    graph = Graph()
    h = graph.linear(graph.input("x", ["n", 4]), 4, 4, name="first")
    for width in (4, 8, 12):
        h = graph.node("Concat", h, graph.linear(h, width, 4), axis=1)
    graph.linear(graph.node("Concat", h, "first", axis=1), 20, 4, name="y")
    points = find_cutpoints(load(graph, "y", tmp_path))
    assert [point.tensor.name for point in points][:1] == ["first"]
    assert all(point.share > 0.5 for point in points[1:])


def test_skips_over_everything_leave_nothing_to_cut(tmp_path):
    graph = Graph()
    x = graph.input("x", ["n", 4])
    down = graph.linear(x, 4, 4)
    up = graph.node("Concat", graph.linear(graph.linear(down, 4, 2), 2, 4), down, axis=1)
    both = graph.node("Concat", up, x, axis=1)
    graph.linear(both, 12, 2, name="y")
    points = find_cutpoints(load(graph, "y", tmp_path))
    assert [point.tensor.name for point in points] == [both]
    assert not find_cutpoints(load(_bridged(), "y", tmp_path))
    with pytest.raises(BackboneError, match="can't be cut"):
        choose_cutpoints([])


def _bridged() -> Graph:
    """Two branches from the input that meet in the output."""
    graph = Graph()
    x = graph.input("x", ["n", 4])
    graph.node("Add", graph.linear(graph.linear(x, 4, 4), 4, 4), graph.linear(x, 4, 4), name="y")
    return graph


def test_a_normalised_image_belongs_to_the_first_segment(tmp_path):
    graph = Graph()
    x = graph.input("x", ["n", 3, 8, 8])
    image = graph.node("Div", graph.node("Sub", x, graph.constant([0.5], np.float32)), graph.constant([2], np.float32))
    a = graph.node("Conv", image, graph.weight(4, 3, 3, 3), name="a", pads=[1, 1, 1, 1])
    b = graph.node("Conv", image, graph.weight(4, 3, 3, 3), name="b", pads=[1, 1, 1, 1])
    both = graph.node("Relu", graph.node("Add", a, b, name="sum"), name="relu")
    flat = graph.node("Flatten", graph.node("GlobalAveragePool", both, name="pool"), name="flat")
    graph.linear(flat, 4, 2, name="y")
    assert names(graph, "y", tmp_path) == ["sum", "relu", "pool", "flat"]


def test_a_mask_that_every_layer_reads_is_carried(tmp_path):
    graph = Graph()
    ids, mask = graph.input("ids", ["n", "t"], np.int64), graph.input("mask", ["n", "t"], np.int64)
    kept = graph.node("Unsqueeze", graph.node("Cast", mask, to=1), graph.constant([2]))
    padded = graph.node("Unsqueeze", graph.node("Equal", ids, graph.constant(0)), graph.constant([2]))
    h = graph.node("Gather", graph.weight(20, 6), ids)
    for layer in range(3):
        h = graph.node("Where", padded, graph.constant(0, np.float32), graph.linear(h, 6, 6))
        h = graph.node("Mul", h, kept, name=f"layer{layer}")
    graph.linear(graph.node("ReduceMean", h, graph.constant([1]), keepdims=0), 6, 4, name="y")
    points = find_cutpoints(load(graph, "y", tmp_path))
    assert {"layer0", "layer1", "layer2"} <= {point.tensor.name for point in points}
    assert {point.tensor.shape for point in points if point.tensor.name.startswith("layer")} == {(-1, 6)}


def test_rotary_positions_are_carried(tmp_path):
    graph = Graph()
    x, positions = graph.input("x", ["n", 5, 4]), graph.input("positions", ["n", 5], np.int64)
    column = graph.node("Unsqueeze", graph.node("Cast", positions, to=1), graph.constant([2]))
    angles = graph.node("Cos", graph.node("MatMul", column, graph.weight(1, 4)))
    h = graph.linear(x, 4, 4)
    for layer in range(2):
        h = graph.linear(graph.node("Mul", h, angles, name=f"turned{layer}"), 4, 4)
    graph.linear(graph.node("Flatten", h), 20, 2, name="y")
    assert {"turned0", "turned1"} <= set(names(graph, "y", tmp_path))


def test_towers_are_cut_after_they_meet(tmp_path):
    graph = Graph()
    a = graph.linear(graph.input("a", ["n", 6]), 6, 6)
    b = graph.linear(graph.linear(graph.input("b", ["n", 6]), 6, 6), 6, 6)
    graph.linear(graph.node("Add", a, b, name="met"), 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["met"]


def test_what_a_subgraph_captures_is_read_there(tmp_path):
    graph = Graph()
    x = graph.input("x", [1, 6])
    a = graph.linear(x, 6, 6, name="a")
    b = graph.linear(a, 6, 6, name="b")
    total = graph.node("ReduceSum", b, keepdims=0)
    positive = graph.node("Greater", total, graph.constant(0, np.float32))
    then = graph.branch("then", [helper.make_node("Add", ["a", "b"], ["t"])])
    other = graph.branch("else", [helper.make_node("Identity", ["b"], ["e"])])
    graph.node("If", positive, name="c", then_branch=then, else_branch=other)
    graph.linear("c", 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["a", "c"]


def test_what_old_exporters_leave_behind(tmp_path):
    graph = Graph()
    h = graph.linear(graph.input("x", ["n", 6]), 6, 6, name="a")
    h = graph.node("Dropout", graph.node("Identity", h, name="same"), name="drop")
    two = graph.node("Constant", value=helper.make_tensor("two", 1, [], [2.0]))
    h = graph.node("Mul", h, two, name="twice")
    count = graph.node("Gather", graph.node("Shape", h), graph.constant([0]))
    h = graph.node("Reshape", h, graph.node("Concat", count, graph.constant([2, 3]), axis=0), name="split")
    graph.linear(graph.node("Flatten", h, name="flat"), 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["a", "same", "drop", "twice", "split", "flat"]


def test_tensors_that_a_head_can_not_read_are_left_out(tmp_path):
    graph = Graph()
    h = graph.linear(graph.input("x", ["n", 6]), 6, 6, name="a")
    turned = graph.node("Transpose", h, name="columns", perm=[1, 0])
    back = graph.node("Transpose", turned, name="rows", perm=[1, 0])
    whole = graph.node("Cast", back, name="integers", to=7)
    graph.linear(graph.node("Cast", whole, name="floats", to=1), 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["a", "rows", "floats"]


def recurrent() -> Graph:
    """Layers that have the batch behind the time."""
    graph = Graph()
    h = graph.node("Transpose", graph.input("x", ["n", 3, 6]), perm=[1, 0, 2])
    for _ in range(5):
        h = graph.linear(h, 6, 6)
    last = graph.node("Gather", h, graph.constant(2, np.int64), axis=0)
    graph.linear(last, 6, 4, name="y")
    return graph


def quantised() -> Graph:
    """Layers with whole numbers between them."""
    graph = Graph()
    h = graph.input("x", ["n", 6], np.int8)
    for _ in range(3):
        weight = graph.constant(graph.rng.integers(-3, 4, (6, 6)), np.int8)
        h = graph.node("Cast", graph.node("MatMulInteger", h, weight), to=3)
    graph.node("Cast", h, name="y", to=1)
    return graph


@pytest.mark.parametrize(
    ("graph", "says"), [(recurrent(), "the batch is the second dimension"), (quantised(), "in QDQ form")]
)
def test_it_is_said_why_no_head_could_read(tmp_path, graph, says):
    with pytest.raises(BackboneError, match=f"between its layers, .*{says}"):
        find_cutpoints(load(graph, "y", tmp_path))


def test_as_many_scores_as_an_input_is_long_are_refused(tmp_path):
    """Where an answer begins in a text: heads would give as many scores as the samples were long, whatever came."""
    graph = Graph()
    hidden = graph.node("Relu", graph.linear(graph.input("x", ["n", "t", 8]), 8, 8))
    graph.node("Squeeze", graph.linear(hidden, 8, 1), graph.constant([2]), name="y")
    rows = {"x": np.ones((3, 6, 8), np.float32)}
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), rows, tmp_path)
    with pytest.raises(BackboneError, match="'y' has 6 scores for one shape of inputs and 3 for another"):
        find_cutpoints(backbone, rows)


def test_no_cut_before_heavy_work(tmp_path):
    graph = Graph()
    ids = graph.input("ids", ["n", 5], np.int64)
    embedded = graph.node("Gather", graph.weight(20, 6), ids, name="embedded")
    graph.linear(graph.linear(graph.node("Flatten", embedded), 30, 6, name="a"), 6, 4, name="y")
    assert names(graph, "y", tmp_path) == ["a"]


@st.composite
def random_graphs(draw) -> Graph:
    """Layers, sums, and light work on a mask, wired at random to what was computed before."""
    graph = Graph(draw(st.integers(0, 99)))
    x, mask = graph.input("x", ["n", 4]), graph.input("mask", ["n", 4])
    trunk, context = [graph.linear(x, 4, 4)], [mask, x]
    for _ in range(draw(st.integers(2, 9))):
        recent = st.sampled_from(trunk[-3:])
        kind = draw(st.sampled_from(["linear", "linear", "relu", "add", "mask", "light"]))
        if kind == "light":
            context.append(graph.node("Sigmoid", draw(st.sampled_from(context))))
        elif kind == "mask":
            trunk.append(graph.node("Mul", draw(recent), draw(st.sampled_from(context))))
        elif kind == "add":
            trunk.append(graph.node("Add", draw(recent), draw(st.sampled_from(trunk))))
        else:
            last = draw(recent)
            trunk.append(graph.linear(last, 4, 4) if kind == "linear" else graph.node("Relu", last))
    graph.linear(trunk[-1], 4, 3, name="y")
    return graph


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_graphs())
def test_separators_are_those_whose_removal_disconnects_the_output(tmp_path, graph):
    whole = load(graph, "y", tmp_path).model.graph
    found = {separator.value.name for separator in separators(whole, {n: 1 for n in whole if n.op_type == "MatMul"})}
    assert found == _disconnecting(whole)


def _disconnecting(graph) -> set[str]:
    """Removes each value in turn, and searches back from the output for a first node of the trunk."""
    nodes, _ = nodes_between(graph, (), graph.outputs[:1])
    kinds = classify(nodes, graph.inputs, {n: 1 for n in graph if n.op_type == "MatMul"})
    trunk = [node for node in nodes if kinds[node.outputs[0]] == Kind.TRUNK]
    first = [n for n in trunk if all(kinds[v] != Kind.TRUNK for v in reads(n))]
    sources = {value for node in first for value in reads(node) if kinds[value] == Kind.CONTEXT}

    def reaches_a_source(value, without) -> bool:
        if value is without:
            return False
        node = value.producer()
        if value in sources or node is None or kinds[value] != Kind.TRUNK:
            return value in sources
        return any(reaches_a_source(read, without) for read in reads(node))

    output = graph.outputs[0]
    values = [node.outputs[0] for node in trunk if node.outputs[0] is not output]
    return {value.name for value in values if not reaches_a_source(output, value)}


def point(name: str, share: float, *shape: int) -> CutPoint:
    return CutPoint(Tensor(name, "FP32", shape), 0, share, int(np.prod(shape)))


def test_of_a_run_the_smallest_is_kept_and_the_last_of_equals():
    points = [point("conv", 0.1, 8, 4), point("relu", 0.1, 8, 4), point("pool", 0.1, 8), point("flat", 0.1, 8)]
    points += [point("gemm", 0.5, 4), point("act", 0.5, 4), point("pad", 0.5, 9), point("late", 0.96, 1)]
    assert [kept.tensor.name for kept in choose_cutpoints(points)] == ["flat", "act"]


def test_the_limit_spreads_over_the_compute():
    points = [point(str(share), share / 100, 4) for share in (2, 3, 20, 21, 22, 45, 60, 61, 90)]
    assert len(choose_cutpoints(points)) == 8
    assert [kept.tensor.name for kept in choose_cutpoints(points, 5)] == ["2", "22", "45", "61", "90"]
    assert [kept.tensor.name for kept in choose_cutpoints(points, 1)] == ["2"]
    with pytest.raises(BackboneError, match="can't be cut"):
        choose_cutpoints([point("late", 0.97, 4)])
