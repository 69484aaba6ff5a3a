"""Cores that this process may use. A container's CPU limit is a share of time, of which affinity says nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """How many at a time: those it may run on, and no more than the quota of its cgroups (v1, v2), rounded up."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Seconds of processors a second that its cgroups may take, where they are limited."""
    for folder, version in _folders():
        with suppress(OSError, ValueError):  # no limit ("max"), or what lies outside of a container
            if version == 1:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            else:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            if quota > 0 and period > 0:
                yield quota / period


def _folders() -> Iterator[tuple[Path, int]]:
    """Folders of the cgroups that this process is in and of those above, with the version of cgroups."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            root, version = GROUPS, 2
        elif "cpu" in controllers.split(","):
            root, version = GROUPS / "cpu", 1
        else:
            continue
        place = Path(path.lstrip("/"))
        for inner in dict.fromkeys([place, *place.parents]):
            yield root / inner, version
