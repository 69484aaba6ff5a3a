"""Stubs: the processes in which a tritonserver runs Python models, one for each instance.

Triton does not restart a stub that was killed: its model fails every request from then on, while the server still says
that it is ready. A killed stub stays a zombie, since nobody waits for it. One that Triton itself has ended does not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gati.heartbeat import Heartbeats
from gati.proc import arguments, children

NAME = "triton_python_backend_stub"
SHARED_MEMORY = Path("/dev/shm")
ENDING_SECONDS = 12.0
"""How long stubs may take to end: a recorder writes for 10 s at most."""
SILENT_SECONDS = 5.0
"""How long they may be without a heartbeat meanwhile: one that waits for its server and has the GIL never ends."""


class Stubs:
    """The stubs of one server, as seen so far.

    Args:
        server: Its process id.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._models: dict[int, str] = {}
        self._regions: set[str] = set()
        self._zombies: set[int] = set()
        self._expected: set[str] = set()

    def expect(self, model: str) -> None:
        """Notes that a model was loaded: at the next look it has a stub, or that was killed before anybody saw it."""
        self._expected.add(model)

    def killed(self) -> list[str]:
        """Models whose stubs were killed; each stub is reported once.

        A stub that Triton ends is also a zombie for a moment: only one that is a zombie at two looks counts as killed.
        """
        ended, running = self.look()
        zombies = {pid for pid in ended if pid in self._models}
        doubted = {self._models[pid] for pid in zombies}
        killed = [self._models.pop(pid) for pid in sorted(zombies & self._zombies)]
        unseen = sorted(self._expected - running - doubted)
        self._zombies = zombies
        self._expected.clear()
        return list(dict.fromkeys([*killed, *unseen]))

    def look(self) -> tuple[list[int], set[str]]:
        """Looks which stubs there are, and which shared memory is theirs.

        Returns:
            Zombies among the server's children, stubs or not, and the models of the stubs that run.
        """
        ended, running = list[int](), set[str]()
        for pid in children(self._server):
            words = arguments(pid)
            if model := model_of(words):
                self._models[pid] = model
                running.add(model)
                self._regions.add(words[2])
            elif not words:
                ended.append(pid)
        return ended, running

    def end(self, pid: int) -> str | None:
        """Kills a stub that hangs; returns its model, or None if the process is no stub of the server any more."""
        model = self._models.get(pid)
        if model is None or not self._is_ours(pid):
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return model

    def clean(self, heartbeats: Heartbeats) -> None:
        """Ends stubs that a server has left behind, and removes its shared memory. The server must have ended.

        Stubs end by themselves, after they have written what they recorded. One that holds the GIL while it waits for
        its server can't; it is killed.

        Args:
            heartbeats: Heartbeats of the stubs.
        """
        deadline = time.monotonic() + ENDING_SECONDS
        while (left := [pid for pid in self._models if self._is_ours(pid)]) and time.monotonic() < deadline:
            for pid in left:
                if heartbeats.silent(pid, SILENT_SECONDS):
                    self.end(pid)
            time.sleep(0.05)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for region in self._regions:
            (SHARED_MEMORY / region).unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        """Whether a process is still a stub of this server, and not another one that got the same number."""
        words = arguments(pid)
        return model_of(words) is not None and words[2] in self._regions


def model_of(words: Sequence[str]) -> str | None:
    """The model that a stub with this command line runs; None if it is no stub.

    Triton passes the path of the model's own file, <repository>/<model>/<version>/<file>, even if a backend runs it.
    """
    if len(words) < 3 or Path(words[0]).name != NAME:
        return None
    return Path(words[1]).parents[1].name
