"""Shards: samples as a table of Parquet, one row each.

A row holds what is kept of the request (gati.recording.content: the model's inputs, or hidden activations in their
place), the backbone's answer where it is known (after a miss or an audit), the exit, the release and the time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gati.recording.content import Content, inputs_of
from gati.repository.chain import Chain

if TYPE_CHECKING:
    import pyarrow as pa

ANSWER, EXIT, RELEASE, TIME = "gati.answer", "gati.exit", "gati.release", "gati.time"
SHAPE = b"shape"
"""Field metadata of a column of flat values: a row's shape as JSON. Rows of several shapes are nested lists."""
OBJECTS = 1024
"""Bytes of a sample's Python objects."""


@dataclass(frozen=True)
class Sample:
    """Rows of one request, and what was served for them.

    Attributes:
        values: What is kept of the request, by name, [rows, ...] each; see gati.recording.content.
        answer: The backbone's answer, [rows, classes]; None where it is not known.
        exit: The exit of each row, int32 [rows].
        release: The release that answered each row, int64 [rows].
        time: When the request arrived, as `time.time()`.
    """

    values: dict[str, np.ndarray]
    answer: np.ndarray | None
    exit: np.ndarray
    release: np.ndarray
    time: float

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.exit)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the queue."""
        arrays = (*self.values.values(), self.exit, self.release, *(() if self.answer is None else (self.answer,)))
        return OBJECTS + sum(array.nbytes for array in arrays)


def shard(chain: Chain, samples: list[Sample], content: Content | None = None) -> pa.Table:
    """Samples as a table: a list column for each tensor that is kept, and what was served."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what it once had
    content = content or inputs_of(chain)
    columns: dict[str, Any] = {}
    fields = []
    for tensor in content.tensors:
        values = [sample.values[tensor.name] for sample in samples]
        shapes = {some.shape[1:] for some in values}
        alike = len(shapes) == 1
        columns[tensor.name] = _flat_lists(np.concatenate(values)) if alike else _nested_lists(values)
        shape = {SHAPE: json.dumps(shapes.pop()).encode()} if alike else None
        fields.append(pa.field(tensor.name, columns[tensor.name].type, metadata=shape))
    columns[ANSWER] = _answers(chain, samples)
    columns[EXIT] = pa.array(np.concatenate([sample.exit for sample in samples]))
    columns[RELEASE] = pa.array(np.concatenate([sample.release for sample in samples]))
    times = np.repeat([int(sample.time * 1e6) for sample in samples], [sample.rows for sample in samples])
    columns[TIME] = pa.array(times, pa.timestamp("us", tz="UTC"))
    fields += [pa.field(name, columns[name].type) for name in (ANSWER, EXIT, RELEASE, TIME)]
    return pa.table(columns, schema=pa.schema(fields, content.metadata))


def _answers(chain: Chain, samples: list[Sample]) -> pa.Array:
    """The backbone's answers as lists of FP32; null where an answer is not known."""
    import pyarrow as pa

    unknown = np.repeat([sample.answer is None for sample in samples], [sample.rows for sample in samples])
    known = [np.empty((0, *chain.output.shape)), *(s.answer for s in samples if s.answer is not None)]
    offsets = np.concatenate([[0], np.cumsum(~unknown)]) * np.prod(chain.output.shape, dtype=np.int64)
    values = np.concatenate(known).astype(np.float32).reshape(-1)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values), mask=pa.array(unknown))


def _flat_lists(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), int(np.prod(values.shape[1:], dtype=np.int64))
    )


def _nested_lists(values: Sequence[np.ndarray]) -> pa.Array:
    """Rows of several shapes as nested lists, with one level for each dimension of a row.

    Args:
        values: [rows, ...] each.
    """
    import pyarrow as pa

    lists = pa.array(np.concatenate([some.reshape(-1) for some in values]))
    for axis in reversed(range(1, values[0].ndim)):
        counts = [int(np.prod(some.shape[:axis])) for some in values]
        lengths = np.repeat([some.shape[axis] for some in values], counts)
        lists = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), lists)
    return lists
