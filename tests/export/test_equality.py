"""Equality: segments that are not the backbone are refused, and backbones that are not equal to themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import Graph
from onnx import helper

from gati.errors import BackboneError
from gati.inference.session import open_session
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import CutPoint, choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import ROUNDING, TOLERANCE, check_segments, difference, usual_score
from gati_export.backbones.segments import cut, write_segments

Loaded = tuple[Backbone, dict[str, np.ndarray]]


def exported(network: networks.Network, folder: Path) -> Loaded:
    path = networks.export_onnx(network.module, network.inputs, folder / "m.onnx")
    return load_backbone(str(path), network.inputs, folder), network.inputs


@pytest.fixture
def mlp(tmp_path: Path) -> Loaded:
    return exported(networks.mlp(), tmp_path)


def load(graph: Graph, output: str, folder: Path) -> Backbone:
    return load_backbone(str(graph.save(folder / "m.onnx", output)), None, folder)


def write(backbone: Backbone, points: list[CutPoint], folder: Path) -> list[Path]:
    segments = write_segments(cut(backbone, points), lambda index: folder / str(index))
    return [folder / str(segment.index) / "model.onnx" for segment in segments]


class Magnified(torch.nn.Module):
    """A network whose scores are so many times its differences from those of one of its inputs."""

    def __init__(self, network: networks.Network, times: float) -> None:
        super().__init__()
        self.network, self.times = network.module, times
        with torch.no_grad():
            self.zero = network.module(torch.from_numpy(network.inputs["x"][:1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.network(x) - self.zero) * self.times


@pytest.fixture
def magnified(tmp_path: Path):
    def make(times: float) -> tuple[Backbone, list[Path], dict[str, np.ndarray]]:
        network = networks.resnet()
        backbone, inputs = exported(networks.Network(Magnified(network, times).eval(), network.inputs), tmp_path)
        return backbone, write(backbone, find_cutpoints(backbone, inputs), tmp_path), inputs

    return make


def test_rounding_that_a_network_magnifies_is_no_difference(magnified):
    backbone, paths, samples = magnified(1e4)
    assert TOLERANCE < check_segments(backbone, paths, samples) <= ROUNDING


def test_a_network_that_is_little_but_rounding_is_refused(magnified):
    backbone, paths, samples = magnified(1e6)
    with pytest.raises(BackboneError, match=r"^Rounding alone changes the backbone's answers by .*; train it"):
        check_segments(backbone, paths, samples)


@pytest.mark.parametrize("size", [1, 1e-2, 1e-5])
def test_rows_that_hang_on_each_other_are_found_however_small_scores_are(tmp_path, size):
    graph = Graph()
    x = graph.input("x", ["n", 8])
    mixed = graph.node("Sub", x, graph.node("ReduceMean", x, graph.constant([0])))
    graph.node("Mul", graph.linear(mixed, 8, 4), graph.constant(size, np.float32), name="y")
    backbone = load(graph, "y", tmp_path)
    rows = {"x": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)}
    with pytest.raises(BackboneError, match="differently alone and in a batch"):
        check_segments(backbone, [backbone.path], rows)


@pytest.mark.parametrize("batch", ["n", 1])
def test_outputs_that_do_not_follow_from_a_row_of_scores_alone_are_refused(tmp_path, batch):
    """The scores above 0, of which the first rows have equally many; and as many of the best as some row has."""
    graph = Graph()
    scores = graph.linear(graph.input("x", [batch, 8]), 8, 4, name="y")
    above = graph.node("Cast", graph.node("Greater", scores, graph.constant(0.0, np.float32)), to=7)
    if batch == 1:
        flat = graph.node("Cast", graph.node("Reshape", above, graph.constant([-1])), to=9)
        graph.node("Compress", scores, flat, name="top", axis=1)
    else:
        count = graph.node("ReduceSum", above, graph.constant([1]), keepdims=0)
        most = graph.node("ReduceMax", count, graph.constant([0]), keepdims=1)
        graph.nodes.append(helper.make_node("TopK", [scores, most], ["top", "places"], axis=1))
    model = graph.model("y", "top")
    for output in model.graph.output:
        output.ClearField("type")
    onnx.save(model, tmp_path / "m.onnx")
    rows = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    session = open_session(tmp_path / "m.onnx")
    above_0 = np.array([(np.asarray(session.run(["y"], {"x": row[None]})[0]) > 0).sum() for row in rows])
    samples = {"x": np.concatenate([rows[above_0 == 2][:2], rows])}
    backbone = load_backbone(str(tmp_path / "m.onnx"), samples, tmp_path)
    with pytest.raises(BackboneError, match="Output 'top' is not the same for a row of scores in every batch"):
        check_segments(backbone, [tmp_path / "m.onnx"], samples)


def test_a_number_near_zero_is_no_reason_to_refuse_a_regression():
    scores = np.array([[3.0], [-2.0], [1e-6]])
    assert difference(scores + 1e-6, scores) == pytest.approx(1e-6, rel=0.7)
    assert usual_score([scores, np.zeros((0, 1))]) == 1 and usual_score([scores * 1e-3]) == pytest.approx(2e-3)
    assert usual_score([np.full((2, 3), np.nan)]) == 1 == usual_score([np.zeros((2, 3))])


def test_other_weights_are_not_taken_for_rounding(magnified):
    backbone, paths, samples = magnified(1e4)
    path = next(path for path in paths if any(node.op_type == "Conv" for node in onnx.load(path).graph.node))
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    changed = onnx.numpy_helper.to_array(weights) * np.float32(1 + 1e-6)
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(model, path)
    with pytest.raises(BackboneError, match=r"^The segments' answers differ"):
        check_segments(backbone, paths, samples)


def test_what_is_no_number_on_both_sides_is_the_same():
    scores = np.array([[1, np.nan, np.inf], [2, 3, 4]])
    assert difference(scores, scores) == 0
    assert difference(scores, np.array([[1, np.nan, np.inf], [2, 3, 4 + 4e-3]])) == pytest.approx(1e-3, rel=0.01)
    for other in (np.nan, np.inf, -np.inf):
        changed = np.where(scores == 3, other, scores)
        assert min(difference(scores, changed), difference(changed, scores)) > 1e300


def test_other_segments_are_noticed(mlp, tmp_path):
    backbone, samples = mlp
    paths = write(backbone, choose_cutpoints(find_cutpoints(backbone, samples)), tmp_path)
    model = onnx.load(paths[-1])
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.5)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
    onnx.save(model, paths[-1])
    with pytest.raises(BackboneError, match=r"differ from the backbone's by .*cut at fewer places"):
        check_segments(backbone, paths, samples)
    quantised = backbone.model.clone()
    quantised.graph.append(ir.Node("", "QuantizeLinear", []))
    with pytest.raises(BackboneError, match="quantise the network with reduce_range"):
        check_segments(replace(backbone, model=quantised), paths, samples)


def test_the_difference_is_the_largest_over_all_samples(tmp_path):
    graph = Graph()
    h = graph.node("Identity", graph.linear(graph.input("x", ["n", 2]), 2, 2), name="h")
    backbone = load(graph, graph.node("Mul", h, graph.constant([1, 1], np.float32)), tmp_path)
    point = next(point for point in find_cutpoints(backbone) if point.tensor.name == "h")
    paths = write(backbone, [point], tmp_path)
    model = onnx.load(paths[1])
    almost = np.array([1, 1 + 4e-6], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(almost, model.graph.initializer[0].name))
    onnx.save(model, paths[1])
    rows = np.zeros((20, 2), np.float32)
    assert check_segments(backbone, paths, {"x": rows}) == 0.0
    rows[17] = 1
    assert check_segments(backbone, paths, {"x": rows}) > 0.0


def test_a_backbone_that_is_at_odds_with_itself(tmp_path):
    graph = Graph()
    h = graph.linear(graph.input("x", ["n", 6]), 6, 6)
    h = graph.node("Add", h, graph.node("RandomNormalLike", h))
    backbone = load(graph, graph.linear(h, 6, 4), tmp_path)
    paths = write(backbone, find_cutpoints(backbone), tmp_path)
    with pytest.raises(BackboneError, match="differently from run to run"):
        check_segments(backbone, paths, {"x": np.ones((3, 6), np.float32)})


def test_a_backbone_whose_answer_depends_on_the_rest_of_the_batch(tmp_path):
    graph = Graph()
    h = graph.linear(graph.input("x", ["n", 6]), 6, 6)
    h = graph.node("Sub", h, graph.node("ReduceMean", h, graph.constant([0], np.int64), keepdims=1))
    backbone = load(graph, graph.linear(h, 6, 4), tmp_path)
    paths = write(backbone, [], tmp_path)
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    with pytest.raises(BackboneError, match="alone and in a batch"):
        check_segments(backbone, paths, {"x": rows})
