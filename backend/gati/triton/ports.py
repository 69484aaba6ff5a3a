"""Ports that a server listens on."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass

from gati.errors import UnavailableError

HOST, ANYWHERE = "127.0.0.1", "0.0.0.0"
"""Loopback, and all interfaces."""


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


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of this machine."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False
