"""Chains and heads made by hand, for behaviour that training would not give on demand."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pyarrow as pa
from onnx import NodeProto, TensorProto, helper, numpy_helper

from gati.inference.head import HIT, KEY, SCORE, SEGMENTS_KEY
from gati.inference.state import CLASS_MIX, MEMORY_ANSWERS, MEMORY_KEYS
from gati.recording.shard import Sample
from gati.recording.shard_folder import ShardFolder
from gati.repository.chain import Chain, Segment, Tensor
from gati.repository.release import Certificate, HeadFile, Release, Window
from gati_export.releases.publish import Draft

CERTIFICATE = Certificate(500, 500, 0, 0.006, 0.01, 0.05, {0: 0.9, 1: 0.8}, 0.7, "by hand", "0" * 64, "top-1")
WINDOW = Window("by hand", 500)


def toy_chain(model: str = "toy", segments: int = 3, inputs: Sequence[str] = ("x",)) -> Chain:
    """A chain whose tensors are all FP32 [batch, 4]; the first segment reads all of its inputs."""
    names = [f"cut{index}" for index in range(segments - 1)] + ["y"]
    return Chain(
        model,
        "inline",
        tuple(Tensor(name, "FP32", (4,)) for name in inputs),
        Tensor("y", "FP32", (4,)),
        tuple(
            Segment(i, tuple(inputs) if i == 0 else (names[i - 1],), Tensor(name, "FP32", (4,)), f"{i}" * 64, 0.3 * i)
            for i, name in enumerate(names)
        ),
        0.01,
        0.05,
        8,
    )


def toy_release(chain: Chain, number: int = 1, reason: str = "export") -> Release:
    """What release.json would say of heads on all of a chain's cut points."""
    heads = tuple(HeadFile(index, "f" * 64) for index in chain.heads)
    return Release(
        chain.model, number, "2026-01-01T00:00:00+00:00", reason, chain.digests(), heads, CERTIFICATE, WINDOW
    )


def write_shard(url: str, table: pa.Table, budget: int) -> str:
    """Writes a single shard, by a writer of its own; returns its path."""
    return ShardFolder(url).write(table, budget)


def toy_sample(start: int, rows: int = 2, *, known: bool = True) -> Sample:
    """Rows as a toy chain's recorder gets them, counted through from 4 × `start` on; the answer is their negative."""
    x = np.arange(start * 4, (start + rows) * 4, dtype=np.float32).reshape(rows, 4)
    return Sample({"x": x}, -x if known else None, np.full(rows, 2, np.int32), np.zeros(rows, np.int64), time.time())


def metadata(chain: Chain) -> dict[str, str]:
    """What a head's file says of where it fits."""
    return {SEGMENTS_KEY: json.dumps(chain.digests())}


def draft(heads: dict[int, bytes], reason: str = "refresh") -> Draft:
    """Heads as a draft, with a certificate that nobody has earned."""
    return Draft(heads, CERTIFICATE, WINDOW, reason)


def sure_head(chain: Chain, index: int, label: int) -> bytes:
    """A head that answers every row with one class, and is sure of it."""
    answer = np.where(np.arange(chain.classes) == label, 9, -9).astype(np.float32)
    return _head(
        chain,
        index,
        [
            helper.make_node("Mul", ["row", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "answer"], [chain.output.name]),
            helper.make_node("ReduceMax", [chain.output.name, "last"], [SCORE], keepdims=0),
        ],
        constants={"answer": answer},
    )


def mixing_head(chain: Chain, index: int) -> bytes:
    """A head that answers with the recent mix of answers, where one class has more than a fifth of it."""
    return _head(
        chain,
        index,
        [
            helper.make_node("Mul", ["row", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", CLASS_MIX], [chain.output.name]),
            helper.make_node("ReduceMax", [chain.output.name, "last"], [SCORE], keepdims=0),
        ],
        threshold=0.2,
        state={CLASS_MIX: [chain.classes]},
    )


def remembering_head(chain: Chain, index: int, entries: int = 16) -> bytes:
    """A head that answers what the backbone said to an activation as good as equal, and misses anything else."""
    width = chain.segments[index].output.shape[0]
    return _head(
        chain,
        index,
        [
            helper.make_node("Identity", ["pooled"], [KEY]),
            helper.make_node("Unsqueeze", ["pooled", "one"], ["column"]),
            helper.make_node("Sub", ["column", MEMORY_KEYS], ["gaps"]),
            helper.make_node("Abs", ["gaps"], ["distances"]),
            helper.make_node("ReduceSum", ["distances", "last"], ["far"], keepdims=0),
            helper.make_node("ArgMin", ["far"], ["nearest"], axis=1, keepdims=0),
            helper.make_node("Gather", [MEMORY_ANSWERS, "nearest"], [chain.output.name], axis=0),
            helper.make_node("ReduceMin", ["far", "last"], ["distance"], keepdims=0),
            helper.make_node("Neg", ["distance"], [SCORE]),
        ],
        threshold=-1e-3,
        state={MEMORY_KEYS: [entries, width], MEMORY_ANSWERS: [entries, chain.classes]},
        key=width,
    )


def label_tail(chain: Chain) -> tuple[Chain, bytes]:
    """A chain that gives a label beside its scores, and the graph that makes it of these."""
    infos = [
        helper.make_tensor_value_info(chain.output.name, TensorProto.FLOAT, ["n", chain.classes]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
    ]
    node = helper.make_node("ArgMax", [chain.output.name], ["label"], axis=1, keepdims=0)
    graph = helper.make_graph([node], "tail", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    outputs = (chain.output, Tensor("label", "INT64", ()))
    return replace(chain, outputs=outputs, tail=hashlib.sha256(model).hexdigest()), model


def _head(
    chain: Chain,
    index: int,
    nodes: list[NodeProto],
    *,
    threshold: float = 0,
    state: dict[str, list[int]] | None = None,
    key: int | None = None,
    constants: dict[str, np.ndarray] | None = None,
) -> bytes:
    """A head's file around nodes that make answer and score of `pooled` [batch, channels] or `row` [batch, 1]."""
    cut = chain.segments[index].output
    axes = np.arange(2, 1 + len(cut.shape))
    values = {"zero": np.float32(0), "last": np.array([-1]), "one": np.array([1]), "axes": axes, **(constants or {})}
    values["threshold"] = np.float32(threshold)
    inputs = {cut.name: ["batch", *cut.shape], **(state or {})}
    outputs = {
        chain.output.name: (TensorProto.FLOAT, ["batch", chain.classes]),
        SCORE: (TensorProto.FLOAT, ["batch"]),
        HIT: (TensorProto.BOOL, ["batch"]),
    }
    if key is not None:
        outputs[KEY] = (TensorProto.FLOAT, ["batch", key])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [cut.name, "axes"], ["pooled"], keepdims=0, noop_with_empty_axes=1),
            helper.make_node("ReduceMean", ["pooled", "last"], ["row"], keepdims=1),
            *nodes,
            helper.make_node("GreaterOrEqual", [SCORE, "threshold"], [HIT]),
        ],
        "head",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
