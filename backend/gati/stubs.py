"""The processes that a tritonserver runs its Python models in, one an instance.

Triton does not start one again that was killed: its model fails every request from then on, while the server goes on
saying that it is ready. Such a process stays a zombie, since nobody waits for it; one that Triton has ended does not.
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
"""How long they may take to end: a recorder writes for 10 s at most."""
SILENT_SECONDS = 5.0
"""How long they may give no sign of life meanwhile: one that waits for its server with Python's lock never ends."""


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
        self._expected: set[str] = set()

    def expect(self, model: str) -> None:
        """Takes in that a model was loaded: its process is one of them, or has been killed before anybody saw it."""
        self._expected.add(model)

    def killed(self) -> list[str]:
        """Models whose processes have ended without their server; each process is told once.

        One that Triton ends is a zombie too, for a moment: what counts is what is one at two looks.
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
        """Gets to know those that there are, and what they hold.

        Returns:
            Processes that have ended, of any kind, and the models of those that have not.
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
        """Kills a process that hangs; returns its model, or None where the process is none of these (any more)."""
        model = self._models.get(pid)
        if model is None or not self._is_ours(pid):
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return model

    def clean(self, heartbeats: Heartbeats) -> None:
        """Ends what a killed server has left, and removes its shared memory; only when the server has ended.

        Processes end by themselves, and first write what they have recorded; one that waits for its server, with a lock
        that it needs for that, can't.

        Args:
            heartbeats: Of these processes.
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
        """Whether a process is still one of these, and not another that got its number."""
        words = arguments(pid)
        return model_of(words) is not None and words[2] in self._regions


def model_of(words: Sequence[str]) -> str | None:
    """The model that a process of this command line runs an instance of, however that is named; None if it is no stub.

    Triton names the model's own file, <repository>/<model>/<version>/<file>, also where that of a backend is run.
    """
    if len(words) < 3 or Path(words[0]).name != NAME:
        return None
    return Path(words[1]).parents[1].name
