"""A model's folder in a store: shards are written there, and the oldest are deleted to keep to a budget.

A shard is written under another name and renamed, so that a half-written one is never read. Light traffic makes
hundreds of thousands of small shards, and listing them takes seconds. So the listing is remembered, as far as it is
needed, and renewed now and then, since replicas may share a store.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import sys
import time
from collections import deque
from contextlib import suppress
from heapq import nsmallest
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from gati.recording.expiry import delete_old, number_of
from gati.recording.objects import is_object_store, open_store

if TYPE_CHECKING:
    import pyarrow as pa

LIST_SECONDS, LIST_TIMES = 300.0, 200
"""Least seconds between two listings, and least multiple of the time that one takes. For so long, what other replicas
write may exceed the budget. Where clocks differ, only the multiple counts, so that shards keep their order."""
REMEMBERED = 10_000
"""How many shards are remembered by name: the oldest, which are deleted next."""
SHARE = 0.5
"""Of a local disk, how much samples may take whatever their budget: audits' evidence and releases need room as well."""
ABANDONED_NS = 600 * 10**9
"""A half-written shard that is this much older than the newest shard will never be finished: its writer is gone."""


class ShardFolder:
    """The folder, as one writer knows it. Not thread-safe: a recorder's thread owns it.

    Args:
        url: fsspec URL of the model's folder.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._due = self._due_early = 0.0  # of the next listing, by the monotonic clock
        self._oldest: deque[tuple[str, int]] = deque()
        self._younger = 0  # shards that are there, but not in `_oldest`
        self._bytes = 0  # of all shards
        self._newest = 0  # the number of the newest shard

    def write(self, table: pa.Table, budget: int) -> str:
        """Writes a shard, and deletes the oldest ones until the rest fits the budget.

        A shard's number is the time in nanoseconds, or one more than the newest number where that is larger, so that a
        clock that is set back changes no order. On a local disk, only their owner can read shards.

        Args:
            table: What to write.
            budget: Bytes that all shards together may take.

        Returns:
            The shard's path.
        """
        fs, folder = open_store(self._url)
        put = _put if is_object_store(self._url) else _write_beside
        now = time.time_ns()
        if time.monotonic() >= (self._due if now > self._newest else self._due_early):  # early: some clock is wrong
            self._list(fs, folder)
        number = max(now, self._newest + 1)
        path = f"{folder}/{number:020d}-{secrets.token_hex(4)}.parquet"  # replicas may share a store
        try:
            put(fs, path, table)
        except FileNotFoundError:  # somebody has deleted the folder
            self._list(fs, folder)
            put(fs, path, table)
        self._newest = number
        self._add(path, fs.size(path))
        if "file" in fs.protocol:
            budget = min(budget, int(SHARE * shutil.disk_usage(folder).total))
        if not self._prune(fs, path, budget):
            self._list(fs, folder)
            self._prune(fs, path, budget)
        return path

    def sweep(self, age: float) -> None:
        """Deletes shards, also half-written ones, that were written more than `age` seconds ago."""
        fs, folder = open_store(self._url)
        self._list(fs, folder, age)

    def _list(self, fs: Any, folder: str, age: float | None = None) -> None:
        """Lists the folder. Deletes what is older than `age` seconds, if given, and what killed writers have left."""
        began = time.monotonic()
        try:
            files = fs.ls(folder, detail=True)
        except FileNotFoundError:
            files = []
            if age is None:
                _make(fs, folder)
        if age is not None:
            gone = delete_old(fs, files, age)
            files = [file for file in files if file["name"] not in gone]
        shards = [(file["name"], file["size"]) for file in files if file["name"].endswith(".parquet")]
        self._oldest = deque(nsmallest(REMEMBERED, shards, key=lambda shard: number_of(shard[0])))
        self._younger = len(shards) - len(self._oldest)
        self._bytes = sum(size for _, size in shards)
        self._newest = max([self._newest, *(number_of(file["name"]) for file in files)])
        abandoned = max(self._newest, time.time_ns()) - ABANDONED_NS
        for file in files:
            if file["name"].endswith(".part") and 0 < number_of(file["name"]) < abandoned:
                _delete(fs, file["name"])
        took = time.monotonic() - began
        self._due_early = time.monotonic() + LIST_TIMES * took
        self._due = max(self._due_early, time.monotonic() + LIST_SECONDS)

    def _add(self, path: str, size: int) -> None:
        self._bytes += size
        if self._younger or len(self._oldest) >= REMEMBERED:
            self._younger += 1
        else:
            self._oldest.append((path, size))

    def _prune(self, fs: Any, newest: str, budget: int) -> bool:
        """Deletes the oldest shards until the rest fits the budget; returns False if that takes a new listing first.

        The newest stays, whatever the budget.
        """
        while self._bytes > budget and self._oldest and self._oldest[0][0] != newest:
            name, size = self._oldest.popleft()
            self._bytes -= size
            _delete(fs, name)
        return self._bytes <= budget or bool(self._oldest)


def _delete(fs: Any, name: str) -> None:
    with suppress(FileNotFoundError):  # another writer was first
        fs.rm_file(name)


def _make(fs: Any, folder: str) -> None:
    """Makes a model's folder. An object store has no folders, and its buckets are not ours to make."""
    if not is_object_store(fs.unstrip_protocol(folder)):
        fs.makedirs(folder, exist_ok=True)
    if "file" in fs.protocol:
        os.chmod(folder, 0o700)


def _put(fs: Any, path: str, table: pa.Table) -> None:
    """Writes a shard to an object store: it appears whole or not at all, and a rename would be a copy."""
    buffer = io.BytesIO()
    _parquet().write_table(table, buffer, compression="zstd")
    fs.pipe_file(path, buffer.getvalue())


def _write_beside(fs: Any, path: str, table: pa.Table) -> None:
    """Writes a shard under another name and renames it."""
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.part"
    try:
        with fs.open(partial, "wb") as file:
            if "file" in fs.protocol:
                os.chmod(partial, 0o600)
            _parquet().write_table(table, file, compression="zstd")
        fs.mv(partial, path)
    except BaseException:
        if fs.exists(partial):
            fs.rm_file(partial)
        raise


def _parquet() -> Any:
    """pyarrow.parquet, also where the interpreter has no `ssl`.

    The stub of the pip wheel's Triton carries a libpython of its own, which can't load the `ssl` module of a newer
    patch release; pyarrow asks that module for its certificates as it is imported, and for nothing else.
    """
    try:
        import ssl  # noqa: F401
    except ImportError:
        paths = SimpleNamespace(cafile=None, capath=None)
        sys.modules["ssl"] = cast(ModuleType, SimpleNamespace(get_default_verify_paths=lambda: paths))
        try:
            import pyarrow.parquet as pq
        finally:
            del sys.modules["ssl"]
        return pq
    import pyarrow.parquet as pq

    return pq
