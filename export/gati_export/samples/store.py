"""Reads what the recorder kept: the most recent samples of a model, oldest first."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gati.errors import SamplesError
from gati.recording.content import Content, content_of
from gati.recording.expiry import number_of
from gati.recording.objects import is_object_store, open_store, public, reaching
from gati.recording.shard import SHAPE, TIME
from gati.repository.chain import Chain, Tensor
from gati.repository.release import Window
from gati.repository.workspace import workspace
from gati_export.samples.parquet import rows_of
from gati_export.samples.ragged import count, each, joined, shapes

AHEAD = 16
"""Shards of an object store that are read at once: light traffic makes many small ones, and each is waited for."""
SHARD = re.compile(r"[0-9].*\.parquet")
"""The name of a shard's file; one that is being written has another."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class Recorded:
    """Recorded samples.

    Attributes:
        content: What they hold.
        samples: That, by name, n rows each.
        times: When they were served, [n].
        window: What they span.
        mark: What is recorded from then on comes after it.
        left_out: Shards that were passed over: damaged, or of another model that had the name.
    """

    content: Content
    samples: dict[str, np.ndarray]
    times: np.ndarray
    window: Window
    mark: str
    left_out: int = 0

    def without(self, rows: np.ndarray) -> Recorded:
        """The same without some of the samples."""
        samples = {name: np.delete(values, rows, axis=0) for name, values in self.samples.items()}
        window = replace(self.window, samples=count(samples))
        return replace(self, samples=samples, times=np.delete(self.times, rows), window=window)


def default_store(repository: Path) -> str:
    """Where samples lie unless `gati serve --store` says otherwise."""
    return str(workspace(repository) / "samples")


def read_recent(store: str, chain: Chain, limit: int, age: float | None = None, mark: str = "") -> Recorded:
    """Reads the newest samples, at most `limit`, which all hold what the newest holds.

    A shard that can't be read is left out: its writer's disk may have failed, and the others are still good. So is one
    with features of other segments, or of a model that had the name before and took other inputs.

    Args:
        store: fsspec URL of the store.
        chain: Whose samples.
        limit: How many, at most.
        age: Seconds since they were served, at most; None for any.
        mark: Only what came after it is read (`Recorded.mark`); "": all.

    Raises:
        SamplesError: If there are none.
        UnavailableError: If the store can't be reached.
    """
    fs, url, names = _shards(store, chain)
    names = [name for name in names if _mark(name) > mark and not _outdated(name, age)]
    parts: list[_Part] = []
    content: Content | None = None
    there = left_out = 0
    for part in _each(names[::-1], partial(_read, fs, chain), url):
        if part is None:
            left_out += 1
        if part is None or part is GONE:
            continue
        young = part if age is None else part.since(time.time() - age)
        if age is not None and not len(young.times):
            continue  # and no break: those before it may be younger, if its clock was wrong
        content = content or part.content
        if part.content == content:
            parts.append(young)
            there += len(young.times)
        if there >= limit:
            break
    if not there:
        but = f" ({misfits(left_out)})" if left_out else ""
        raise SamplesError(
            f"No samples of {chain.model!r} are recorded in {public(url)}{but}: send the chain some requests first."
        )
    parts.reverse()
    samples = {name: joined([part.samples[name] for part in parts])[-limit:] for name in parts[0].samples}
    times = np.concatenate([part.times for part in parts])[-limit:]
    window = Window(_public(url), len(times), _iso(times.min()), _iso(times.max()))
    return Recorded(parts[0].content, samples, times, window, _mark(names[-1]), left_out)


def misfits(shards: int) -> str:
    """Shards that were left out, in words."""
    return f"{shards} file{'s' * (shards > 1)} left out: damaged, or of another model of this name"


def count_since(store: str, chain: Chain, mark: str, enough: float = math.inf) -> tuple[int, str, str]:
    """Counts the samples in the shards that came after a mark ("": all).

    Where all shards are before it, the clock was ahead when it was taken, and they count as if there were none.

    Returns:
        How many they are, counted up to `enough`; the mark of the newest of these shards, or the given one where there
        are none; and the mark of the oldest shard of all that are there, "" where none is.

    Raises:
        UnavailableError: If the store can't be reached.
    """
    fs, url, names = _shards(store, chain)
    if names and _mark(names[-1]) < mark:
        mark = ""
    new = [name for name in names if _mark(name) > mark]
    rows = 0
    for found in _each(new[::-1], partial(_rows, fs), url):
        rows += found
        if rows >= enough:
            break
    return rows, _mark(new[-1]) if new else mark, _mark(names[0]) if names else ""


def _shards(store: str, chain: Chain) -> tuple[Any, str, list[str]]:
    """The file system of a store, the URL of a model's samples there, and its shards, oldest first."""
    url = f"{store.rstrip('/')}/{chain.model}"
    with reaching(url):
        fs, folder = open_store(url)
        try:
            names = sorted(fs.ls(folder, detail=False))  # and no glob: the folder's own name may look like a pattern
        except FileNotFoundError:
            names = []
        return fs, url, [name for name in names if SHARD.fullmatch(_mark(name))]


def _each(names: Sequence[str], read: Callable[[str], Read], url: str) -> Iterator[Read]:
    """What is read of each shard, in order; of an object store, some of them ahead."""
    ahead = AHEAD if is_object_store(url) else 1

    def reached(name: str) -> Read:
        with reaching(url):
            return read(name)

    with ThreadPoolExecutor(ahead) as pool:
        for start in range(0, len(names), ahead):
            yield from pool.map(reached, names[start : start + ahead])


def _mark(name: str) -> str:
    """What tells a shard's age: the name of its file, which begins with the time."""
    return name.rsplit("/", 1)[-1]


def _outdated(name: str, age: float | None) -> bool:
    """Whether a shard was written longer ago, and all before it: unlike samples' times, shards' numbers only rise."""
    return age is not None and 0 < number_of(name) < (time.time() - age) * 1e9


def _rows(fs: Any, name: str) -> int:
    try:
        with fs.open(name, "rb") as file:
            return pq.read_metadata(file).num_rows
    except (OSError, ValueError) as error:
        if _is_fault(error, fs):
            raise
        return 0


@dataclass(frozen=True)
class _Part:
    """A shard's samples, and when they were served, [n]."""

    content: Content
    samples: dict[str, np.ndarray]
    times: np.ndarray

    def since(self, time_: float) -> _Part:
        """What was served since then."""
        return self.at(self.times >= np.datetime64(int(time_ * 1e6), "us"))

    def in_order(self) -> _Part:
        """The same as it was served: audited hits are recorded later than the requests around them."""
        return self.at(np.argsort(self.times, kind="stable"))

    def at(self, rows: np.ndarray) -> _Part:
        """These rows."""
        return _Part(self.content, {name: value[rows] for name, value in self.samples.items()}, self.times[rows])


GONE = _Part(Content(None, ()), {}, np.empty(0, "datetime64[us]"))
"""In the place of a shard that was deleted since it was listed, as the store's budget or age had it."""


def _is_fault(error: Exception, fs: Any) -> bool:
    """Whether an object store would not give a shard, which may be good; of a local disk, all others can be read.

    What can't make sense of a shard raises an OSError, too, but a plain one.
    """
    damaged = not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)
    return not damaged and not isinstance(error, FileNotFoundError) and "file" not in fs.protocol


def _read(fs: Any, chain: Chain, name: str) -> _Part | None:
    try:
        with fs.open(name, "rb") as file:
            shard = pq.ParquetFile(file)
            content = content_of(chain, shard.schema_arrow.metadata or {})
            if content is None:
                return None
            wanted = [*(tensor.name for tensor in content.tensors), TIME]
            if not {*wanted} <= {*shard.schema_arrow.names}:
                return None  # another model's, which took other inputs
            table = shard.read(columns=wanted)
        samples = {tensor.name: _rows_of(table, tensor) for tensor in content.tensors}
    except FileNotFoundError:
        return GONE
    except (OSError, ValueError, SamplesError) as error:
        if _is_fault(error, fs):
            raise
        return None
    return _Part(content, samples, table[TIME].to_numpy()).in_order()


def _rows_of(table: pa.Table, tensor: Tensor) -> np.ndarray:
    """A tensor's rows, of one shape or several.

    Raises:
        SamplesError: If they are none of this tensor's: a model that had the name before took others.
    """
    column = table[tensor.name].combine_chunks()
    shape = (table.schema.field(tensor.name).metadata or {}).get(SHAPE)
    if shape is None:
        rows = each(rows_of(tensor.name, column), lambda rows: rows.astype(tensor.numpy, copy=False))
    else:
        rows = column.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, *json.loads(shape))
    alike = _numbers(column.type) == pa.from_numpy_dtype(tensor.numpy)
    if not alike or not all(_fits(shape, tensor.shape) for shape in shapes(rows)):
        raise SamplesError(f"Column {tensor.name!r} does not hold what the model takes.")
    return rows


def _numbers(kind: pa.DataType) -> pa.DataType:
    """What lists, nested or not, hold in the end."""
    while isinstance(kind, pa.ListType | pa.FixedSizeListType):
        kind = kind.value_type
    return kind


def _fits(row: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a row's sizes are those of a tensor, where these may not vary."""
    return len(row) == len(shape) and all(size in (-1, there) for there, size in zip(row, shape, strict=True))


def _public(url: str) -> str:
    """A store's URL, or of a local folder its last two names: releases travel, and tell nobody where they were made."""
    return public(url) if "://" in url else "/".join(Path(url).parts[-2:])


def _iso(time: np.datetime64) -> str:
    return np.datetime_as_string(time, unit="s", timezone="UTC")
