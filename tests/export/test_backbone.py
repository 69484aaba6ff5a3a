"""Loading backbones: what is accepted, and what is refused with which sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import Graph
from onnx import helper

from gati.errors import BackboneError, SamplesError
from gati.repository.chain import Tensor
from gati_export.backbones.backbone import load_backbone

MODULES = '''
import torch
from torch import nn

class Two(nn.Module):
    """Two inputs, an option, a mapping as its result, and dropout that eval mode must switch off."""
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(6, 4), nn.Dropout(0.5)
    def forward(self, left, right, scale=None):
        return {"logits": self.drop(self.fc(torch.cat([left, right.float()], 1)))}

class OneRow(nn.Module):
    """Flattens the batch away, so that it takes one row only."""
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)
    def forward(self, x):
        return self.fc(x.reshape(1, 6))

class Asks(nn.Module):
    """Looks at its numbers before it goes on, which torch.export can't follow, and a trace does once."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 4)
    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else -self.fc(x)

class Pair(nn.Module):
    def forward(self, x):
        return x, x + 1

class Keys(nn.Module):
    """Names its outputs as its layers, and as what PyTorch calls their results."""
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
    def forward(self, x):
        y = self.linear(x).relu()
        return {"linear": y, "relu": y.softmax(1)}

class Echo(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
    def forward(self, x):
        return {"x": self.linear(x)}

def wrapped():
    return nn.DataParallel(torch.compile(Keys()))

def scripted():
    return torch.jit.trace(nn.Linear(6, 4), torch.ones(1, 6))

def frozen():
    return torch.export.export(nn.Linear(6, 4), (torch.ones(1, 6),)).module()

def leaves():
    raise SystemExit(3)

class Counts(nn.Module):
    """Counts its calls, which the exported network does not."""
    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(6, 4), 0
    def forward(self, x):
        self.calls += 1
        return self.linear(x) + self.calls

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("the weights are on the moon")

def half():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).half()

def fails():
    raise OSError("no disk")

def number():
    return 3
'''


def small(batch="batch", shape=(6,), **declared) -> Graph:
    graph = Graph()
    graph.linear(graph.input("x", [batch, *shape], **declared), 6, 4, name="y")
    return graph


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_networks", None)


def test_onnx_file(tmp_path):
    backbone = load_backbone(str(small().save(tmp_path / "m.onnx", "y")), None, tmp_path)
    assert backbone.inputs == (Tensor("x", "FP32", (6,)),)
    assert backbone.output == Tensor("y", "FP32", (4,))
    assert backbone.max_batch == 0
    assert backbone.run({"x": np.ones((3, 6), np.float32), "label": np.ones(3)}).shape == (3, 4)


def test_batch_fixed_at_one(tmp_path):
    samples = {"x": np.ones((3, 6), np.float32)}
    backbone = load_backbone(str(small(batch=1).save(tmp_path / "m.onnx", "y")), samples, tmp_path)
    assert backbone.max_batch == 1


def test_dimensions_that_paddle_calls_unknown(tmp_path):
    graph = Graph()
    h = graph.node("Relu", graph.node("Conv", graph.input("x", [-1, 3, "?", "?"]), graph.weight(4, 3, 1, 1)))
    graph.linear(graph.node("ReduceMean", h, graph.constant([2, 3]), keepdims=0), 4, 2, name="y")
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), {"x": np.ones((2, 3, 4, 9))}, tmp_path)
    assert backbone.inputs == (Tensor("x", "FP32", (3, -1, -1)),)
    assert backbone.max_batch == 0
    assert [dim.value for dim in backbone.model.graph.inputs[0].shape if not isinstance(dim, int)] == [None] * 3


def test_batch_that_is_free_in_name_only(tmp_path):
    graph = Graph()
    one = graph.node("Reshape", graph.input("x", ["n", 6]), graph.constant([1, 6]))
    graph.linear(one, 6, 4, name="y")
    assert load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), None, tmp_path).max_batch == 1


def test_batch_of_two_that_is_free_in_name_only(tmp_path):
    graph = Graph()
    both = graph.node("Concat", graph.input("x", ["n", 6]), graph.weight(2, 6), axis=1)
    graph.linear(both, 12, 4, name="y")
    path = str(graph.save(tmp_path / "m.onnx", "y"))
    with pytest.raises(BackboneError, match="takes two rows and not one: a batch is fixed inside it"):
        load_backbone(path, {"x": np.ones((5, 6), np.float32)}, tmp_path)


def test_shapes_that_the_file_does_not_say(tmp_path):
    graph = Graph()
    graph.linear(graph.input("x", None), 6, 4, name="y")
    path = str(graph.save(tmp_path / "m.onnx", "y"))
    assert load_backbone(path, {"any": np.ones((2, 6))}, tmp_path).inputs == (Tensor("x", "FP32", (6,)),)
    with pytest.raises(BackboneError, match="give samples"):
        load_backbone(path, None, tmp_path)


def test_weights_among_the_inputs_are_not_inputs(tmp_path):
    graph = small()
    graph.inputs.append(helper.make_tensor_value_info("w0", onnx.TensorProto.FLOAT, [6, 4]))
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), None, tmp_path)
    assert [tensor.name for tensor in backbone.inputs] == ["x"]


def test_hidden_tensors_are_renamed_where_heads_use_the_name(tmp_path):
    graph = Graph()
    graph.linear(graph.linear(graph.input("x", ["n", 6]), 6, 6, name="score"), 6, 4, name="y")
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), None, tmp_path)
    assert "score" not in {value.name for node in backbone.model.graph for value in node.outputs}


def test_local_functions_are_inlined(tmp_path):
    model = small().model("y")
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(helper.make_node("Act", ["h"], ["y"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, tmp_path / "m.onnx")
    backbone = load_backbone(str(tmp_path / "m.onnx"), None, tmp_path)
    assert [node.op_type for node in backbone.model.graph] == ["MatMul", "Relu"]


def test_external_data_beside_the_file(tmp_path):
    onnx.save(small().model("y"), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert load_backbone(str(tmp_path / "m.onnx"), None, tmp_path).output.shape == (4,)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-4])
    with pytest.raises(BackboneError, match=r"'m\.data', which is missing or too short"):
        load_backbone(str(tmp_path / "m.onnx"), None, tmp_path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(BackboneError, match=r"'m\.data', which is missing or too short"):
        load_backbone(str(tmp_path / "m.onnx"), None, tmp_path)


def foreign_operator() -> onnx.ModelProto:
    graph = Graph()
    graph.node("Magic", graph.input("x", ["n", 6]), name="y", domain="com.example")
    return graph.model("y")


def two_outputs() -> onnx.ModelProto:
    graph = small()
    graph.linear("x", 6, 4, name="z")
    return graph.model("y", "z")


def named(name: str, of: str = "") -> onnx.ModelProto:
    """A network with an output of this name, or an input, beside an output that is named otherwise."""
    graph = Graph()
    graph.linear(graph.input(name if of else "x", ["n", 6]), 6, 4, name=of or name)
    return graph.model(of or name)


def mixed_batches() -> onnx.ModelProto:
    graph = Graph()
    both = graph.node("Add", graph.input("a", ["n", 6]), graph.input("b", [1, 6]))
    graph.linear(both, 6, 4, name="y")
    return graph.model("y")


def integers() -> onnx.ModelProto:
    graph = Graph()
    graph.node(
        "MatMulInteger", graph.input("x", ["n", 6], np.uint8), graph.constant(np.ones((6, 4)), np.uint8), name="y"
    )
    return graph.model("y", dtype=onnx.TensorProto.INT32)


def squeezed() -> onnx.ModelProto:
    graph = Graph()
    graph.node("Squeeze", graph.linear(graph.input("x", ["n", 6]), 6, 1), graph.constant([1], np.int64), name="y")
    return graph.model("y", shape=["n"])


def image_output() -> onnx.ModelProto:
    graph = Graph()
    graph.linear(graph.input("x", ["n", 2, 6]), 6, 4, name="y")
    return graph.model("y")


def one_class() -> onnx.ModelProto:
    graph = Graph()
    graph.linear(graph.input("x", ["n", 6]), 6, 1, name="y")
    return graph.model("y")


def new_opset() -> onnx.ModelProto:
    model = small().model("y")
    model.opset_import[0].version = 999
    return model


def passes_through() -> onnx.ModelProto:
    graph = small()
    return graph.model("x", shape=["batch", 6])


def constant_beside() -> onnx.ModelProto:
    graph = small()
    return graph.model("y", graph.weight(1, 4))


def listed_twice() -> onnx.ModelProto:
    model = small().model("y")
    model.graph.output.append(model.graph.output[0])
    return model


def dictionaries() -> onnx.ModelProto:
    """What scikit-learn's converter makes of a classifier, unless it is told not to."""
    graph = Graph()
    scores = graph.node("Softmax", graph.linear(graph.input("x", ["n", 6]), 6, 3))
    graph.node("ZipMap", scores, name="y", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    model = graph.model("y")
    kind = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    return model


def function_of_another_opset() -> onnx.ModelProto:
    model = small().model("y")
    opsets = [helper.make_opsetid("", 13)]
    model.functions.append(
        helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets)
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Twice", ["y"], ["z"], domain="own"))
    model.graph.output[0].name = "z"
    return model


def no_inputs() -> onnx.ModelProto:
    graph = Graph()
    graph.node("Relu", graph.weight(2, 3), name="y")
    return graph.model("y")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (foreign_operator(), r"ONNX Runtime can't run m.onnx \(.*com.example"),
        (two_outputs(), r"several outputs \(y, z\)"),
        (named("score", of="y"), "'score' is taken"),
        (named("exit"), "'exit' is taken"),
        (mixed_batches(), "fixed at 1 for 'b'"),
        (small(batch=8).model("y"), "batch fixed at 8"),
        (integers(), r"'y' is tensor\(int32\), and no scores lead to it"),
        (image_output(), r"shape \[1, 2, 4\]"),
        (one_class(), "'y' is one number.*both 1 - p and p.*within X"),
        (
            squeezed(),
            r"shape \[1\] for one row.* or \[batch, numbers\]\. Leave out what drops that dimension, a squeeze",
        ),
        (new_opset(), r"ONNX Runtime can't run m.onnx \(ONNX Runtime only"),
        (passes_through(), "nothing to cut"),
        (no_inputs(), "no inputs"),
        (constant_beside(), r"Output 'w1' is a constant, the same for all inputs; name the outputs"),
        (listed_twice(), "lists its output 'y' twice"),
        (dictionaries(), r"gives dictionaries \(ZipMap\).*zipmap=False"),
        (function_of_another_opset(), r"functions of its own that can't be taken apart \(.*; inline them"),
        (Graph().model(), "no network"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_that_are_refused(tmp_path, model, says):
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BackboneError, match=says) as caught:
        load_backbone(str(tmp_path / "m.onnx"), None, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_inputs_that_are_refused(tmp_path):
    graph = Graph()
    graph.node("Cast", graph.input("x", ["n", 6]), name="y", to=1)
    model = graph.model("y")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BackboneError, match="BFLOAT16, which gati does not serve"):
        load_backbone(str(tmp_path / "m.onnx"), None, tmp_path)
    graph = Graph()
    graph.node("Unsqueeze", graph.input("x", []), graph.constant([0, 1]), name="y")
    with pytest.raises(BackboneError, match="'x' is a scalar"):
        load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), None, tmp_path)


def test_files_that_are_refused(tmp_path):
    whole = small().save(tmp_path / "whole.onnx", "y").read_bytes()
    for name, content in {"cut": whole[:60], "text": b"hello", "zip": b"PK\x03\x04" * 9, "empty": b""}.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(BackboneError, match=f"{name}.onnx"):
            load_backbone(str(tmp_path / f"{name}.onnx"), None, tmp_path)
        (tmp_path / f"{name}.pt2").write_bytes(content)
        with pytest.raises(BackboneError, match=f"{name}.pt2 is not a program"):
            load_backbone(str(tmp_path / f"{name}.pt2"), None, tmp_path)
    for source in ("none.onnx", "none.pt2"):
        with pytest.raises(BackboneError, match="no file"):
            load_backbone(str(tmp_path / source), None, tmp_path)
    with pytest.raises(BackboneError, match="is no backbone"):
        load_backbone("model.plan", None, tmp_path)


def test_samples_that_the_network_fails_on(tmp_path):
    graph = Graph()
    graph.linear(graph.input("x", ["n", "m"]), 6, 4, name="y")
    path = str(graph.save(tmp_path / "m.onnx", "y"))
    assert load_backbone(path, {"x": np.ones((2, 6))}, tmp_path).inputs[0].shape == (-1,)
    with pytest.raises(BackboneError, match="fails on the samples"):
        load_backbone(path, {"x": np.ones((2, 7))}, tmp_path)


def test_module(tmp_path, modules, capfd):
    rng = np.random.default_rng(0)
    samples = {"right": rng.integers(0, 9, (5, 2)), "left": rng.normal(size=(5, 4)), "label": np.ones(5)}
    backbone = load_backbone("own_networks:Two", samples, tmp_path / "work")
    assert backbone.inputs == (Tensor("left", "FP32", (4,)), Tensor("right", "INT64", (2,)))
    assert backbone.output == Tensor("logits", "FP32", (4,))
    assert (backbone.max_batch, backbone.note) == (0, "")
    feeds = backbone.batch(samples, 5)
    assert np.array_equal(backbone.run(feeds), backbone.run(feeds))
    assert str(Path.cwd()).encode() not in backbone.path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_module_that_takes_one_row(tmp_path, modules):
    samples = {"data": np.ones((5, 6))}
    backbone = load_backbone("own_networks:OneRow", samples, tmp_path / "work")
    assert backbone.inputs == (Tensor("x", "FP32", (6,)),)
    assert backbone.max_batch == 1


def test_a_module_that_can_only_be_traced(tmp_path, modules, capfd):
    rows = np.random.default_rng(0).random((9, 6)).astype(np.float32)
    backbone = load_backbone("own_networks:Asks", {"x": rows}, tmp_path / "work")
    assert (backbone.inputs, backbone.max_batch) == ((Tensor("x", "FP32", (6,)),), 0)
    assert backbone.output == Tensor("output", "FP32", (4,))
    assert len(backbone.run({"x": rows})) == 9
    assert "so it was traced" in backbone.note
    assert str(Path.cwd()).encode() not in backbone.path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_trace_that_answers_otherwise_is_not_taken(tmp_path, modules):
    rows = np.random.default_rng(0).random((9, 6)).astype(np.float32)
    rows[2:] *= -1  # a larger batch than the one that is traced goes the other way
    with pytest.raises(BackboneError, match=r"Asks can't be exported to ONNX \(Could not guard"):
        load_backbone("own_networks:Asks", {"x": rows}, tmp_path / "work")


def test_module_of_half_precision(tmp_path, modules):
    backbone = load_backbone("own_networks:half", {"data": np.ones((5, 6))}, tmp_path / "work")
    assert (backbone.inputs[0].dtype, backbone.output.dtype) == ("FP16", "FP16")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Nothing", "no function or class"),
        ("fails", r"fails\(\) failed \(no disk\)"),
        ("number", "gives int"),
        ("Pair", "several outputs"),
        ("Broken", "weights are on the moon"),
        ("Two", "takes left, right, and the samples hold x"),
        ("Echo", "an input and an output are both named 'x'"),
        ("scripted", r"TorchScript program; write it with torch\.jit\.save"),
        ("frozen", "can't be put in eval mode .*; give the network as it was"),
        ("leaves", r"leaves\(\) failed \(3\)"),
    ],
)
def test_modules_that_are_refused(tmp_path, modules, name, says):
    with pytest.raises(BackboneError, match=says):
        load_backbone(f"own_networks:{name}", {"x": np.ones((2, 6), np.float32)}, tmp_path)
    with pytest.raises(BackboneError):
        load_backbone(f"own_networks:{name}", None, tmp_path)


def test_it_is_said_where_the_network_is_not_the_module(tmp_path, modules):
    rows = {"x": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    assert "answers otherwise than the module" in load_backbone("own_networks:Counts", rows, tmp_path / "work").note
    assert load_backbone("own_networks:Keys", rows, tmp_path / "work").note == ""


@pytest.mark.parametrize("name", ["Keys", "wrapped"])
def test_outputs_may_be_named_as_what_is_inside(tmp_path, modules, name):
    rows = {"x": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    backbone = load_backbone(f"own_networks:{name}", rows, tmp_path / "work")
    assert [tensor.name for tensor in backbone.outputs] == ["linear", "relu"]
    assert backbone.run(rows).min() == 0


def test_samples_for_a_module_that_pytorch_has_no_numbers_for(tmp_path, modules):
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(">f4")
    assert load_backbone("own_networks:half", {"x": rows}, tmp_path / "work").output.shape == (4,)
    with pytest.raises(SamplesError, match=r"Input '.*' is <U1 in the samples, which PyTorch has not"):
        load_backbone("own_networks:half", {"x": np.full((5, 6), "a")}, tmp_path / "work")


class Sometimes(torch.nn.Module):
    """Gives a loss where there are labels, as modules to be trained do."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        logits = x @ torch.eye(6)[:, :4]
        return {"loss": None, "logits": logits, "probabilities": logits.softmax(1)}


def test_what_a_saved_program_does_not_give_has_no_name(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    torch.export.save(torch.export.export(Sometimes(), (torch.ones(1, 6),)), tmp_path / "m.pt2")
    backbone = load_backbone(str(tmp_path / "m.pt2"), {"x": rows}, tmp_path / "work")
    assert [tensor.name for tensor in backbone.outputs] == ["logits", "probabilities"]
    np.testing.assert_allclose(backbone.run({"x": rows[:1]}), rows[:1, :4])


def test_saved_program(tmp_path):
    program = torch.export.export(torch.nn.Linear(6, 4), (torch.ones(1, 6),))
    torch.export.save(program, tmp_path / "m.pt2")
    backbone = load_backbone(str(tmp_path / "m.pt2"), {"data": np.ones((5, 6))}, tmp_path / "work")
    assert backbone.max_batch == 1
    assert backbone.output == Tensor("output", "FP32", (4,))
