"""Graphs that are cut once they are optimised do what they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Exported
from handmade import draft, sure_head
from onnx import TensorProto, helper, numpy_helper

from gati.inference import inline
from gati.inference.inline import InlineEngine
from gati.inference.layout import InseparableError, cut_optimised, open_on_substitute
from gati.inference.session import open_session, run
from gati.repository.chain import Tensor
from gati.repository.release import read_release
from gati_export.releases.publish import publish

SIZE = 6


def weights(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(size=shape) / np.prod(shape[1:]) ** 0.5
    return numpy_helper.from_array(values.astype(np.float32), name)


parse = onnx.load_model_from_string


def network(channels: int) -> bytes:
    """A residual network with a mask that is read in both halves; its cut tensors are `first` and `second`."""
    c, nodes = (
        channels,
        [
            helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["first"]),
            helper.make_node("Conv", ["first", "w2"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["b", "mask"], ["masked"]),
            helper.make_node("Add", ["masked", "first"], ["c"]),
            helper.make_node("Relu", ["c"], ["second"]),
            helper.make_node("Conv", ["second", "w3"], ["d"], pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["d", "mask"], ["e"]),
            helper.make_node("GlobalAveragePool", ["e"], ["f"]),
            helper.make_node("Flatten", ["f"], ["output"]),
        ],
    )
    graph = helper.make_graph(
        nodes,
        "network",
        [value("image", "batch", 3, SIZE, SIZE), value("mask", "batch", 1, SIZE, SIZE)],
        [value("output", "batch", c)],
        [weights("w1", c, 3, 3, 3), weights("w2", c, c, 3, 3), weights("w3", c, c, 3, 3)],
    )
    return model(graph)


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(graph: onnx.GraphProto) -> bytes:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def feeds(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    shapes = {"image": (rows, 3, SIZE, SIZE), "mask": (rows, 1, SIZE, SIZE)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def cut(name: str, channels: int) -> Tensor:
    return Tensor(name, "FP32", (channels, SIZE, SIZE))


def head(channels: int) -> bytes:
    """What a head may look like: convolutions, and something that reads its planes."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["first", "v1"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalMaxPool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["score"]),
            helper.make_node("Flatten", ["first"], ["flat"]),
            helper.make_node("MatMul", ["flat", "class_mix"], ["output"]),
        ],
        "head",
        [value("first", "batch", channels, SIZE, SIZE), value("class_mix", channels * SIZE * SIZE, 4)],
        [value("score", "batch", 5), value("output", "batch", 4)],
        [weights("v1", 5, channels, 3, 3)],
    )
    return model(graph)


@pytest.mark.parametrize("channels", [8, 16, 20, 48])
@pytest.mark.parametrize("rows", [1, 3])
def test_pieces_do_what_the_whole_does(channels: int, rows: int) -> None:
    cuts = [cut("first", channels), cut("second", channels)]
    found = cut_optimised(parse(network(channels)), cuts, [{"image"}, {"first", "mask"}, {"second", "mask"}], feeds(1))
    values = feeds(rows)
    for session in found.sessions:
        (name,) = [node.name for node in session.get_outputs()]
        values[name] = run(session, [name], {node.name: values[node.name] for node in session.get_inputs()})[0]
    expected = run(open_session(network(channels)), ["output"], feeds(rows))[0]
    np.testing.assert_allclose(values["output"], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 16, 20, 48])
def test_a_head_reads_blocks_and_says_the_same(channels: int) -> None:
    found = cut_optimised(parse(network(channels)), [cut("first", channels)], [{"image"}, {"first", "mask"}], feeds(1))
    if not found.substitutes:
        pytest.skip("this processor's convolutions know no blocks of this many channels")
    image = {"image": feeds(3)["image"]}
    mix = np.random.default_rng(0).normal(size=(channels * SIZE * SIZE, 4)).astype(np.float32)
    whole = parse(network(channels))
    whole.graph.output.append(value("first", "batch", channels, SIZE, SIZE))
    planes = run(open_session(whole.SerializeToString()), ["first"], feeds(3))[0]
    blocks = run(found.sessions[0], ["first"], image)[0]
    session, _ = open_on_substitute(head(channels), cut("first", channels), found.substitutes["first"])
    expected = run(open_session(head(channels)), ["score", "output"], {"first": planes, "class_mix": mix})
    said = run(session, ["score", "output"], {"first": blocks, "class_mix": mix})
    for one, other in zip(said, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    wrong = run(session, ["output"], {"first": planes, "class_mix": mix})[0] if planes.shape == blocks.shape else None
    assert wrong is None or not np.allclose(wrong, expected[1], atol=1e-2), "these are planes, not blocks"


def turned() -> bytes:
    """As ConvNeXt begins, once optimised: normalisation and sum have their channels last, the cut tensor is planes."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", ["b", "scale"], ["last"]),
        helper.make_node("Transpose", ["last"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", ["d", "scale"], ["e"]),
        helper.make_node("Add", ["last", "e"], ["output"]),
    ]
    inputs, outputs = [value("image", "batch", 3, SIZE, SIZE)], [value("output", "batch", SIZE, SIZE, 16)]
    held = [weights("w1", 16, 3, 3, 3), weights("w2", 16, 16, 3, 3), weights("scale", 16)]
    return model(helper.make_graph(nodes, "turned", inputs, outputs, held))


def in_integers() -> bytes:
    """Two convolutions as quantised networks have them, and what is quantised already once more between them."""
    nodes = [
        *pair("image", "i", "image_scale"),
        helper.make_node("DequantizeLinear", ["w1", "w_scale", "w_zero"], ["v1"]),
        helper.make_node("Conv", ["i", "v1"], ["a"], pads=[1, 1, 1, 1]),
        *pair("a", "first", "a_scale"),
        *pair("first", "again", "a_scale"),
        helper.make_node("DequantizeLinear", ["w2", "w_scale", "w_zero"], ["v2"]),
        helper.make_node("Conv", ["again", "v2"], ["c"], pads=[1, 1, 1, 1]),
        *pair("c", "output", "c_scale"),
    ]
    rng = np.random.default_rng(0)
    numbers = {f"{name}_scale": np.float32(scale) for name, scale in {"image": 0.03, "w": 0.005, "a": 0.05}.items()}
    numbers |= {"c_scale": np.float32(0.1), "zero": np.uint8(128), "w_zero": np.int8(0)}
    numbers |= {f"w{i}": rng.integers(-64, 64, (16, c, 3, 3)).astype(np.int8) for i, c in ((1, 3), (2, 16))}
    held = [numpy_helper.from_array(np.asarray(number), name) for name, number in numbers.items()]
    inputs, outputs = [value("image", "batch", 3, SIZE, SIZE)], [value("output", "batch", 16, SIZE, SIZE)]
    return model(helper.make_graph(nodes, "quantised", inputs, outputs, held))


def pair(given: str, made: str, scale: str) -> list[onnx.NodeProto]:
    quantise = helper.make_node("QuantizeLinear", [given, scale, "zero"], [f"{made}/integers"])
    return [quantise, helper.make_node("DequantizeLinear", [f"{made}/integers", scale, "zero"], [made])]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("network", "kind", "makes", "scale", "zero"),
    [
        (turned, TensorProto.FLOAT, ["Transpose"], 1.0, 0),
        (in_integers, TensorProto.UINT8, ["Transpose", "DequantizeLinear"], 0.05, 128),
    ],
)
def test_what_goes_on_from_a_cut_passes_and_heads_make_the_cut_tensor_of_it(
    network, kind, makes, scale, zero, rows
) -> None:
    image = {"image": feeds(rows)["image"]}
    found = cut_optimised(parse(network()), [cut("first", 16)], [{"image"}, {"first"}], {"image": feeds(1)["image"]})
    assert found.substitutes["first"].kind == kind
    assert [node.op_type for node in found.substitutes["first"].nodes] == makes
    whole = parse(network())
    whole.graph.output.append(value("first", "batch", 16, SIZE, SIZE))
    output, planes = run(open_session(whole.SerializeToString()), ["output", "first"], image)
    assert len(np.unique(planes)) > 20
    passed = run(found.sessions[0], ["first"], image)[0]
    assert passed.dtype == helper.tensor_dtype_to_np_dtype(kind)
    np.testing.assert_allclose((passed.transpose(0, 3, 1, 2).astype(np.float32) - zero) * scale, planes, atol=1e-5)
    np.testing.assert_allclose(run(found.sessions[1], ["output"], {"first": passed})[0], output, atol=1e-5)
    mix = np.random.default_rng(0).normal(size=(16 * SIZE * SIZE, 4)).astype(np.float32)
    session, _ = open_on_substitute(head(16), cut("first", 16), found.substitutes["first"])
    expected = run(open_session(head(16)), ["score", "output"], {"first": planes, "class_mix": mix})
    said = run(session, ["score", "output"], {"first": passed, "class_mix": mix})
    for one, other in zip(said, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_piece_that_reads_what_lies_before_its_cut_is_refused() -> None:
    with pytest.raises(InseparableError, match="image"):
        cut_optimised(parse(network(16)), [cut("b", 16)], [{"image"}, {"b", "mask"}], feeds(1))


def test_what_branches_is_not_cut() -> None:
    graph = parse(network(16)).graph
    branches = {
        branch: helper.make_graph([helper.make_node("Identity", ["f"], [branch])], branch, [], [value(branch, None)])
        for branch in ("then_branch", "else_branch")
    }
    graph.node.insert(9, helper.make_node("If", ["yes"], ["g"], **branches))
    graph.node[10].input[0] = "g"
    graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    with pytest.raises(InseparableError, match="branches"):
        yes = {"yes": np.array(True)}
        cut_optimised(parse(model(graph)), [cut("first", 16)], [{"image"}, {"first", "mask", "yes"}], feeds(1) | yes)


@pytest.mark.parametrize("broken", ["cut_optimised", "open_on_substitute"])
def test_what_can_not_be_cut_as_it_runs_is_cut_as_it_lies(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """And the answers stay the same, release after release."""
    repository, chain = exported.copy(tmp_path), exported.chain
    release = publish(repository, chain, draft({index: sure_head(chain, index, 1) for index in chain.heads}))
    images = exported.images[:8]
    said: list[str] = []

    def answers() -> list[np.ndarray]:
        engine = InlineEngine(repository, chain, warn=said.append)
        found, values = [], {chain.inputs[0].name: images}
        for _ in range(2):
            heads, specs = engine.load_heads(read_release(repository, chain, release.number))
            for stage in engine.load_stages([*specs]):
                output = chain.segments[stage.last].output.name
                values[output] = stage.run({name: values[name] for name in stage.inputs})
                prediction = heads.predict(stage.last, values[output], {}) if stage.last in specs else None
                found.append(values[output] if prediction is None else prediction.answer)
        return [value for value in found if value.shape == (8, *chain.output.shape)]

    expected = answers()
    assert not said

    def inseparable(*_: object) -> None:
        raise InseparableError("it can't")

    monkeypatch.setattr(inline, broken, inseparable)
    for one, other in zip(answers(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert said and all(text.startswith("cut points cost more") and text.endswith("it can't") for text in said)
