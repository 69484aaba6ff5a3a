"""What this process may use of the machine. A container's limits are those of cgroups, and show nowhere else."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
MACHINE = Path("/proc/meminfo")


def cores() -> int:
    """Cores at a time: those that it may run on, and no more than the quota of its cgroups (v1, v2), rounded up."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas())]))


def memory() -> int:
    """Bytes that it can take now: those available, and no more than its cgroups (v1, v2) leave.

    Pages of files that nobody has used lately are available.
    """
    return max(0, min([_numbers(MACHINE)["MemAvailable"] * 1024, *_left()]))


def _quotas() -> Iterator[float]:
    """Seconds of processors a second that its cgroups may take, where they are limited."""
    for folder, version in _folders("cpu"):
        with suppress(OSError, ValueError):  # no limit ("max"), or what lies outside of a container
            if version == 1:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            else:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            if quota > 0 and period > 0:
                yield quota / period


def _left() -> Iterator[int]:
    """Bytes that its cgroups may still take, where they are limited."""
    for folder, version in _folders("memory"):
        limit, used = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
        with suppress(OSError, ValueError, KeyError):
            most, now = (int((folder / f"memory.{name}").read_text()) for name in (limit, used))
            idle = _numbers(folder / "memory.stat")["total_inactive_file" if version == 1 else "inactive_file"]
            yield most - now + idle


def _folders(controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of the cgroups that this process is in and of those above, with the version of cgroups."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            root, version = GROUPS, 2
        elif controller in controllers.split(","):
            root, version = GROUPS / controller, 1
        else:
            continue
        place = Path(path.lstrip("/"))
        for inner in dict.fromkeys([place, *place.parents]):
            yield root / inner, version


def _numbers(path: Path) -> dict[str, int]:
    """A file of lines with a name and a number."""
    return {name: int(value) for name, value in re.findall(r"^(\w+):?\s+(\d+)", path.read_text(), re.MULTILINE)}
