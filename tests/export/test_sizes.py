"""Sizes: a network that asks hidden tensors how large they are is cut as if it had asked its inputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from graphs import Graph

from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import check_segments
from gati_export.backbones.segments import cut, write_segments
from gati_export.backbones.sizes import ask_inputs

ROWS = {"x": np.random.default_rng(0).normal(size=(9, 6, 4)).astype(np.float32), "mask": np.ones((9, 6), np.float32)}


class Asking(networks.TextTransformer):
    """Expands the mask as Hugging Face's models do: to as many queries as there are embeddings."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1])))
        rows, length = x.shape[:2]
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
        mask = mask.expand(rows, 1, length, length)
        for layer in self.layers:
            x = layer(x, mask)
        return self.fc(torch.tanh(x[:, 0]))


def traced(folder: Path, dynamic: dict[int, str]) -> tuple[Backbone, dict[str, np.ndarray]]:
    """Exports as `torch.onnx.export(dynamo=False)` and Optimum do."""
    torch.manual_seed(0)
    network = networks.Network(Asking(32).eval(), networks.text_transformer().inputs)
    tensors = tuple(torch.from_numpy(rows[:2]) for rows in network.inputs.values())
    path = folder / "traced.onnx"
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network.module,
            tensors,
            str(path),
            input_names=[*network.inputs],
            output_names=["output"],
            dynamic_axes=dict.fromkeys(network.inputs, dynamic) | {"output": {0: "n"}},
            dynamo=False,
        )
    return load_backbone(str(path), network.inputs, folder), network.inputs


@pytest.mark.parametrize("dynamic", [{0: "n", 1: "length"}, {0: "n"}])
def test_a_traced_text_network_is_cut_between_all_layers(tmp_path: Path, dynamic: dict[int, str]) -> None:
    backbone, inputs = traced(tmp_path, dynamic)
    found = ask_inputs(backbone, inputs)
    assert found.path == backbone.path
    assert len(find_cutpoints(found, inputs)) > 2 * len(find_cutpoints(backbone, inputs))
    points = choose_cutpoints(find_cutpoints(found, inputs))
    assert len(points) >= 5
    segments = write_segments(cut(found, points), lambda index: tmp_path / str(index))
    assert {name for segment in segments[1:] for name in segment.inputs[1:]} == {"attention_mask"}
    paths = [tmp_path / str(segment.index) / "model.onnx" for segment in segments]
    lengths = (10, 7, 3) if 1 in dynamic else (10,)
    for length in lengths:
        assert check_segments(backbone, paths, {name: rows[:, :length] for name, rows in inputs.items()}) <= 1e-6


def layered(folder: Path, size_of: str) -> Backbone:
    """Three layers that each read the mask, expanded to the shape of what `size_of` says of the first one's result."""
    graph = Graph()
    x, mask = graph.input("x", ["n", "length", 4]), graph.input("mask", ["n", "length"])
    h = graph.node("Relu", graph.linear(x, 4, 4))
    if size_of == "found":  # as many as are not masked: as long as the text, where nothing is
        kept = graph.node("NonZero", graph.node("ReduceMax", mask, graph.constant([0]), keepdims=0))
        sized = graph.node("Gather", h, graph.node("Squeeze", kept, graph.constant([0])), axis=1)
    elif size_of == "pooled":
        sized = graph.node("Slice", h, *(graph.constant([each]) for each in (0, 999, 1, 2)))
    else:
        sized = h
    wide = graph.node("Expand", graph.node("Unsqueeze", mask, graph.constant([2])), graph.node("Shape", h))
    also = graph.node("ReduceSum", graph.node("Shape", sized), keepdims=0)
    wide = graph.node("Mul", wide, graph.node("Cast", also, to=1))
    for _ in range(3):
        h = graph.node("Relu", graph.node("Add", graph.linear(h, 4, 4), wide))
    pooled = graph.node("ReduceMean", h, graph.constant([1]), keepdims=0)
    graph.linear(pooled, 4, 3, name="y")
    return load_backbone(str(graph.save(folder / "m.onnx", "y")), ROWS, folder)


def test_sizes_of_hidden_tensors_are_asked_of_inputs(tmp_path: Path) -> None:
    backbone = layered(tmp_path, "hidden")
    found = ask_inputs(backbone, ROWS)
    assert len(find_cutpoints(found, ROWS)) > len(find_cutpoints(backbone, ROWS))
    assert {value.name for value in backbone.model.graph.inputs} == {value.name for value in found.model.graph.inputs}


@pytest.mark.parametrize("size_of", ["found", "pooled"])
def test_sizes_that_no_input_has_stay_asked(tmp_path: Path, size_of: str) -> None:
    backbone = layered(tmp_path, size_of)
    assert ask_inputs(backbone, ROWS) is backbone


def test_a_network_that_takes_one_size_stays_as_it_is(tmp_path: Path) -> None:
    graph = Graph()
    x, mask = graph.input("x", ["n", "length", 4]), graph.input("mask", ["n", "length"])
    h = graph.node("Relu", graph.linear(x, 4, 4))
    wide = graph.node("Expand", graph.node("Unsqueeze", mask, graph.constant([2])), graph.node("Shape", h))
    for _ in range(3):
        h = graph.node("Relu", graph.node("Add", graph.linear(h, 4, 4), wide))
    h = graph.node("Reshape", h, graph.constant([-1, 24]))
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", graph.linear(h, 24, 3))), ROWS, tmp_path)
    assert ask_inputs(backbone, ROWS) is backbone


def test_a_network_that_gains_nothing_stays_as_it_is(tmp_path: Path) -> None:
    graph = Graph()
    h = graph.node("Relu", graph.linear(graph.input("x", ["n", "length", 4]), 4, 4))
    h = graph.node("Relu", graph.linear(graph.node("Reshape", h, graph.node("Shape", h)), 4, 4))
    pooled = graph.node("ReduceMean", h, graph.constant([1]), keepdims=0)
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", graph.linear(pooled, 4, 3))), ROWS, tmp_path)
    assert ask_inputs(backbone, ROWS) is backbone
