"""Backbones of older operator sets: cut at the version of heads, and only if they answer as before."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Graph

from gati_export.backbones import opset
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import find_cutpoints
from gati_export.backbones.equality import check_segments
from gati_export.backbones.opset import OPSET, up_to_date
from gati_export.backbones.segments import cut, write_segments

ROWS = {"x": np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)}


def old(folder: Path, version: int = 13, **more: object) -> Backbone:
    """Pools as exporters did before version 18: what to pool over is an attribute, and an input since."""
    graph = Graph(opset=version)
    hidden = graph.node("Conv", graph.input("x", ["n", 3, 8, 8]), graph.weight(16, 3, 3, 3), name="h")
    pooled = graph.node("ReduceMean", graph.node("Relu", hidden), name="pooled", axes=[2, 3], keepdims=0)
    graph.linear(graph.node("Relu", graph.linear(pooled, 16, 16)), 16, 4, name="y")
    return load_backbone(str(graph.save(folder / "old.onnx", "y", shape=["n", 4], **more)), ROWS, folder)


@pytest.mark.parametrize("version", [9, 13, 17])
def test_an_older_backbone_is_cut_at_the_version_of_heads(tmp_path: Path, version: int) -> None:
    backbone = old(tmp_path, version)
    found = up_to_date(backbone, ROWS)
    assert (found.model.graph.opset_imports[""], backbone.model.graph.opset_imports[""]) == (OPSET, version)
    assert found.path == backbone.path  # the plain model stays what it was
    points = find_cutpoints(found, ROWS)
    segments = write_segments(cut(found, points), lambda index: tmp_path / str(index))
    assert len(segments) > 2
    assert check_segments(found, [tmp_path / str(each.index) / "model.onnx" for each in segments], ROWS) <= 1e-6


@pytest.mark.parametrize("version", [13, OPSET, 21])
def test_operators_in_any_order_are_cut_as_those_in_order(tmp_path: Path, version: int) -> None:
    """ONNX Runtime sorts them itself, so that converters to half precision, say, leave it to it."""
    graph = Graph(opset=version)
    hidden = graph.node("Relu", graph.linear(graph.input("x", ["n", 6]), 6, 8))
    graph.linear(graph.node("Relu", graph.linear(hidden, 8, 8)), 8, 4, name="y")
    path, rows = graph.save(tmp_path / "net.onnx", "y"), {"x": np.ones((3, 6), np.float32)}
    whole = find_cutpoints(up_to_date(load_backbone(str(path), rows, tmp_path), rows), rows)
    model = onnx.load(path)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    backbone = up_to_date(load_backbone(str(path), rows, tmp_path), rows)
    points = find_cutpoints(backbone, rows)
    assert [point.tensor for point in points] == [point.tensor for point in whole] and len(points) >= 3
    segments = write_segments(cut(backbone, points), lambda index: tmp_path / str(index))
    assert check_segments(backbone, [tmp_path / str(each.index) / "model.onnx" for each in segments], rows) == 0


def test_a_recent_one_stays_as_it_is(tmp_path: Path) -> None:
    graph = Graph()
    graph.linear(graph.node("Relu", graph.linear(graph.input("x", ["n", 6]), 6, 8)), 8, 4, name="y")
    backbone = load_backbone(str(graph.save(tmp_path / "new.onnx", "y")), None, tmp_path)
    assert up_to_date(backbone, None) is backbone


def fails(_model: object, *_: object, **__: object) -> None:
    raise ValueError("an operator that nobody knows how to convert")


def lies(model, version: int, **_: object) -> None:
    model.graph.opset_imports[""] = version  # and ReduceMean pools over all


@pytest.mark.parametrize("convert", [fails, lies])
def test_one_that_can_not_be_converted_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: object
) -> None:
    monkeypatch.setattr(opset.version_converter, "convert_version", convert)
    backbone = old(tmp_path)
    assert up_to_date(backbone, ROWS) is backbone
    assert backbone.model.graph.opset_imports[""] == 13
    assert logging.root.manager.disable == 0
