"""Segments: wherever a backbone is cut, they are the backbone, one after another."""

from __future__ import annotations

import itertools
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from graphs import Graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from gati.errors import BackboneError
from gati.inference.fuse import LARGEST, fuse, stage_ranges
from gati.inference.session import open_session
from gati.repository.chain import Segment, Tensor, sha256_of
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import CutPoint, choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import check_segments
from gati_export.backbones.segments import cut, with_shares, write_segments
from gati_export.samples.activations import run_segments

FAMILIES = {
    "resnet": networks.resnet,
    "pre_activation": lambda: networks.resnet(pre=True),
    "mobilenet": networks.mobilenet,
    "vit": networks.vit,
    "text": networks.text_transformer,
    "mlp": networks.mlp,
    "vgg": networks.vgg,
}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, tuple[Backbone, dict[str, np.ndarray]]]:
    """Every family, exported once."""
    folder, loaded = tmp_path_factory.mktemp("families"), {}
    for name, make in FAMILIES.items():
        network = make()
        path = networks.export_onnx(network.module, network.inputs, folder / f"{name}.onnx")
        loaded[name] = load_backbone(str(path), network.inputs, folder), network.inputs
    return loaded


def write(backbone: Backbone, points: list[CutPoint], folder: Path) -> tuple[tuple[Segment, ...], list[Path]]:
    segments = write_segments(cut(backbone, points), lambda index: folder / str(index))
    return segments, [folder / str(segment.index) / "model.onnx" for segment in segments]


@pytest.mark.parametrize(
    ("name", "between_blocks", "largest"),
    [
        ("resnet", 4, 1e-6),
        ("pre_activation", 4, 1e-6),
        ("mobilenet", 5, 1e-6),
        ("vit", 6, 1e-5),
        ("text", 5, 1e-5),
        ("mlp", 2, 0.0),
        ("vgg", 2, 1e-6),
    ],
)
def test_a_family_cut_everywhere_is_the_whole(families, tmp_path, name, between_blocks, largest):
    backbone, samples = families[name]
    points = find_cutpoints(backbone, samples)
    assert check_segments(backbone, write(backbone, points, tmp_path / "all")[1], samples) <= largest
    chosen = choose_cutpoints(points)
    assert len(chosen) >= between_blocks
    segments, paths = write(backbone, chosen, tmp_path / "chosen")
    assert check_segments(backbone, paths, samples) <= largest
    assert segments[-1].output == backbone.output
    for path, segment in zip(paths, segments, strict=True):
        onnx.checker.check_model(path, full_check=True)
        assert segment.sha256 == sha256_of(path)


def test_heads_come_after_activations(families):
    for name in ("resnet", "mlp"):
        backbone, samples = families[name]
        nodes = list(backbone.model.graph)
        assert {nodes[point.node].op_type for point in choose_cutpoints(find_cutpoints(backbone, samples))} == {"Relu"}


def test_text_segments_carry_the_mask_where_they_read_it(families, tmp_path):
    backbone, samples = families["text"]
    segments, _ = write(backbone, choose_cutpoints(find_cutpoints(backbone, samples)), tmp_path)
    carried = [segment.inputs[1:] for segment in segments]
    assert segments[0].inputs == ("input_ids", "attention_mask")
    assert carried[1:] == [(), ("attention_mask",), (), ("attention_mask",), ()]


def test_equal_backbones_give_equal_bytes(families, tmp_path):
    backbone, samples = families["vit"]
    again = load_backbone(str(backbone.path), samples, tmp_path)
    first, second = (write(b, find_cutpoints(b, samples), tmp_path)[0] for b in (backbone, again))
    assert first == second
    assert [segment.index for segment in first] == list(range(len(first)))


def test_boundaries_declare_their_types(families, tmp_path):
    backbone, samples = families["resnet"]
    segments, paths = write(backbone, find_cutpoints(backbone, samples), tmp_path)
    for (before, _), (segment, path) in itertools.pairwise(zip(segments, paths, strict=True)):
        node = open_session(path).get_inputs()[0]
        assert (segment.inputs[0], node.name) == (before.output.name, before.output.name)
        assert node.shape == ["batch", *before.output.shape]


def test_shares_are_of_all_time_up_to_a_segments_end(families, tmp_path):
    backbone, samples = families["vgg"]
    segments, _ = write(backbone, choose_cutpoints(find_cutpoints(backbone, samples), 2), tmp_path)
    assert [segment.share for segment in with_shares(segments, [1.0, 2.0, 1.0])] == [0.25, 0.75, 1.0]


def test_sequences_of_any_length(tmp_path):
    module, inputs = networks.text_transformer()
    path = networks.export_onnx(module, inputs, tmp_path / "m.onnx", dynamic=("batch", "length"))
    backbone = load_backbone(str(path), inputs, tmp_path)
    points = choose_cutpoints(find_cutpoints(backbone, inputs))
    assert {point.tensor.shape for point in points} == {(-1, 32)}
    assert len(points) >= 5
    _, paths = write(backbone, points, tmp_path)
    assert check_segments(backbone, paths, inputs) <= 1e-5
    assert check_segments(backbone, paths, {name: rows[:, :4] for name, rows in inputs.items()}) <= 1e-5
    assert all("batch" in node.shape for node in open_session(paths[1]).get_inputs())


def test_half_precision(tmp_path):
    graph = Graph()
    h = graph.input("x", ["n", 6], np.float16)
    for _ in range(3):
        h = graph.node("Tanh", graph.node("MatMul", h, graph.constant(graph.rng.normal(size=(6, 6)), np.float16)))
    backbone = load(graph, h, tmp_path, dtype=onnx.TensorProto.FLOAT16)
    samples = {"x": np.random.default_rng(0).normal(size=(9, 6)).astype(np.float16)}
    points = find_cutpoints(backbone, samples)
    assert {point.tensor.dtype for point in points} == {"FP16"}
    assert check_segments(backbone, write(backbone, points, tmp_path)[1], samples) <= 1e-2


def load(graph: Graph, output: str, folder: Path, **declared) -> Backbone:
    return load_backbone(str(graph.save(folder / "m.onnx", output, **declared)), None, folder)


def test_fixed_batch(tmp_path):
    graph = Graph()
    h = graph.node("Relu", graph.linear(graph.input("x", [1, 6]), 6, 6))
    backbone = load(graph, graph.linear(h, 6, 4), tmp_path)
    samples = {"x": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    _, paths = write(backbone, find_cutpoints(backbone, samples), tmp_path)
    assert check_segments(backbone, paths, samples) == 0.0
    assert open_session(paths[1]).get_inputs()[0].shape == [1, 6]


def test_a_subgraph_keeps_what_it_captures(tmp_path):
    graph = Graph()
    a = graph.linear(graph.input("x", [1, 6]), 6, 6, name="a")
    weight = graph.weight(6)
    total = graph.node("ReduceSum", a, keepdims=0)
    positive = graph.node("Greater", total, graph.constant(0, np.float32))
    then = graph.branch("then", [helper.make_node("Mul", ["a", weight], ["t"])])
    other = graph.branch("else", [helper.make_node("Neg", ["a"], ["e"])])
    c = graph.node("If", positive, name="c", then_branch=then, else_branch=other)
    backbone = load(graph, graph.linear(graph.linear(c, 6, 6), 6, 4), tmp_path)
    samples = {"x": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)}
    points = find_cutpoints(backbone, samples)
    assert [point.tensor.name for point in points][:2] == ["a", "c"]
    _, paths = write(backbone, points, tmp_path)
    assert check_segments(backbone, paths, samples) == 0.0
    fused = open_session(fuse([path.read_bytes() for path in paths]))
    row = {"x": samples["x"][:1]}
    np.testing.assert_array_equal(fused.run(None, row)[0], backbone.run(row))


@pytest.mark.parametrize("how", ["start and end", "gather", "slice", "all"])
def test_segments_ask_the_cut_tensor_how_many_rows_there_are(tmp_path, how):
    graph = Graph()
    x = graph.input("x", ["n", 6])
    h = graph.node("Relu", graph.linear(x, 6, 6), name="h")
    if how == "start and end":
        count = graph.node("Shape", x, start=0, end=1)
    elif how == "gather":
        count = graph.node("Gather", graph.node("Shape", x), graph.constant([0]))
    else:
        ends = graph.constant([1 if how == "slice" else 2])
        count = graph.node("Slice", graph.node("Shape", x), graph.constant([0]), ends)
    if how == "all":
        h = graph.node("Reshape", h, count)
    else:
        h = graph.node("Reshape", h, graph.node("Concat", count, graph.constant([6]), axis=0))
    backbone = load(graph, graph.linear(h, 6, 4), tmp_path)
    samples = {"x": np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)}
    point = next(point for point in find_cutpoints(backbone) if point.tensor.name == "h")
    segments, paths = write(backbone, [point], tmp_path)
    assert segments[1].inputs == (("h", "x") if how == "all" else ("h",))
    assert check_segments(backbone, paths, samples) == 0.0


def test_weights_and_light_work_that_two_segments_need_are_in_both(tmp_path):
    graph = Graph()
    x, weight = graph.input("x", ["n", 6]), graph.weight(6, 6)
    bias = graph.node("Sigmoid", graph.input("hint", ["n", 6]))
    h = graph.node("Add", graph.node("MatMul", x, weight), bias, name="first")
    h = graph.node("Add", graph.node("MatMul", h, weight), bias, name="second")
    backbone = load(graph, graph.linear(h, 6, 4), tmp_path)
    points = [point for point in find_cutpoints(backbone) if point.tensor.name in ("first", "second")]
    segments, paths = write(backbone, points, tmp_path)
    assert [segment.inputs for segment in segments] == [("x", "hint"), ("first", "hint"), ("second",)]
    rows = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    assert check_segments(backbone, paths, {"x": rows, "hint": -rows}) == 0.0


@st.composite
def residual_graphs(draw) -> Graph:
    """Layers with shortcuts over them, branches that meet again, and a mask, at random."""
    graph = Graph(draw(st.integers(0, 99)))
    h, mask = graph.input("x", ["n", 4]), graph.input("mask", ["n", 4])
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["plain", "residual", "branches", "masked"]))
        start, h = h, graph.node(draw(st.sampled_from(["Relu", "Tanh"])), graph.linear(h, 4, 4))
        if kind == "residual":
            h = graph.node("Add", graph.linear(h, 4, 4), start)
        elif kind == "branches":
            both = graph.node("Concat", h, graph.node("Sigmoid", graph.linear(start, 4, 4)), axis=1)
            h = graph.linear(both, 8, 4)
        elif kind == "masked":
            h = graph.node("Mul", h, graph.node("Cos", mask))
    graph.linear(h, 4, 3, name="y")
    return graph


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(residual_graphs(), st.data())
def test_cut_anywhere_is_the_whole(tmp_path, graph, data):
    backbone = load(graph, "y", tmp_path)
    points = find_cutpoints(backbone)
    assert points
    chosen = [point for point in points if data.draw(st.booleans())]
    rng = np.random.default_rng(0)
    samples = {name: rng.normal(size=(9, 4)).astype(np.float32) for name in ("x", "mask")}
    feeds = {tensor.name: samples[tensor.name] for tensor in backbone.inputs}
    segments, paths = write(backbone, chosen, tmp_path)
    assert len(segments) == len(chosen) + 1
    assert check_segments(backbone, paths, feeds) <= 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_segments_fused_are_segments_one_after_another(name, families, tmp_path):
    backbone, samples = families[name]
    segments, paths = write(backbone, choose_cutpoints(find_cutpoints(backbone), 4), tmp_path)
    models = [path.read_bytes() for path in paths]
    apart = run_segments([open_session(path) for path in paths], samples)
    for cuts in ([], [0], [1], [0, 2], [*range(len(segments))]):
        parts = [fuse([models[index] for index in part]) for part in stage_ranges(len(models), cuts, [0] * len(models))]
        assert len(parts) == len({*cuts} - {len(segments) - 1}) + 1
        np.testing.assert_allclose(run_segments([*map(open_session, parts)], samples), apart, rtol=1e-4, atol=1e-5)


def test_what_two_segments_call_alike_stays_apart_when_they_are_fused():
    """Each holds a weight `w` and a value `h` of its own; both read `mask`."""

    def segment(source: str, target: str, factor: float) -> bytes:
        nodes = [helper.make_node("Mul", [source, "w"], ["h"]), helper.make_node("Add", ["h", "mask"], [target])]
        ends = {n: helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b"]) for n in (source, "mask", target)}
        weight = onnx.numpy_helper.from_array(np.float32([factor]), "w")
        graph = helper.make_graph(nodes, "g", [ends[source], ends["mask"]], [ends[target]], [weight])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()

    whole = fuse([segment("x", "cut", 2), segment("cut", "y", 10)])
    onnx.checker.check_model(onnx.load_model_from_string(whole))
    session = open_session(whole)
    assert [node.name for node in session.get_inputs()] == ["x", "mask"]
    feeds = {"x": np.float32([1, 2]), "mask": np.float32([100, 200])}
    assert np.asarray(session.run(["y"], feeds)[0]).tolist() == [1120, 2240]


@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(1, 10))
def test_stages_end_at_heads_and_where_a_graph_would_grow_too_large(count, cuts, size):
    sizes = [size * LARGEST // 10 for _ in range(count)]
    parts = stage_ranges(count, [*cuts], sizes)
    assert [index for part in parts for index in part] == list(range(count))
    ends = {part[-1] for part in parts}
    assert cuts & set(range(count)) <= ends
    for part in parts:
        assert len(part) == 1 or sum(sizes[index] for index in part) <= LARGEST
        assert part[-1] in cuts or part[-1] == count - 1 or (len(part) + 1) * sizes[0] > LARGEST


def test_segments_can_be_run_by_hand(families, tmp_path):
    backbone, samples = families["mlp"]
    _, paths = write(backbone, [], tmp_path)
    result = run_segments([open_session(path) for path in paths], samples)
    assert np.array_equal(result, backbone.run(samples))


def test_a_folder_that_can_not_be_written(families, tmp_path):
    backbone, _ = families["mlp"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BackboneError, match="can't be written"):
        write_segments(cut(backbone, []), lambda index: tmp_path / "file" / str(index))


def test_shape_of_the_output_tensor(families):
    assert families["mlp"][0].output == Tensor("output", "FP32", (networks.CLASSES,))
