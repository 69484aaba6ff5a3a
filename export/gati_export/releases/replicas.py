"""The servers of one repository: found by their names, and asked all at once, so that none holds up the others."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gati.errors import GatiError, UnavailableError
from gati.repository.chain import Chain
from gati.repository.release import Release
from gati.serving.wire import NONE_CLOSED
from gati_export.releases.control import Control, LateError

State = Literal["live", "down", "slow", "refuses"]


@dataclass(frozen=True)
class Outcome:
    """How one replica answered.

    Attributes:
        address: HOST:GRPC_PORT.
        state: "live": it answered as wished. "down": nobody answers there. "slow": it did not answer in time.
            "refuses": it answers, and did not take the release.
        release: What it serves, where it says so.
        reason: What went wrong, in a sentence; empty where nothing did.
    """

    address: str
    state: State
    release: int | None = None
    reason: str = ""


class Replicas:
    """The replicas of a chain.

    Args:
        repository: The repository that they share.
        chain: The chain.
        addresses: HOST:GRPC_PORT of each; there may be none.
    """

    def __init__(self, repository: Path, chain: Chain, addresses: tuple[str, ...]) -> None:
        self._repository = repository
        self._chain = chain
        self._addresses = addresses

    def ask(self) -> list[Outcome]:
        """What each serves."""
        return self._each(lambda control: control.live_release(self._chain))

    def closed(self, release: int) -> int | None:
        """The first exit of a release that audits have closed, at any replica that serves it; None for none."""
        found = []

        def ask(control: Control) -> int:
            live, closed = control.live_state(self._chain)
            if live == release and closed != NONE_CLOSED:
                found.append(closed)
            return live

        self._each(ask)
        return min(found, default=None)

    def take(self, release: Release) -> list[Outcome]:
        """Has each take a release that is on disk; each has its own time for it."""
        return self._each(lambda control: control.take(self._chain, release))

    def _each(self, question: Callable[[Control], int]) -> list[Outcome]:
        def answer(address: str) -> Outcome:
            try:
                with Control(address, self._repository) as control:
                    return Outcome(address, "live", question(control))
            except LateError as error:
                return Outcome(address, "slow", reason=str(error))
            except UnavailableError as error:
                return Outcome(address, "down", reason=str(error))
            except GatiError as error:
                return Outcome(address, "refuses", reason=str(error))

        with ThreadPoolExecutor(max(1, len(self._addresses))) as pool:
            return list(pool.map(answer, self._addresses))


def resolved(servers: str) -> tuple[str, ...]:
    """The replicas that names stand for, each once.

    Args:
        servers: HOST:GRPC_PORT, or several with commas between them. Behind a name may be many addresses.
    """
    found: dict[str, str] = {}
    for server in servers.split(","):
        addresses = _addresses(server)
        for address in addresses:
            found.setdefault(address, server if len(addresses) == 1 else address)
    return tuple(found.values())


def _addresses(server: str) -> list[str]:
    """The addresses behind a name: those of one family, since a server that has both would count twice."""
    host, _, port = server.rpartition(":")
    try:
        infos = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError):  # nobody is there; whoever asks it will say so
        return [server]
    fourth = [f"{info[4][0]}:{port}" for info in infos if info[0] == socket.AF_INET]
    sixth = [f"[{info[4][0]}]:{port}" for info in infos if info[0] == socket.AF_INET6]
    return list(dict.fromkeys(fourth or sixth)) or [server]
