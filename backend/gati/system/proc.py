"""Processes of this machine, as /proc tells of them. Linux only, as Triton is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def pids() -> list[int]:
    """All processes."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def children(pid: int) -> list[int]:
    """Processes that a process has started, as long as they are not waited for."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += [int(child) for child in task.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def arguments(pid: int) -> list[str]:
    """A process's command line; empty for a zombie, and for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def is_contained(pid: int) -> bool:
    """Whether a process is in a container, a PID namespace below this one, where processes have other numbers."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it is gone
        return False
    return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in lines)
