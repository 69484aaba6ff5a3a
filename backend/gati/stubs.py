"""The processes that a tritonserver runs its Python models in, one an instance.

Triton does not start one again that was killed: its model fails every request from then on, while the server goes on
saying that it is ready. Such a process stays a zombie, since nobody waits for it; one that Triton has ended does not.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

NAME = "triton_python_backend_stub"
SHARED_MEMORY = Path("/dev/shm")


class Stubs:
    """Those of one server, as seen so far.

    Args:
        server: Its process id.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._models: dict[int, str] = {}
        self._regions: set[str] = set()
        self._zombies: set[int] = set()

    def killed(self) -> list[str]:
        """Models whose processes have ended without their server; each process is told once.

        One that Triton ends is a zombie too, for a moment: what counts is what is one at two looks.
        """
        zombies = set()
        for pid in _children(self._server):
            arguments = _arguments(pid)
            if arguments and Path(arguments[0]).name == NAME:
                self._models[pid] = Path(arguments[1]).parents[1].name  # <repository>/<model>/<version>/<file>
                self._regions.add(arguments[2])
            elif not arguments and pid in self._models:
                zombies.add(pid)
        killed = [self._models.pop(pid) for pid in sorted(zombies & self._zombies)]
        self._zombies = zombies
        return list(dict.fromkeys(killed))

    def clean(self) -> None:
        """Removes the shared memory that a killed server has left; only when it has ended."""
        for region in self._regions:
            (SHARED_MEMORY / region).unlink(missing_ok=True)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += [int(child) for child in task.read_text().split()]
    return found


def _arguments(pid: int) -> list[str]:
    """A process's command line; empty for a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
