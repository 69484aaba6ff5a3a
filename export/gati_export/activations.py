"""Hidden activations: what a backbone computes at each cut point, reduced to what heads need, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gati.chain import Chain
from gati.errors import BackboneError, SamplesError
from gati.session import open_session

Progress = Callable[[str, float], None]
"""Told what is being done, and which share of it is done, 0..1."""
Reducer = Callable[[np.ndarray], np.ndarray]
"""From hidden activations [batch, ...] to what is kept of them [batch, ...]."""
BATCH = 32


@dataclass(frozen=True)
class Activations:
    """What a backbone did with n samples.

    Attributes:
        features: Reduced activations by cut point, [n, ...] each.
        outputs: The backbone's own outputs, [n, classes].
    """

    features: dict[int, np.ndarray]
    outputs: np.ndarray


def open_segments(paths: Sequence[Path]) -> list[ort.InferenceSession]:
    """Opens a chain's segments.

    Raises:
        BackboneError: If one of them can't be read.
    """
    sessions = []
    for index, path in enumerate(paths):
        try:
            sessions.append(open_session(path))
        except Exception as error:  # ONNX Runtime's own errors share no base
            raise BackboneError(f"Segment {index} can't be opened ({path.name}); export the model again.") from error
    return sessions


def collect(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    samples: Mapping[str, np.ndarray],
    reducers: Mapping[int, Reducer],
    progress: Progress,
    rows: np.ndarray | None = None,
) -> Activations:
    """Runs samples through all segments, and keeps reduced activations and the backbone's outputs.

    Activations are reduced batch by batch: whole, those of a 64×32×32 cut take 256 KB a sample.

    Args:
        chain: The chain.
        sessions: Its segments, in order.
        samples: Model inputs by name, [n, ...].
        reducers: What to keep, by cut point; others are passed over.
        progress: Told how far it is.
        rows: Indices of the samples to run; all of them if None.

    Raises:
        SamplesError: If there are no samples, or activations or outputs are not finite.
    """
    rows = np.arange(len(next(iter(samples.values())))) if rows is None else rows
    if not len(rows):
        raise SamplesError("There are no samples to run; give at least one.")
    size = 1 if chain.max_batch == 1 else min(BATCH, chain.max_batch or BATCH)
    kept: dict[int, list[np.ndarray]] = {index: [] for index in reducers}
    outputs: list[np.ndarray] = []
    broken = np.zeros(len(chain.segments), np.int64)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        values = {tensor.name: samples[tensor.name][batch] for tensor in chain.inputs}
        for segment, session in zip(chain.segments, sessions, strict=True):
            feeds = {name: values[name] for name in segment.inputs}
            hidden = np.asarray(session.run([segment.output.name], feeds)[0])
            values[segment.output.name] = hidden
            broken[segment.index] += count_broken(hidden)
            if segment.index in reducers:
                kept[segment.index].append(reducers[segment.index](hidden))
        outputs.append(values[chain.output.name])
        progress("Run the backbone", min(start + size, len(rows)) / len(rows))
    _check(chain, broken, len(rows))
    return Activations({index: np.concatenate(parts) for index, parts in kept.items()}, np.concatenate(outputs))


def count_broken(rows: np.ndarray) -> int:
    """How many rows of [n, ...] hold a NaN or an infinity."""
    return int((~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)).sum())


def _check(chain: Chain, broken: np.ndarray, count: int) -> None:
    """Names the first place where numbers stopped being finite: what lies behind it only inherits that."""
    for segment in chain.segments:
        if not broken[segment.index]:
            continue
        last = segment.index == len(chain.segments) - 1
        where = f"at cut point {segment.index} ({segment.output.name!r})" if not last else "in the backbone's output"
        raise SamplesError(
            f"{broken[segment.index]} of {count} samples give NaN or infinite numbers {where}; "
            "check their preprocessing, or leave them out."
        )
