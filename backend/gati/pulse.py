"""Signs of life of the processes that run models. Triton does not notice one that hangs, nor that its requests fail.

Such a process touches a file every second, from a thread that needs Python's lock and nothing else: a request may take
as long as it likes, a disk may hang, and the file is still touched. `gati serve` looks, and ends a process that
is silent for long; it is then loaded again as one that was killed. Silence counts little while the process does
something, or would if the machine let it: a slow one is never ended for being slow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PULSE = "GATI_PULSE"
"""Environment variable: the folder of the files, each named by its process."""
UP = "up"
"""A file beside that folder, which `gati serve` makes when its server is up."""
SECONDS = 1.0
"""Between two signs, and between two looks."""
PATIENCE_SECONDS = 60.0
BUSY = 0.1
"""What a second of silence counts while the process works, waits for a processor or a disk, or is being debugged."""
WAITING = frozenset("RDt")
"""States of a thread that would go on if it could, as /proc tells them: running or ready, in the kernel, traced."""


def beat(environment: Mapping[str, str]) -> None:
    """Gives signs of life from now on, where somebody looks for them."""
    folder = environment.get(PULSE)
    if not folder:
        return
    path = Path(folder, str(os.getpid()))

    def run() -> None:
        with suppress(OSError):  # the folder is gone, and with it who looked there
            while True:
                path.touch()
                time.sleep(SECONDS)

    threading.Thread(target=run, name="gati-pulse", daemon=True).start()


def is_up(environment: Mapping[str, str]) -> bool:
    """Whether the server of a model's process is known to be up."""
    folder = environment.get(PULSE)
    return bool(folder) and Path(folder).with_name(UP).exists()


class Pulse(NamedTuple):
    """The last sign of a process, the processor time that it had used, and the seconds of silence that count."""

    sign: int
    work: int
    silence: float


class Pulses:
    """Those that are given in one folder.

    Args:
        folder: The folder.
        patience: Seconds of silence after which a process hangs.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE_SECONDS) -> None:
        self._folder = folder
        self._patience = patience
        self._known: dict[int, Pulse] = {}
        self._looked = time.monotonic()

    def hung(self) -> list[int]:
        """Processes that hang; each is told once. To be asked often: what is not looked at does not count."""
        passed = time.monotonic() - self._looked
        if passed < SECONDS:
            return []
        self._looked += passed
        hung = []
        for path in self._folder.iterdir():
            if not path.name.isdecimal():  # it is no process's
                continue
            pid = int(path.name)
            if self._silence(pid, path, min(passed, 2 * SECONDS)) >= self._patience:  # longer: we were held up, too
                hung.append(pid)
                self._drop(pid, path)
        return hung

    def silent(self, pid: int, seconds: float) -> bool:
        """Whether a process that gives signs has given none for so many seconds, whatever it does meanwhile."""
        with suppress(OSError):
            return time.time() - (self._folder / str(pid)).stat().st_mtime > seconds
        return False

    def _silence(self, pid: int, path: Path, passed: float) -> float:
        """Takes in what a process did in the seconds that passed; returns its silence."""
        sign, work = path.stat().st_mtime_ns, _work(pid)
        if work is None:
            self._drop(pid, path)
            return 0.0
        before, silence = self._known.get(pid), 0.0
        if before is not None and before.sign == sign:
            silence = before.silence + passed * (BUSY if work != before.work or _waits(pid) else 1.0)
        self._known[pid] = Pulse(sign, work, silence)
        return silence

    def _drop(self, pid: int, path: Path) -> None:
        self._known.pop(pid, None)
        path.unlink(missing_ok=True)


def _work(pid: int) -> int | None:
    """Processor time that a process has used, in ticks; None where it has ended."""
    try:
        state, fields = _stat(Path(f"/proc/{pid}/stat"))
    except OSError:
        return None
    return None if state in "ZX" else int(fields[10]) + int(fields[11])


def _waits(pid: int) -> bool:
    """Whether a thread of a process is in one of the states of `WAITING`."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # the thread has ended
            if _stat(path)[0] in WAITING:
                return True
    return False


def _stat(path: Path) -> tuple[str, list[str]]:
    """State, and the fields that follow it; a name before them may hold anything."""
    state, *fields = path.read_text().rpartition(")")[2].split()
    return state, fields
