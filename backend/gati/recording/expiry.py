"""How old samples may become: deleting what is older."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

NUMBERED = re.compile(r"\.?([0-9]{20})-")


def number_of(path: str) -> int:
    """The number in the name of a shard, whole or half-written: the time in nanoseconds; 0 for other files."""
    found = NUMBERED.match(os.path.basename(path))
    return int(found[1]) if found else 0


def delete_old(fs: Any, files: Sequence[dict[str, Any]], age: float) -> set[str]:
    """Deletes those files that are shards, whole or half-written, and older than `age` seconds; returns their names."""
    now = time.time()
    gone = {file["name"] for file in files if number_of(file["name"]) and _written(fs, file, now) < now - age}
    for name in gone:
        with suppress(FileNotFoundError):  # another replica was first
            fs.rm_file(name)
    return gone


def _written(fs: Any, file: dict[str, Any], now: float) -> float:
    """The latest time at which a file can have been written, in seconds since the epoch.

    If the clock was set back since, both its number and its date may be in the future: then the file's date is set to
    now, from which it ages. Shards that follow one from the future are numbered after it, but their dates are right.
    """
    modified = file.get("mtime", file.get("LastModified"))
    if isinstance(modified, datetime.datetime):
        modified = modified.timestamp()
    written = min(number_of(file["name"]) / 1e9, modified or now)
    if written > now and "file" in fs.protocol:
        os.utime(file["name"], (now, now))
    return written
