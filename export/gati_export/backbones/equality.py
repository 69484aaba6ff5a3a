"""Equality: the proof that segments, one after another, are the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from gati.errors import BackboneError
from gati.inference.session import open_session, run
from gati_export.backbones.backbone import Backbone
from gati_export.backbones.tail import LEAVE_OUT
from gati_export.samples.activations import run_segments
from gati_export.samples.ragged import batches, rows_at, typical

BATCH = 8
"""Rows of the larger batches that segments are checked on."""

ALONE = 32
"""Rows that are also checked one by one, and on which the backbone is held against itself."""

TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2
"""Largest `difference` of an answer: of float32 networks, and of float16 ones."""

ROUNDING = 1e-3
"""The same, of a network whose segments are bit for bit the backbone as written, but fused otherwise."""

SAME = 0.9
"""The share of rows at least of which a tail gives what the network does: where scores are close, rounding decides."""

BATCH_TOLERANCE = 3e-2
"""The same, between a row alone and in a batch; products of other sizes are rounded in another order."""


def check_segments(backbone: Backbone, paths: Sequence[Path], samples: Mapping[str, np.ndarray]) -> float:
    """Compares the segments, run one after another, with the whole backbone: on all samples in batches, on some alone.

    In a deep network float32 rounding adds up, so that what ONNX Runtime fuses beside a cut and not across it shows in
    the scores. Then both are run as they are written, node by node, where they have to be the same.

    Args:
        backbone: The backbone.
        paths: The segments' files, in order.
        samples: Model inputs by name, n rows each.

    Returns:
        The largest `difference` of an answer; 0.0 when bit for bit the same.

    Raises:
        BackboneError: If they differ by more than rounding explains, or rounding changes answers by too much to promise
            anything of them, or if the backbone differs as much from itself, run twice, or much from itself in
            batches of other sizes.
    """
    sessions = [open_session(path) for path in paths]
    count = len(samples[backbone.inputs[0].name])
    sizes = {1: count} if backbone.max_batch == 1 else {1: min(count, ALONE), BATCH: count}
    usual = _check_repeatable(backbone, samples)
    largest = _largest(backbone, None, sessions, samples, sizes, usual)
    _check_batches(backbone, samples, usual)
    if largest > tolerance(backbone):
        _check_as_written(backbone, paths, samples, largest, usual)
    _check_tail(backbone, samples)
    return largest


def _largest(
    backbone: Backbone,
    whole: ort.InferenceSession | None,
    sessions: Sequence[ort.InferenceSession],
    samples: Mapping[str, np.ndarray],
    sizes: Mapping[int, int],
    usual: float,
) -> float:
    """Largest difference between a backbone and segments over samples, so many of them in batches of such a size."""
    largest = 0.0
    for size, rows in sizes.items():
        for places in batches(samples, np.arange(rows), size):
            feeds = rows_at(samples, places)
            largest = max(largest, difference(run_segments(sessions, feeds), backbone.run(feeds, whole), usual))
    return largest


def _check_repeatable(backbone: Backbone, samples: Mapping[str, np.ndarray]) -> float:
    """Refuses a backbone that is not a function of its inputs; returns how large its largest scores usually are."""
    rows = min(len(samples[backbone.inputs[0].name]), ALONE)
    size = 1 if backbone.max_batch == 1 else BATCH
    feeds = [rows_at(samples, places) for places in batches(samples, np.arange(rows), size)]
    first, again = ([backbone.run(each) for each in feeds] for _ in range(2))
    usual = usual_score(first)
    if not all(difference(one, other, usual) <= tolerance(backbone) for one, other in zip(first, again, strict=True)):
        raise BackboneError(
            "The backbone answers the same input differently from run to run; export it in eval mode, without "
            "dropout or random numbers."
        )
    return usual


def _check_as_written(
    backbone: Backbone, paths: Sequence[Path], samples: Mapping[str, np.ndarray], largest: float, usual: float
) -> None:
    """Refuses segments that are something else than the backbone, and a backbone whose answers hang on rounding."""
    sessions = [open_session(path, as_written=True) for path in paths]
    sizes = {1: min(len(samples[backbone.inputs[0].name]), BATCH)}
    if not _largest(backbone, backbone.open(as_written=True), sessions, samples, sizes, usual) <= tolerance(backbone):
        raise BackboneError(
            f"The segments' answers differ from the backbone's by {largest:.1e} of its largest score, where rounding "
            f"explains {tolerance(backbone):.0e}; {_advice(backbone, 'cut at fewer places (--cut-points)')}."
        )
    if largest > ROUNDING:
        raise BackboneError(
            f"Rounding alone changes the backbone's answers by {largest:.1e} of its largest score, so nothing could be "
            f"promised of them; {_advice(backbone, 'train it, if it was not')}."
        )


def _advice(backbone: Backbone, otherwise: str) -> str:
    if any(node.op_type == "QuantizeLinear" for node in backbone.model.graph):
        return (
            "where 8-bit products overflow, ONNX Runtime's answers depend on what it fuses: quantise the network with "
            "reduce_range, or give it as it was before"
        )
    return otherwise


def _check_batches(backbone: Backbone, samples: Mapping[str, np.ndarray], usual: float) -> None:
    """Refuses a backbone whose answer to a row depends on the other rows of its batch: nothing could be promised."""
    if backbone.max_batch == 1:
        return
    feeds = rows_at(samples, typical(samples)[:BATCH])
    together = backbone.run(feeds)
    alone = [backbone.run({name: rows[i : i + 1] for name, rows in feeds.items()}) for i in range(len(together))]
    apart = difference(np.concatenate(alone), together, usual)
    if not apart <= BATCH_TOLERANCE:
        raise BackboneError(
            f"The backbone answers the same input differently alone and in a batch (by {apart:.1e} of its largest "
            "score); leave out what mixes rows, such as normalisation in training mode or dynamic quantisation, or "
            "export it with a batch of 1."
        )


def _check_tail(backbone: Backbone, samples: Mapping[str, np.ndarray]) -> None:
    """Refuses outputs that the scores make in another way than the network does, for some rows or in some batches."""
    if backbone.tail is None:
        return
    whole, tail = open_session(backbone.path), open_session(ir.to_proto(backbone.tail.model).SerializeToString())
    names = [node.name for node in tail.get_outputs()]
    declared = {tensor.name: tensor.shape for tensor in backbone.tail.outputs}
    shapes = [declared[name] for name in names]
    alike, rows = np.zeros(len(names)), len(samples[backbone.inputs[0].name])
    for places in batches(samples, np.arange(rows), 1 if backbone.max_batch == 1 else BATCH):
        feeds = rows_at(samples, places)
        alone = [run(tail, names, {backbone.output.name: row[None]}) for row in backbone.run(feeds)]
        made = zip(*alone, strict=True)
        alike += [_rows_alike(*each) for each in zip(made, run(whole, names, feeds), shapes, strict=True)]
    wrong = next((name for name, share in zip(names, alike / rows, strict=True) if share < SAME), None)
    if wrong is not None:
        raise BackboneError(f"Output {wrong!r} is not the same for a row of scores in every batch; {LEAVE_OUT}")


def _rows_alike(made: Sequence[np.ndarray], expected: np.ndarray, shape: tuple[int, ...]) -> int:
    """How many rows, each [1, *shape] if it is as the others, are those that are expected, [n, *shape]."""
    pairs = [
        (row[0], other) for row, other in zip(made, expected, strict=True) if row.shape[1:] == other.shape == shape
    ]
    return sum(np.allclose(row, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True) for row, other in pairs)


def answers_alike(backbone: Backbone, model: ir.Model, batches: Iterable[Mapping[str, np.ndarray]]) -> bool:
    """Whether another graph gives a backbone's scores on these inputs, but for rounding."""
    session = open_session(ir.to_proto(model).SerializeToString())
    given = [*batches]
    expected = [backbone.run(feeds) for feeds in given]
    usual = usual_score(expected)
    return all(
        difference(backbone.run(feeds, session), scores, usual) <= tolerance(backbone)
        for feeds, scores in zip(given, expected, strict=True)
    )


def usual_score(outputs: Sequence[np.ndarray]) -> float:
    """How large the largest score of a row usually is, 1 at most: what makes a difference is small if scores are."""
    largest = np.abs(np.concatenate(outputs).astype(np.float64)).max(axis=1)
    usual = float(np.median(largest[np.isfinite(largest)])) if np.isfinite(largest).any() else 1.0
    return min(usual, 1.0) or 1.0


def tolerance(backbone: Backbone) -> float:
    """The largest `difference` from a backbone's answers that rounding explains."""
    weights = (value.dtype for value in backbone.model.graph.initializers.values())
    half = backbone.output.dtype == "FP16" or any(d in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for d in weights)
    return HALF_TOLERANCE if half else TOLERANCE


def difference(actual: np.ndarray, expected: np.ndarray, usual: float = 1.0) -> float:
    """Largest difference relative to the row's largest score, or to what is usual where that is smaller.

    Infinite where only one of them is a number.
    """
    if actual.shape != expected.shape:
        return np.inf
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    scale = np.where(np.isfinite(wide), np.abs(wide), 0.0).max(axis=1, initial=usual, keepdims=True)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(wide - other) / scale)
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
