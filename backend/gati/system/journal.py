"""Journals: files that grow a line of JSON at a time, up to a bound."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gati.decode import decode
from gati.system.files import replace

Line = TypeVar("Line")

FORGOTTEN_SECONDS = 7 * 86400.0
"""How long a replica may write nothing before its journal is removed: in a cluster, new replicas have new names."""


class Journal:
    """One file, which one thread of one process writes.

    Args:
        path: The file.
        kept: At least so many lines are kept: when there are twice as many, the older half is removed.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self._path = path
        self._kept = kept
        self._count: int | None = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Appends a line, and waits until it is on the disk.

        Raises:
            OSError: If that is not possible.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._count is None:
            self._count = len(_lines(self._path))
        if self._count >= 2 * self._kept:
            newest = _lines(self._path)[-self._kept :]
            replace(self._path, b"".join(line + b"\n" for line in newest))
            self._count = len(newest)
        with self._path.open("ab") as file:
            if file.tell() and not _ends_whole(self._path):
                file.write(b"\n")  # its last writer was killed in the middle of a line
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._count += 1

    def touch(self) -> None:
        """Marks the file as in use although there is nothing to write; see `forget`.

        Raises:
            OSError: If that is not possible.
        """
        with suppress(FileNotFoundError):
            os.utime(self._path)


def entries(path: Path) -> list[Any]:
    """A journal's lines, oldest first; none if there is no file. Lines that are no JSON are left out."""
    found = []
    for line in _lines(path):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return found


def decoded(kind: type[Line], path: Path) -> list[Line]:
    """A journal's lines as a dataclass, oldest first. Lines that do not fit it are left out."""
    found = []
    for entry in entries(path):
        with suppress(ValueError, OverflowError):
            found.append(decode(kind, entry, "line"))
    return found


def forget(folder: Path) -> None:
    """Removes the journals of replicas that are long gone from a folder."""
    for path in folder.glob("*.jsonl"):
        try:
            if time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS:
                path.unlink()
        except OSError:  # read-only, or another replica was faster
            continue


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
