"""Heartbeats of the processes that run models. Triton does not notice one that hangs, nor that its requests fail.

Such a process touches a file every second, from a thread that needs Python's lock (the GIL) and nothing else: a request
may take as long as it likes, or a disk may hang, and the file is still touched. `gati serve` watches the files, and
kills a process that has been silent for long; its model is then loaded again, as after any kill. Silence counts little
while the process does something, or would if the machine let it: a process is never killed for being slow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HEARTBEATS = "GATI_PULSE"
"""Environment variable: the folder of the files, each named by its process id."""
UP = "up"
"""A file beside that folder, which `gati serve` makes when its server is up."""
SECONDS = 1.0
"""Between two beats, and between two looks at them."""
PATIENCE_SECONDS = 60.0
BUSY = 0.1
"""What a second of silence counts while the process works, waits for a processor or a disk, or is being debugged."""
WAITING = frozenset("RDt")
"""States of a thread that would go on if it could, as /proc has them: running or ready, waiting for a disk, traced."""


def beat(environment: Mapping[str, str]) -> None:
    """Starts this process's heartbeat, if the environment names a folder for it."""
    folder = environment.get(HEARTBEATS)
    if not folder:
        return
    path = Path(folder, str(os.getpid()))

    def run() -> None:
        with suppress(OSError):  # the folder is gone, and with it whoever watched
            while True:
                path.touch()
                time.sleep(SECONDS)

    threading.Thread(target=run, name="gati-heartbeat", daemon=True).start()


def is_up(environment: Mapping[str, str]) -> bool:
    """Whether the server that this process belongs to is known to be up."""
    folder = environment.get(HEARTBEATS)
    return bool(folder) and Path(folder).with_name(UP).exists()


class Heartbeat(NamedTuple):
    """What was last seen of a process.

    Attributes:
        touched: When its file was touched, in nanoseconds; only compared with itself, so that no clock matters.
        work: Processor time that it had used, in ticks.
        silence: Seconds of silence that count.
    """

    touched: int
    work: int
    silence: float


class Heartbeats:
    """Watches the heartbeats in one folder. Not thread-safe: `gati serve` has one thread.

    Args:
        folder: The folder.
        patience: Seconds of silence after which a process is taken to hang.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE_SECONDS) -> None:
        self._folder = folder
        self._patience = patience
        self._known: dict[int, Heartbeat] = {}
        self._looked = time.monotonic()

    def hung(self) -> list[int]:
        """Processes that hang; each is returned once. Call it often: time in which nobody looked does not count."""
        passed = time.monotonic() - self._looked
        if passed < SECONDS:
            return []
        self._looked += passed
        hung = []
        for path in self._folder.iterdir():
            if not path.name.isdecimal():  # not a process's file
                continue
            pid = int(path.name)
            if self._silence(pid, path, min(passed, 2 * SECONDS)) >= self._patience:  # longer: we were held up, too
                hung.append(pid)
                self._drop(pid, path)
        return hung

    def touched(self, pid: int) -> int | None:
        """When the last heartbeat of a process was, as the file system's clock has it; None if it has none."""
        with suppress(OSError):
            return (self._folder / str(pid)).stat().st_mtime_ns
        return None

    def _silence(self, pid: int, path: Path, passed: float) -> float:
        """Notes what a process did in the seconds that passed; returns its silence so far."""
        touched, work = path.stat().st_mtime_ns, _work(pid)
        if work is None:
            self._drop(pid, path)
            return 0.0
        before, silence = self._known.get(pid), 0.0
        if before is not None and before.touched == touched:
            silence = before.silence + passed * (BUSY if work != before.work or _waits(pid) else 1.0)
        self._known[pid] = Heartbeat(touched, work, silence)
        return silence

    def _drop(self, pid: int, path: Path) -> None:
        self._known.pop(pid, None)
        path.unlink(missing_ok=True)


def _work(pid: int) -> int | None:
    """Processor time that a process has used, in ticks; None if it has ended."""
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
    """The state, and the fields that follow it; the name before them may hold any characters."""
    state, *fields = path.read_text().rpartition(")")[2].split()
    return state, fields
