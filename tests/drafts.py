"""Releases made by hand, whose every answer says which head of which release gave it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import handmade
import numpy as np
import onnx
from hostile import HARMS
from onnx import TensorProto, helper, numpy_helper

from gati.inference.head import SEGMENTS_KEY
from gati.repository.chain import Chain
from gati.repository.release import HeadFile, Release, head_folder, head_path, valid_releases
from gati.repository.workspace import workspace
from gati_export.learning.headfile import CLOSED, stamp, with_threshold
from gati_export.releases.publish import Draft
from gati_export.samples.activations import open_segments

ALWAYS = -np.inf
"""A threshold that every row reaches."""


def closed_heads(repository: Path, chain: Chain) -> dict[int, bytes]:
    """The live heads by cut point, with thresholds that nothing reaches: they take what they did, and save nothing."""
    release = next(valid_releases(repository, chain))
    paths = {head.index: head_path(repository, chain, head.index, release.number) for head in release.heads}
    return {index: with_threshold(path.read_bytes(), CLOSED) for index, path in paths.items()}


def marked_head(chain: Chain, index: int, mark: int, threshold: float = ALWAYS) -> bytes:
    """A head that answers [mark, index, 0, ...] where the mean of the cut tensor reaches a threshold."""
    cut, output = chain.segments[index].output, chain.output
    said = np.zeros(output.shape, np.float32)
    said[:2] = mark, index
    constants = {"zero": np.float32(0), "said": said, "axes": np.array([1]), "threshold": np.float32(threshold)}
    nodes = [
        helper.make_node("Flatten", [cut.name], ["flat"], axis=1),
        helper.make_node("ReduceMean", ["flat", "axes"], ["score"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["score", "threshold"], ["hit"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["column"], keepdims=1),
        helper.make_node("Mul", ["column", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "said"], [output.name]),
    ]
    graph = helper.make_graph(
        nodes,
        "marked",
        [helper.make_tensor_value_info(cut.name, TensorProto.FLOAT, ["batch", *cut.shape])],
        [
            helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["batch", *output.shape]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("hit", TensorProto.BOOL, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def marked_draft(chain: Chain, mark: int, thresholds: dict[int, float] | None = None, reason: str = "refresh") -> Draft:
    """Marked heads as a draft: at the cut points given (with their thresholds), or at the first that answers all."""
    heads = {
        index: marked_head(chain, index, mark, threshold)
        for index, threshold in (thresholds or {chain.heads[0]: ALWAYS}).items()
    }
    return handmade.draft(heads, reason)


def spread_thresholds(repository: Path, chain: Chain, images: np.ndarray) -> dict[int, float]:
    """Thresholds at which the first head takes a third of the images, the last one half of the rest."""
    sessions = open_segments(chain.segment_paths(repository))
    values, rows = {chain.inputs[0].name: images}, np.arange(len(images))
    thresholds = {}
    for index in chain.heads:
        hidden = np.asarray(sessions[index].run(None, values)[0])
        if index in (chain.heads[0], chain.heads[-1]):
            score = hidden.reshape(len(hidden), -1).mean(1)
            share = 2 / 3 if index == chain.heads[0] else 1 / 2
            thresholds[index] = float(np.quantile(score[rows], share))
            rows = rows[score[rows] < thresholds[index]]
        values = {chain.segments[index].output.name: hidden}
    return thresholds


Files = dict[tuple[int, str], bytes]
"""A release's files by cut point and name."""


def release_files(chain: Chain, number: int, draft: Draft) -> Files:
    """What a publisher would write."""
    models = {
        i: stamp(head, {SEGMENTS_KEY: json.dumps(chain.digests()), "gati.release": str(number)})
        for i, head in draft.heads.items()
    }
    return {(i, "model.onnx"): model for i, model in models.items()} | _manifests(chain, number, draft, models)


def _manifests(chain: Chain, number: int, draft: Draft, models: dict[int, bytes]) -> Files:
    heads = tuple(HeadFile(index, hashlib.sha256(model).hexdigest()) for index, model in sorted(models.items()))
    release = Release(
        chain.model,
        number,
        "2026-01-01T00:00:00+00:00",
        draft.reason,
        chain.digests(),
        heads,
        draft.certificate,
        draft.window,
    )
    return {(index, "release.json"): release.to_json().encode() for index in models}


def place(repository: Path, chain: Chain, number: int, files: Files) -> None:
    """Puts files into a repository by hand, each head's folder by one rename."""
    staging = workspace(repository) / "by hand"
    for (index, name), content in files.items():
        (staging / str(index)).mkdir(parents=True, exist_ok=True)
        (staging / str(index) / name).write_bytes(content)
    for folder in staging.iterdir():
        target = head_folder(repository, chain, int(folder.name), number)
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
    shutil.rmtree(staging)


def with_models(chain: Chain, number: int, files: Files, change: Callable[[bytes], bytes]) -> Files:
    """The files with their heads changed, and manifests that list the changed heads."""
    draft = handmade.draft({})
    models = {index: change(content) for (index, name), content in files.items() if name == "model.onnx"}
    return {(i, "model.onnx"): model for i, model in models.items()} | _manifests(chain, number, draft, models)


def with_manifests(files: Files, change: Callable[[str], str], only: int | None = None) -> Files:
    """The files with their release.json changed, or only one head's."""
    return {
        (index, name): change(content.decode()).encode()
        if name == "release.json" and only in (None, index)
        else content
        for (index, name), content in files.items()
    }


@dataclass(frozen=True)
class Damage:
    """A way in which a release can be bad.

    Attributes:
        name: Of the test.
        apply: From a chain, a number and a release's good files to what is placed.
        reason: Pattern of what is said of it.
        deep: Whether its manifest is in order, so that only opening its heads tells.
    """

    name: str
    apply: Callable[[Chain, int, Files], Files]
    reason: str
    deep: bool = False


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _without(name: str) -> Callable[[Chain, int, Files], Files]:
    return lambda chain, _number, files: {
        key: value for key, value in files.items() if key[1] != name or (name == "model.onnx" and key[0] != 0)
    }


def _restamped(value: str) -> Callable[[Chain, int, Files], Files]:
    return lambda chain, number, files: with_models(
        chain, number, files, lambda model: stamp(model, {SEGMENTS_KEY: value})
    )


def _renamed_output(model: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(model)
    for node in proto.graph.node:
        node.output[:] = ["sure" if name == "hit" else name for name in node.output]
    next(o for o in proto.graph.output if o.name == "hit").name = "sure"
    return proto.SerializeToString()


OTHER = json.dumps(["0" * 64])
DAMAGES = [
    Damage(
        "a head cut in half",
        lambda _chain, _number, files: files | {(0, "model.onnx"): _half(files[0, "model.onnx"])},
        "is damaged: the file of head 0",
    ),
    Damage("a head missing", _without("model.onnx"), "incomplete: model.onnx of head 0 is missing"),
    Damage("no manifest", _without("release.json"), "has no release.json"),
    Damage(
        "manifests that differ",
        lambda _chain, _number, files: with_manifests(files, lambda text: text.replace("by hand", "by foot"), only=0),
        "manifests that differ",
    ),
    Damage(
        "a manifest cut in half",
        lambda _chain, _number, files: with_manifests(files, lambda text: text[: len(text) // 2]),
        "release.json is damaged",
    ),
    Damage(
        "a name in a manifest that no text can hold",
        lambda _chain, _number, files: with_manifests(files, lambda text: text.replace("{", '{"\\ud800": 1, ', 1)),
        "release.json is damaged",
    ),
    Damage(
        "a manifest of another release",
        lambda _chain, number, files: with_manifests(
            files, lambda text: text.replace(f'"number": {number}', '"number": 1')
        ),
        "says that it is release 1",
    ),
    Damage(
        "a manifest for another backbone",
        lambda chain, _number, files: with_manifests(files, lambda text: text.replace(chain.digests()[0], "0" * 64)),
        "other segments",
    ),
    Damage("heads for another backbone", _restamped(OTHER), "other segments", deep=True),
    Damage("heads stamped with garbage", _restamped("{"), "other segments", deep=True),
    Damage(
        "heads that are no ONNX",
        lambda chain, number, files: with_models(chain, number, files, lambda _: b"garbage"),
        "not an ONNX model",
        deep=True,
    ),
    Damage(
        "heads with another output",
        lambda chain, number, files: with_models(chain, number, files, _renamed_output),
        "gives .*'sure'",
        deep=True,
    ),
    *(
        Damage(
            f"heads with {harm.name}",
            lambda chain, number, files, harm=harm: with_models(chain, number, files, harm),
            harm.reason,
            deep=True,
        )
        for harm in HARMS
    ),
    Damage("garbage", lambda _chain, _number, _files: {(0, "notes.txt"): b"?"}, "has no release.json"),
]


def damaged(chain: Chain, number: int, damage: Damage) -> Files:
    """The files of a release with two heads, damaged."""
    draft = marked_draft(chain, number, {chain.heads[0]: ALWAYS, chain.heads[-1]: ALWAYS})
    return damage.apply(chain, number, release_files(chain, number, draft))


def in_mode(chain: Chain, mode: str) -> Chain:
    """The chain as another mode runs it."""
    return replace(chain, mode=mode)
