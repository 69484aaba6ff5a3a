"""Quantised networks: wherever they are cut, integers stay integers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from graphs import Graph
from handmade import draft, sure_head

from gati.inference.fuse import fuse
from gati.inference.inline import InlineEngine
from gati.inference.session import open_session, run
from gati.repository.chain import Chain
from gati.repository.release import read_release
from gati_export.backbones.backbone import load_backbone
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import TOLERANCE, check_segments
from gati_export.backbones.quantised import DEQUANTISE, QUANTISE
from gati_export.backbones.segments import cut, write_segments
from gati_export.bench.int8 import quantise
from gati_export.learning.headfile import CLOSED, with_threshold
from gati_export.releases.publish import publish
from gati_export.releases.repository import write_repository

FAMILIES = {"resnet": networks.resnet, "text": networks.text_transformer, "mlp": networks.mlp}
CUTS = {"resnet": 4, "text": 5, "mlp": 2}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory) -> dict[str, Path]:
    """A network of each family, in int8."""
    folder, paths = tmp_path_factory.mktemp("quantised"), {}
    for name, make in FAMILIES.items():
        network = make()
        whole = networks.export_onnx(network.module, network.inputs, folder / f"{name}-float.onnx")
        paths[name] = folder / f"{name}.onnx"
        quantise(whole, paths[name], network.inputs, narrow=True)
    return paths


def with_pairs_apart(path: Path, to: Path, ops: tuple[str, ...]) -> Path:
    """Has each that reads one of these operators read one of its own, with its own numbers, as other tools write it."""
    model = onnx.load(path)
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    for op in reversed(ops):
        for node in [node for node in model.graph.node if node.op_type == op and len(node.input) == 3]:
            readers = [other for other in model.graph.node if node.output[0] in other.input]
            for number, reader in enumerate(readers[1:]):
                own = onnx.NodeProto.FromString(node.SerializeToString())
                own.name, own.output[0] = f"{node.name}/{number}", f"{node.output[0]}/{number}"
                for place, given in enumerate(node.input[1:], start=1):
                    model.graph.initializer.add().CopyFrom(numbers[given])
                    own.input[place] = model.graph.initializer[-1].name = f"{own.name}/{place}"
                reader.input[:] = [own.output[0] if name == node.output[0] else name for name in reader.input]
                model.graph.node.insert(list(model.graph.node).index(node), own)
    onnx.save(model, to)
    return to


def operators(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime runs of a model; what only converts is left out."""
    open_session(path, optimised=folder / "optimised.onnx")
    found = Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)
    return Counter({op: n for op, n in found.items() if op not in (QUANTISE, DEQUANTISE, "Transpose")})


@pytest.mark.parametrize("apart", [(), (DEQUANTISE,), (QUANTISE, DEQUANTISE)])
@pytest.mark.parametrize("name", FAMILIES)
def test_cut_everywhere_it_computes_in_integers_what_the_whole_does(quantised, tmp_path, name, apart):
    inputs = FAMILIES[name]().inputs
    path = with_pairs_apart(quantised[name], tmp_path / "given.onnx", apart)
    backbone = load_backbone(str(path), inputs, tmp_path)
    points = find_cutpoints(backbone, inputs)
    chosen = choose_cutpoints(points)
    assert len(chosen) >= CUTS[name]
    for where, at in (("everywhere", points), ("chosen", chosen)):
        folder = tmp_path / where
        segments = write_segments(cut(backbone, at), lambda index, folder=folder: folder / str(index))
        files = [folder / str(segment.index) / "model.onnx" for segment in segments]
        for file in files:
            onnx.checker.check_model(file, full_check=True)
        assert check_segments(backbone, files, inputs) == 0.0
        joined = fuse([file.read_bytes() for file in files])
        expected = backbone.run(inputs)
        np.testing.assert_array_equal(run(open_session(joined), [backbone.output.name], inputs)[0], expected)
    if name != "text":  # whose mask is made once for each segment
        pieces = sum((operators(file, tmp_path) for file in files), Counter())
        assert pieces == operators(quantised[name], tmp_path)
        assert {op for op in pieces if op in ("Conv", "Gemm", "MatMul", "Add")} == set()


def test_numbers_that_are_read_otherwise_than_they_were_written_are_no_pair(tmp_path):
    """To do that twice is not to do it once."""
    graph = Graph()
    zero, h = graph.constant(0, np.int8), graph.node("Relu", graph.linear(graph.input("x", ["n", 6]), 6, 8))
    written = graph.node("QuantizeLinear", h, graph.constant(0.05, np.float32), zero)
    read = graph.node("DequantizeLinear", written, graph.constant(0.1, np.float32), zero)
    graph.linear(graph.node("Relu", graph.linear(read, 8, 8)), 8, 4, name="y")
    backbone = load_backbone(str(graph.save(tmp_path / "m.onnx", "y")), None, tmp_path)
    segments = write_segments(cut(backbone, find_cutpoints(backbone, None)), lambda index: tmp_path / str(index))
    paths = [tmp_path / str(segment.index) / "model.onnx" for segment in segments]
    assert len(paths) > 2
    samples = {"x": np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)}
    assert check_segments(backbone, paths, samples) <= TOLERANCE


def test_integers_pass_from_stage_to_stage_and_heads_read_them(quantised, tmp_path):
    inputs = FAMILIES["resnet"]().inputs
    backbone = load_backbone(str(quantised["resnet"]), inputs, tmp_path)
    blank = Chain("quantised", "inline", backbone.inputs, backbone.output, (), 0.01, 0.05, 8)
    points = choose_cutpoints(find_cutpoints(backbone, inputs))[:2]
    segments = write_segments(cut(backbone, points), lambda index: blank.segment_path(tmp_path, index).parent)
    chain = replace(blank, segments=segments)
    write_repository(tmp_path, chain)
    heads = {0: with_threshold(sure_head(chain, 0, 1), CLOSED), 1: sure_head(chain, 1, 2)}
    said: list[str] = []
    engine = InlineEngine(tmp_path, chain, warn=said.append)
    release = publish(tmp_path, chain, draft(heads))
    served, _ = engine.load_heads(read_release(tmp_path, chain, release.number))
    joined = served.load_shortcuts().joined
    assert joined is not None and not said
    left: list[int] = []
    row = {name: values[:1] for name, values in inputs.items()}
    joined.run(row, {}, lambda _rows, answers, exit_: left.extend([exit_, int(answers.argmax())]))
    assert left == [1, 2]
    values = dict(inputs)
    for stage in engine.load_stages([0, 1]):
        values[segments[stage.last].output.name] = stage.run({name: values[name] for name in stage.inputs})
    assert [values[point.tensor.name].dtype for point in points] == [np.uint8, np.uint8]
    np.testing.assert_array_equal(values[backbone.output.name], backbone.run(inputs))
