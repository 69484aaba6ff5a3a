"""Networks that give more than scores: which of their tensors are these, and what is computed of them."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper

from gati.errors import BackboneError
from gati.inference.session import open_session
from gati.repository.chain import Tensor
from gati_export.backbones.backbone import Backbone, load_backbone

ROWS = {"x": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}


def network(batch: int | str = "n") -> tuple[Graph, str, str]:
    """Two layers; the names of what is between them, and of the scores."""
    graph = Graph()
    hidden = graph.node("Relu", graph.linear(graph.input("x", [batch, 6]), 6, 8), name="hidden")
    return graph, hidden, graph.linear(hidden, 8, 4, name="scores")


def label_of(graph: Graph, scores: str) -> str:
    return graph.node("ArgMax", scores, name="label", axis=1, keepdims=0)


def loaded(graph: Graph, folder: Path, *ends: str, outputs: tuple[str, ...] = (), **more) -> Backbone:
    model = graph.model(*ends)
    for output in model.graph.output:
        output.ClearField("type")  # ONNX Runtime infers it
    onnx.save(model, folder / "m.onnx")
    return load_backbone(str(folder / "m.onnx"), ROWS, folder, outputs=outputs, **more)


def check(backbone: Backbone, folder: Path) -> None:
    """Holds scores and what is made of them against the whole network."""
    assert backbone.tail is not None
    backbone.tail.write(folder / "tail.onnx")
    onnx.checker.check_model(folder / "tail.onnx", full_check=True)
    tail = open_session(folder / "tail.onnx")
    names = [node.name for node in tail.get_outputs()]
    size = 1 if backbone.max_batch == 1 else 5
    feeds = backbone.batch(ROWS, size)
    scores = backbone.run(feeds)
    made = {backbone.output.name: scores}
    made |= zip(names, tail.run(names, {backbone.output.name: scores}), strict=True)
    whole = open_session(backbone.path)
    for tensor in backbone.tail.outputs:
        expected = np.asarray(whole.run([tensor.name], feeds)[0])
        np.testing.assert_allclose(made[tensor.name], expected, rtol=1e-6)
        assert (expected.dtype, expected.shape) == (tensor.numpy, (size, *tensor.shape))


def test_scores_that_are_an_output_are_found(tmp_path):
    graph, _, scores = network()
    odds = graph.node("Softmax", scores, name="odds", axis=1)
    backbone = loaded(graph, tmp_path, odds, scores, label_of(graph, odds))
    assert backbone.output == Tensor("scores", "FP32", (4,))
    assert [tensor.name for tensor in backbone.tail.outputs] == ["odds", "scores", "label"]
    assert [value.name for value in backbone.model.graph.outputs] == ["scores"]
    assert backbone.model.graph.num_nodes() == 3
    check(backbone, tmp_path)


def test_scores_that_the_network_keeps_to_itself_are_found(tmp_path):
    graph, _, scores = network()
    backbone = loaded(graph, tmp_path, graph.node("Softmax", scores, name="odds", axis=1), label_of(graph, scores))
    assert backbone.output.name == "scores"
    assert backbone.tail.outputs == (Tensor("odds", "FP32", (4,)), Tensor("label", "INT64", ()))
    check(backbone, tmp_path)


def test_probabilities_are_scores_where_all_else_comes_of_them(tmp_path):
    graph, _, scores = network()
    odds = graph.node("Softmax", scores, name="odds", axis=1)
    backbone = loaded(graph, tmp_path, odds, label_of(graph, odds))
    assert backbone.output.name == "odds"
    check(backbone, tmp_path)


def test_a_label_alone_is_made_of_scores(tmp_path):
    graph, _, scores = network()
    backbone = loaded(graph, tmp_path, label_of(graph, scores))
    assert backbone.output.name == "scores"
    assert backbone.tail.outputs == (Tensor("label", "INT64", ()),)
    check(backbone, tmp_path)


def test_a_batch_of_one(tmp_path):
    graph, _, scores = network(batch=1)
    backbone = loaded(graph, tmp_path, scores, label_of(graph, scores))
    assert backbone.max_batch == 1
    check(backbone, tmp_path)


@pytest.mark.parametrize("batch", ["n", 1])
def test_scores_that_are_one_pixel_lead_by_a_row_of_them(tmp_path, batch):
    graph, _, scores = network(batch)
    pixel = graph.node("Unsqueeze", scores, graph.constant([2, 3]), name="pixel")
    backbone = loaded(graph, tmp_path, pixel)
    assert backbone.output == Tensor("pixel/scores", "FP32", (4,))
    assert backbone.tail.outputs == (Tensor("pixel", "FP32", (4, 1, 1)),)
    check(backbone, tmp_path)


def test_a_pixel_beside_its_label(tmp_path):
    graph, _, scores = network()
    pixel = graph.node("Unsqueeze", scores, graph.constant([2, 3]), name="pixel")
    backbone = loaded(graph, tmp_path, pixel, graph.node("ArgMax", pixel, name="label", axis=1, keepdims=0))
    assert [tensor.name for tensor in backbone.tail.outputs] == ["pixel", "label"]
    check(backbone, tmp_path)


@pytest.mark.parametrize("name", ["score", "hit", "key", "threshold", "class_mix"])
def test_an_output_named_as_something_in_heads_comes_of_one_that_is_not(tmp_path, name):
    graph, _, scores = network()
    backbone = loaded(graph, tmp_path, graph.node("Neg", scores, name=name))
    assert backbone.output.name == f"{name}/before"
    assert [tensor.name for tensor in backbone.tail.outputs] == [name]
    check(backbone, tmp_path)


def test_scores_alone_have_no_tail(tmp_path):
    graph, _, scores = network()
    assert loaded(graph, tmp_path, scores).tail is None


def test_what_weights_are_needed_for_is_not_made_of_scores(tmp_path):
    graph, hidden, scores = network()
    with pytest.raises(
        BackboneError,
        match=r"several outputs \(scores, hidden\), and no scores .*: heads foretell one .* \(--outputs\)",
    ):
        loaded(graph, tmp_path, scores, hidden)
    backbone = loaded(graph, tmp_path, scores, hidden, outputs=("scores",))
    assert (backbone.output.name, backbone.tail) == ("scores", None)
    assert backbone.run(ROWS).shape == (5, 4)


def test_outputs_that_are_to_be_served_are_named(tmp_path):
    graph, hidden, scores = network()
    label = label_of(graph, scores)
    backbone = loaded(graph, tmp_path, label, hidden, scores, outputs=("scores", "label"))
    assert [tensor.name for tensor in backbone.tail.outputs] == ["label", "scores"]
    with pytest.raises(BackboneError, match="no output 'labels'; it has label, hidden, scores"):
        loaded(graph, tmp_path, label, hidden, scores, outputs=("labels",))


def test_what_takes_the_inputs_by_the_scores_is_refused(tmp_path):
    graph, _, scores = network()
    mixed = graph.node("Add", graph.node("ReduceMax", "x", keepdims=1, name="most"), scores, name="mixed")
    with pytest.raises(BackboneError, match="no scores of which alone"):
        loaded(graph, tmp_path, scores, mixed)


def strings(graph: Graph, scores: str) -> str:
    words = helper.make_tensor("words", TensorProto.STRING, [4], [b"a", b"b", b"c", b"d"])
    graph.weights.append(words)
    return graph.node("Gather", "words", label_of(graph, scores), name="word")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (strings, r"Output 'word' is tensor\(string\), which gati does not serve"),
        (lambda graph, scores: graph.node("Softmax", scores, name="odd", axis=0), "'odd' is not one row for each row"),
        (lambda graph, scores: graph.node("ReduceMax", scores, name="odd", keepdims=0), "'odd' is not one row"),
        (lambda graph, scores: graph.node("Transpose", scores, name="odd", perm=[1, 0]), "'odd' is not one row"),
        (lambda graph, scores: graph.node("Identity", scores, name="exit"), "'exit' is taken"),
    ],
)
def test_outputs_that_are_refused(tmp_path, made, says):
    graph, _, scores = network()
    with pytest.raises(BackboneError, match=says):
        loaded(graph, tmp_path, scores, made(graph, scores))


def test_numbers_may_be_one(tmp_path):
    graph = Graph()
    number = graph.linear(graph.node("Relu", graph.linear(graph.input("x", ["n", 6]), 6, 8)), 8, 1, name="number")
    doubled = graph.node("Add", number, number, name="doubled")
    backbone = loaded(graph, tmp_path, number, doubled, numbers=True)
    assert backbone.output == Tensor("number", "FP32", (1,))
    with pytest.raises(BackboneError, match="no scores"):
        loaded(graph, tmp_path, number, doubled)


def test_a_module_that_returns_a_mapping(tmp_path, monkeypatch):
    (tmp_path / "own_labelled.py").write_text("import networks\ndef build():\n    return networks.labelled(8).module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone = load_backbone("own_labelled:build", networks.labelled(8).inputs, tmp_path / "work")
    assert [(tensor.name, tensor.shape) for tensor in backbone.tail.outputs] == [
        ("probabilities", (networks.CLASSES,)),
        ("label", ()),
        ("best", (2,)),
    ]
    assert backbone.output.shape == (networks.CLASSES,)
    assert backbone.max_batch == 0
