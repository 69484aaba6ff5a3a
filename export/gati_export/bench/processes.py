"""What a server's processes have used: time on cores, and memory. Linux only, as Triton is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

STUB = "triton_python_backend_stub"
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


def peak_mib(root: int, models: list[str]) -> float:
    """The most memory that the Python processes of some models have held, summed up, in MiB."""
    total = 0
    for process in _tree(root):
        if _model(process) in models:
            total += _peak_kib(process)
    return total / 1024


def _tree(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def _model(process: int) -> str | None:
    """The model whose stub of Triton's Python backend this is: it is started with the instance's name, MODEL_0_0."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not words[0].endswith(STUB):
        return None
    return next((word.rsplit("_", 2)[0] for word in words if word.endswith("_0_0")), None)


def _peak_kib(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
