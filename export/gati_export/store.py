"""Reads what the recorder kept: the most recent samples of a model, oldest first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gati.chain import Chain
from gati.errors import SamplesError
from gati.objects import open_store, public, reaching
from gati.recorder import SHAPE, TIME
from gati.release import Window
from gati.settings import workspace


@dataclass(frozen=True)
class Recorded:
    """Recorded samples: the inputs, [n, ...] each, and the window that they span."""

    inputs: dict[str, np.ndarray]
    window: Window


def default_store(repository: Path) -> str:
    """Where samples lie unless `gati serve --store` says otherwise."""
    return str(workspace(repository) / "samples")


def read_recent(store: str, chain: Chain, limit: int) -> Recorded:
    """Reads the newest samples of one shape, at most `limit`.

    A shard that can't be read is left out: its writer's disk may have failed, and the others are still good.

    Raises:
        SamplesError: If there are none.
        UnavailableError: If the store can't be reached.
    """
    fs, url, names = _shards(store, chain)
    parts: list[dict[str, np.ndarray]] = []
    count = 0
    for name in reversed(names):
        with reaching(url):
            part = _read(fs, name, chain)
        if part is None or (parts and _shapes(part, chain) != _shapes(parts[0], chain)):
            continue
        parts.append(part)
        count += len(part[TIME])
        if count >= limit:
            break
    if not parts:
        raise SamplesError(
            f"No samples of {chain.model!r} are recorded in {public(url)}: send the chain some requests first."
        )
    joined = {name: np.concatenate([part[name] for part in reversed(parts)])[-limit:] for name in parts[0]}
    times = joined.pop(TIME)
    window = Window(_public(url), len(times), _iso(times.min()), _iso(times.max()))
    return Recorded(joined, window)


def count_since(store: str, chain: Chain, mark: str) -> tuple[int, str]:
    """How many samples lie in the shards that came after a mark ("": all), and the mark of the newest of them."""
    fs, url, names = _shards(store, chain)
    new = [name for name in names if _mark(name) > mark]
    with reaching(url):
        return sum(_rows(fs, name) for name in new), _mark(new[-1]) if new else mark


def _shards(store: str, chain: Chain) -> tuple[Any, str, list[str]]:
    """The file system of a store, the URL of a model's samples there, and the names of their shards, oldest first."""
    url = f"{store.rstrip('/')}/{chain.model}"
    with reaching(url):
        fs, folder = open_store(url)
        return fs, url, sorted(fs.glob(f"{folder}/[0-9]*.parquet")) if fs.exists(folder) else []


def _mark(name: str) -> str:
    """What tells a shard's age: the name of its file, which begins with the time."""
    return name.rsplit("/", 1)[-1]


def _rows(fs: Any, name: str) -> int:
    try:
        with fs.open(name, "rb") as file:
            return pq.read_metadata(file).num_rows
    except (OSError, ValueError):
        return 0


def _read(fs: Any, name: str, chain: Chain) -> dict[str, np.ndarray] | None:
    try:
        with fs.open(name, "rb") as file:
            table = pq.read_table(file, columns=[*(t.name for t in chain.inputs), TIME])
    except (OSError, ValueError):
        return None
    part = {TIME: table[TIME].to_numpy()}
    for tensor in chain.inputs:
        shape = json.loads((table.schema.field(tensor.name).metadata or {}).get(SHAPE, b"[]"))
        flat = table[tensor.name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        part[tensor.name] = flat.reshape(table.num_rows, *shape).astype(tensor.numpy, copy=False)
    return part


def _shapes(part: dict[str, np.ndarray], chain: Chain) -> list[tuple[int, ...]]:
    return [part[tensor.name].shape[1:] for tensor in chain.inputs]


def _public(url: str) -> str:
    """A store's URL, or of a local folder its last two names: releases travel, and tell nobody where they were made."""
    return public(url) if "://" in url else "/".join(Path(url).parts[-2:])


def _iso(time: np.datetime64) -> str:
    return np.datetime_as_string(time, unit="s", timezone="UTC")
