"""Ports that a server listens on."""

from __future__ import annotations

import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from gati.errors import UnavailableError

TAKEN = re.compile(r'"(failed to start \w+ service: .*? already in use)')
"""What Triton's log says then."""


class PortTakenError(UnavailableError):
    """A port that was free has been taken."""


@dataclass(frozen=True)
class Ports:
    """Where a server listens; 0 lets the system choose."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002


def choose(ports: Ports, host: str) -> Ports:
    """Checks that ports are free, and chooses those that are 0."""
    chosen: dict[str, int] = {}
    held = []
    try:
        for name, port in asdict(ports).items():
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.append(listener)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise UnavailableError(
                    f"The {name} port {port} is not free ({error.strerror}); choose another with --{name}-port."
                ) from error
            chosen[name] = listener.getsockname()[1]
    finally:
        for listener in held:
            listener.close()
    return Ports(**chosen)


def check_taken(log: Path) -> None:
    """Looks in the log of a server that has ended for a port that was taken after it had been chosen.

    Raises:
        PortTakenError: If there is one.
    """
    if found := TAKEN.search(log.read_text(encoding="utf-8", errors="replace")):
        raise PortTakenError(f"Another program has taken a port of the server's meanwhile: {found[1]}.")
