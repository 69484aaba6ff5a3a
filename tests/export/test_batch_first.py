"""Turned: networks that have the batch behind the time are cut between their layers all the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import Graph
from torch import nn

from gati.inference.session import open_session
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.batch_first import batch_first
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import check_segments
from gati_export.backbones.segments import cut, write_segments

ROWS = {"x": np.random.default_rng(0).normal(size=(12, 7, 6)).astype(np.float32)}


class Recurrent(nn.Module):
    """Four layers, of which ONNX has each as an operator on [time, batch, numbers]."""

    def __init__(self, layers: nn.RNNBase) -> None:
        super().__init__()
        self.layers, self.fc = layers, nn.Linear(16 if layers.bidirectional else 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(x)[0][:, -1])


def recurrent(folder: Path, kind: type[nn.LSTM | nn.GRU], both_ways: bool, batch: str | None = "n") -> Backbone:
    torch.manual_seed(0)
    network = Recurrent(kind(6, 8, 4, batch_first=True, bidirectional=both_ways)).eval()
    path = str(folder / "recurrent.onnx")
    free = {"x": {0: batch, 1: "time"}, "y": {0: batch}} if batch else {}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network,
            (torch.from_numpy(ROWS["x"][: 2 if batch else 1]),),
            path,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=free,
            dynamo=False,
        )
    return load_backbone(path, ROWS, folder)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("both_ways", [False, True])
def test_recurrent_layers_are_cut_apart(tmp_path: Path, kind: type[nn.LSTM | nn.GRU], both_ways: bool) -> None:
    backbone = recurrent(tmp_path, kind, both_ways)
    found = batch_first(backbone, ROWS)
    assert found.path == backbone.path
    points = choose_cutpoints(find_cutpoints(found, ROWS))
    assert [point.tensor.shape for point in points] == [(-1, 16 if both_ways else 8)] * 3
    paths = written(found, tmp_path)
    assert check_segments(found, paths, ROWS) <= 1e-6
    assert check_segments(found, paths, {"x": ROWS["x"][:, :3]}) <= 1e-6


def test_recurrent_layers_of_one_row_are_cut_apart(tmp_path: Path) -> None:
    backbone = recurrent(tmp_path, nn.LSTM, False, batch=None)
    assert backbone.max_batch == 1
    found = batch_first(backbone, ROWS)
    assert [point.tensor.shape for point in choose_cutpoints(find_cutpoints(found, ROWS))] == [(7, 8)] * 3
    assert check_segments(found, written(found, tmp_path), ROWS) <= 1e-6


def written(backbone: Backbone, folder: Path) -> list[Path]:
    points = choose_cutpoints(find_cutpoints(backbone, ROWS))
    segments = write_segments(cut(backbone, points), lambda index: folder / str(index))
    return [folder / str(segment.index) / "model.onnx" for segment in segments]


def test_where_it_is_not_cut_nothing_is_turned(tmp_path: Path) -> None:
    """ONNX Runtime takes out what turns and turns back."""

    def turns(backbone: Backbone) -> int:
        open_session(ir.to_proto(backbone.model).SerializeToString(), optimised=tmp_path / "run.onnx")
        nodes = onnx.load(tmp_path / "run.onnx", load_external_data=False).graph.node
        return sum(node.op_type == "Transpose" for node in nodes)

    backbone = recurrent(tmp_path, nn.LSTM, False)
    found = batch_first(backbone, ROWS)
    assert len(list(found.model.graph)) > len(list(backbone.model.graph))
    assert turns(found) <= turns(backbone)


def test_a_network_with_the_batch_first_stays_as_it_is(tmp_path: Path) -> None:
    graph = Graph()
    h = graph.node("Relu", graph.linear(graph.input("x", ["n", 7, 6]), 6, 8))
    pooled = graph.node("ReduceMean", h, graph.constant([1]), keepdims=0)
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", graph.linear(pooled, 8, 4))), ROWS, tmp_path)
    assert batch_first(backbone, ROWS) is backbone


def test_a_network_that_fails_is_left_to_who_can_say_why(tmp_path: Path) -> None:
    backbone = recurrent(tmp_path, nn.GRU, False)
    assert batch_first(backbone, {"x": ROWS["x"][:, :, :5]}) is backbone
