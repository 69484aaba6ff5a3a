"""How long samples are kept: ages as people write them, and deleting what is older."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

FOREVER = "none"
UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
NUMBERED = re.compile(r"\.?([0-9]{20})-")


def parse_age(text: str) -> float | None:
    """Seconds in an age such as `30d`, `12h`, `90m` or `45s`; None for `none`, which is any age.

    Raises:
        ValueError: If it is no age.
    """
    if text == FOREVER:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([dhms])", text)
    if found is None or not int(found[1]):
        raise ValueError(f"{text!r} is no age such as 30d, 12h, 90m, 45s, or {FOREVER}")
    return float(int(found[1]) * UNITS[found[2]])


def number_of(path: str) -> int:
    """What a shard's name begins with, whole or half-written: nanoseconds, when its clock was right; 0 for others."""
    found = NUMBERED.match(os.path.basename(path))
    return int(found[1]) if found else 0


def delete_old(fs: Any, files: Sequence[dict[str, Any]], age: float) -> set[str]:
    """Deletes those of a folder's files that are shards, whole or half-written, older than so many seconds."""
    now = time.time()
    gone = {file["name"] for file in files if number_of(file["name"]) and _written(fs, file, now) < now - age}
    for name in gone:
        with suppress(FileNotFoundError):  # another replica was first
            fs.rm_file(name)
    return gone


def _written(fs: Any, file: dict[str, Any], now: float) -> float:
    """When a file was written, at the latest.

    The clock may have been set back since: what comes from the future was written before now, and is marked so, and
    ages from now on. Shards that follow one from the future are numbered after it, but their files' dates are right.
    """
    modified = file.get("mtime", file.get("LastModified"))
    if isinstance(modified, datetime.datetime):
        modified = modified.timestamp()
    written = min(number_of(file["name"]) / 1e9, modified or now)
    if written > now and "file" in fs.protocol:
        os.utime(file["name"], (now, now))
    return written
