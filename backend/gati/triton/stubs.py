"""Stubs: the processes in which a tritonserver runs Python models, one for each instance.

Triton does not restart a stub that was killed: its model fails every request from then on, while the server still says
that it is ready. A killed stub stays a zombie, since nobody waits for it. One that Triton itself has ended does not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gati.system.proc import arguments, children, is_contained, pids
from gati.triton.heartbeat import Heartbeats

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

    def sweep(self) -> None:
        """Removes the shared memory of stubs that are gone: Triton leaves that of those that were killed."""
        commands = [arguments(pid) for pid in children(self._server)]
        running = {words[2] for words in commands if model_of(words)}
        _remove(self._regions - running)
        self._regions &= running

    def end(self, pid: int) -> str | None:
        """Kills a stub that hangs; returns its model, or None if the process is no stub of the server any more."""
        model = self._models.get(pid)
        if model is None or not self._is_ours(pid):
            return None
        _kill(pid)
        return model

    def clean(self, heartbeats: Heartbeats) -> None:
        """Ends stubs that a server has left behind, and removes its shared memory. The server must have ended.

        Stubs end by themselves, after they have written what they recorded. One that holds the GIL while it waits for
        its server can't, nor can one that was just being started: it is killed.

        Args:
            heartbeats: Heartbeats of the stubs.
        """
        started = now = time.monotonic()
        heard: dict[int, tuple[int | None, float]] = {}
        while (left := self._left()) and now < started + ENDING_SECONDS:
            now = time.monotonic()
            for pid in left:
                touched = heartbeats.touched(pid)
                before, since = heard.get(pid, (None, started))
                if touched != before:
                    heard[pid] = touched, now
                elif now > since + SILENT_SECONDS:
                    _kill(pid)
            time.sleep(0.05)
        for pid in left:
            _kill(pid)
        _remove(self._regions)

    def _left(self) -> list[int]:
        """Stubs of the server, which has ended: any that it had, also those that no look has seen."""
        left = {pid: words[2] for pid, server, words in _stubs() if server == self._server}
        self._regions.update(left.values())
        return list(left)

    def _is_ours(self, pid: int) -> bool:
        """Whether a process is a stub of this server, and not another one that got the same number."""
        return server_of(arguments(pid)) == self._server


def end_orphans(repository: Path) -> None:
    """Ends stubs of a repository whose server was killed, and what would have ended them, too; returns at once.

    They get a while to end by themselves.
    """
    orphans = _orphans(repository)
    if not orphans:
        return

    def end() -> None:
        for pid, region in _orphans(repository).items() & orphans.items():
            _kill(pid)
            _remove({region})

    timer = threading.Timer(ENDING_SECONDS, end)
    timer.daemon = True
    timer.start()


def _orphans(repository: Path) -> dict[int, str]:
    """Stubs of a repository whose server is gone, and the shared memory of each."""
    return {
        pid: words[2]
        for pid, server, words in _stubs()
        if Path(words[1]).is_relative_to(repository) and pid not in children(server)
    }


def _stubs() -> Iterator[tuple[int, int, list[str]]]:
    """Stubs of all servers, each with its server's process id and its command line.

    Not those in containers, which see other numbers and paths: theirs may mean a server and a repository here.
    """
    for pid in pids():
        words = arguments(pid)
        server = server_of(words)
        if server is not None and not is_contained(pid):
            yield pid, server, words


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or is another user's
        os.kill(pid, signal.SIGKILL)


def _remove(regions: set[str]) -> None:
    for region in regions:
        with suppress(FileNotFoundError, PermissionError):
            (SHARED_MEMORY / region).unlink()


def model_of(words: Sequence[str]) -> str | None:
    """The model that a stub with this command line runs; None if it is no stub.

    Triton passes the path of the model's own file, <repository>/<model>/<version>/<file>, even if a backend runs it.
    """
    if len(words) < 3 or Path(words[0]).name != NAME:
        return None
    return Path(words[1]).parents[1].name


def server_of(words: Sequence[str]) -> int | None:
    """The process id of the server that started a stub with this command line; None if it is no stub."""
    return int(words[5]) if len(words) > 5 and model_of(words) and words[5].isdecimal() else None
