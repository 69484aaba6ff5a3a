"""Slots: the places of servers in the workspace of a repository, which several may serve, on one host or many.

A slot is a number. A file lock shows that it is taken, and ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import json
import os
import socket
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gati.repository.workspace import workspace
from gati.system.files import replace

RUNNING = "server*.json"


class Slot:
    """The first free slot in a folder, a repository's workspace; held until `release`, or until the process ends."""

    def __init__(self, folder: Path) -> None:
        for number in count(1):
            stem = folder / ("server" if number == 1 else f"server-{number}")
            self._lock = FileLock(stem.with_suffix(".lock"), timeout=0, thread_local=False)
            try:
                self._lock.acquire()
            except Timeout:
                continue
            self._file, self.log = stem.with_suffix(".json"), stem.with_suffix(".log")
            return

    def announce(self, pid: int, ports: dict[str, int]) -> None:
        """Writes down which process serves, for this one, and where it listens.

        Raises:
            OSError: If that is not possible: other commands then do not find this server.
        """
        said = {"host": socket.gethostname(), "command": os.getpid(), "pid": pid, "ports": ports}
        replace(self._file, json.dumps(said) + "\n")

    def release(self) -> None:
        """Gives the slot back; does nothing the second time."""
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            self._lock.release()


def running(repository: Path) -> list[dict[str, int]]:
    """Ports of the servers that run on a repository on this host."""
    return [ports for _, ports in _running(workspace(repository))]


def ending(folder: Path) -> list[dict[str, int]]:
    """Ports of the servers on this host that are there still, though what started them was killed: they end with it."""
    return [ports for command, ports in _running(folder) if command and not _is_there(command)]


def _running(folder: Path) -> list[tuple[int, dict[str, int]]]:
    """Of each server that runs on this host, what started it, 0 if that is not known, and its ports."""
    found: list[tuple[int, dict[str, int]]] = []
    for file in sorted(folder.glob(RUNNING)):
        try:
            fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if fields["host"] == socket.gethostname() and _is_there(fields["pid"]):
                found.append((fields.get("command", 0), fields["ports"]))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return found


def _is_there(pid: int) -> bool:
    """Whether a process of this user runs."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
