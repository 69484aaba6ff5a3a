"""Hidden activations: what a backbone computes at each cut point, reduced to what heads need, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gati.errors import BackboneError, SamplesError
from gati.inference.session import open_session, run_chain
from gati.repository.chain import Chain
from gati_export.progress import Progress
from gati_export.samples.ragged import batches, count, rows_at

Reducer = Callable[[np.ndarray], np.ndarray]
"""From hidden activations [batch, ...] to what is kept of them [batch, ...]."""
View = tuple[int, str]
"""A cut point, and a way of looking at it."""
BATCH = 32
NOTHING = np.empty(0)
"""The output of a segment that is not run: samples are features behind it, or nobody reads it."""
LARGE = 4096
"""Features of more numbers than this are kept as float16: they are planes, and are learned from, not served."""
HALF_LIMIT = 2.0**14
"""Activations larger than this, a quarter of what float16 holds, are not trusted to it."""


class BrokenSamples(SamplesError):
    """Samples give NaN or infinite numbers in the network.

    Attributes:
        rows: Which of the samples that were given.
    """

    def __init__(self, message: str, rows: np.ndarray) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class Activations:
    """What a backbone did with n samples.

    Attributes:
        features: Reduced activations by cut point and view, [n, ...] each.
        outputs: The backbone's own outputs, [n, classes].
    """

    features: dict[View, np.ndarray]
    outputs: np.ndarray


def open_segments(paths: Sequence[Path]) -> list[ort.InferenceSession]:
    """Opens a chain's segments, given their files in order.

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


def run_segments(sessions: Sequence[ort.InferenceSession], feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Runs segments one after another; returns the last one's output."""
    return run_chain(sessions, feeds)[sessions[-1].get_outputs()[0].name]


def first_segment(chain: Chain, samples: Mapping[str, np.ndarray]) -> int:
    """The first segment that is run on samples: 0 on inputs; on features, the one behind their cut point."""
    return next((segment.index + 1 for segment in chain.segments if segment.output.name in samples), 0)


def learnable(chain: Chain, samples: Mapping[str, np.ndarray]) -> range:
    """The cut points whose activations can be had from samples: from features, theirs and later ones."""
    return range(max(0, first_segment(chain, samples) - 1), len(chain.heads))


def collect(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    samples: Mapping[str, np.ndarray],
    reducers: Mapping[View, Reducer],
    progress: Progress,
    rows: np.ndarray | None = None,
) -> Activations:
    """Runs samples through all segments, and keeps reduced activations and the backbone's outputs.

    Activations are reduced batch by batch: whole, those of a 64×32×32 cut take 256 KB a sample.

    Args:
        chain: The chain.
        sessions: Its segments, in order.
        samples: Model inputs, or recorded features in their place (gati.recording.content), by name, n rows each.
        reducers: What to keep, by cut point and view.
        progress: Told how far it is.
        rows: Indices of the samples to run; all of them if None.

    Raises:
        SamplesError: If there are no samples.
        BrokenSamples: If activations or outputs are not finite.
    """
    rows = np.arange(count(samples)) if rows is None else rows
    kept: dict[View, np.ndarray] = {}
    outputs = np.empty((len(rows), *chain.output.shape), chain.output.numpy)
    for batch, hidden in run_batches(chain, sessions, samples, rows, progress):
        for view, reduce in reducers.items():
            part = reduce(hidden[view[0]])
            if view not in kept:
                kept[view] = np.empty((len(rows), *part.shape[1:]), _kept_type(part))
            kept[view][batch] = part
        outputs[batch] = hidden[-1]
    return Activations(kept, outputs)


def _kept_type(part: np.ndarray) -> np.dtype:
    large = part[0].size > LARGE and float(np.abs(part).max()) < HALF_LIMIT
    return np.dtype(np.float16) if large else part.dtype


def run_batches(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    samples: Mapping[str, np.ndarray],
    rows: np.ndarray,
    progress: Progress,
    last: int | None = None,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Runs samples through segments, batch by batch: a batch's places among `rows`, and every segment's output.

    Features go through those behind them. What is not run has `NOTHING` for its output.

    Args:
        chain: The chain.
        sessions: Its segments, in order.
        samples: Model inputs, or recorded features in their place, by name, n rows each.
        rows: Indices of the samples to run.
        progress: Told how far it is.
        last: Index of the last segment to run; the chain's last if None.

    Raises:
        SamplesError: If there are no samples.
        BrokenSamples: If activations or outputs are not finite (known at the end).
    """
    if not len(rows):
        raise SamplesError("There are no samples to run; give at least one.")
    first = first_segment(chain, samples)
    end = len(sessions) if last is None else last + 1
    size = 1 if chain.max_batch == 1 else min(BATCH, chain.max_batch or BATCH)
    broken = np.zeros((len(chain.segments), len(rows)), bool)
    done = 0
    for places in batches(samples, rows, size):
        values = rows_at(samples, rows[places])
        for segment, session in list(zip(chain.segments, sessions, strict=True))[first:end]:
            feeds = {name: values[name] for name in segment.inputs}
            values[segment.output.name] = np.asarray(session.run([segment.output.name], feeds)[0])
            broken[segment.index, places] = ~_finite(values[segment.output.name])
        yield places, [values.get(s.output.name, NOTHING) for s in chain.segments]
        done += len(places)
        progress("Run the backbone", done / len(rows))
    _check(chain, broken, rows)


def _finite(rows: np.ndarray) -> np.ndarray:
    """Which rows of [n, ...] hold no NaN and no infinity, bool [n]."""
    return np.isfinite(rows).reshape(len(rows), -1).all(axis=1)


def _check(chain: Chain, broken: np.ndarray, rows: np.ndarray) -> None:
    """Names the first place where numbers stopped being finite: what lies behind it only inherits that."""
    for segment in chain.segments:
        if not broken[segment.index].any():
            continue
        last = segment.index == chain.backbone_exit
        where = f"at cut point {segment.index} ({segment.output.name!r})" if not last else "in the backbone's output"
        instead = ", or have the network give a large negative number where it gives -inf" if last else ""
        raise BrokenSamples(
            f"{broken[segment.index].sum()} of {len(rows)} samples give NaN or infinite numbers {where}; "
            f"check their preprocessing, or leave them out{instead}.",
            rows[broken.any(axis=0)],
        )
