"""What a server's processes have used: time on cores, and memory. Linux only, as Triton is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gati.system.proc import arguments, descendants
from gati.triton.stubs import model_of

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(root: int) -> float:
    """Seconds that a process and all below it have run so far."""
    total = 0.0
    for process in _tree(root):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def peak_mib(root: int, models: list[str]) -> float | None:
    """The most memory that the Python processes of some models have held, summed up, in MiB.

    None where they have none: what a backend in C++ holds is the server's own process's, with that of others.
    """
    held = [_kib(process, "VmHWM") for process in _tree(root) if model_of(arguments(process)) in models]
    return sum(held) / 1024 if held else None


def resident_mib(root: int) -> float:
    """The memory that a process and all below it hold now, summed up, in MiB."""
    return sum(_kib(process, "VmRSS") for process in _tree(root)) / 1024


def shared_memory(root: int) -> set[Path]:
    """Files in /dev/shm that a process or any below it has mapped."""
    found: set[Path] = set()
    for process in _tree(root):
        with suppress(OSError):  # it has ended meanwhile
            fields = (line.split() for line in Path(f"/proc/{process}/maps").read_text().splitlines())
            found |= {Path(words[5]) for words in fields if len(words) == 6 and words[5].startswith("/dev/shm/")}
    return found


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    return [root, *descendants(root)]


def _kib(process: int, field: str) -> int:
    """A figure of a process's memory."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
