"""Servers on one repository and a refresher beside them, kept running by a supervisor as production has one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gati.repository.chain import Chain
from gati.system.proc import arguments, children
from gati.system.temporary import TEMPORARY
from gati.triton.model_control import is_ready
from gati.triton.ports import HOST
from gati.triton.stubs import model_of
from gati_export.releases.control import Control

GATI = [sys.executable, "-c", "from gati.cli import main; main()"]
REFRESHER = "refresh"
PATIENCE_SECONDS = 5
"""How long a server waits for a sign of life of its models' processes."""


@dataclass(frozen=True)
class Replica:
    """One server, and the ports that it has for good: for gRPC, HTTP and metrics."""

    name: str
    ports: tuple[int, int, int]

    @property
    def address(self) -> str:
        """HOST:GRPC_PORT."""
        return f"{HOST}:{self.ports[0]}"

    @property
    def is_ready(self) -> bool:
        """Whether it says that it is ready."""
        return is_ready(self.ports[1])


class World:
    """What runs, and is started again when it ends.

    Args:
        repository: The repository that is served.
        chain: Its chain.
        logs: Folder for what servers and refresher say.
        watch: When the refresher makes a turn, as options.
        turn: What a turn learns from, as options.
        replicas: How many servers there are.

    Attributes:
        temporary: Where all that runs makes its temporary folders.
    """

    def __init__(
        self,
        repository: Path,
        chain: Chain,
        logs: Path,
        watch: Sequence[str],
        turn: Sequence[str] = (),
        *,
        replicas: int = 1,
    ) -> None:
        self.repository, self.chain = repository, chain
        self.replicas = [Replica(f"serve-{i}", (free_port(), free_port(), free_port())) for i in range(replicas)]
        self._watch, self._turn, self._logs = watch, turn, logs
        self._ending = False
        self.temporary = logs / "temporary"
        self.temporary.mkdir()
        self._environment = os.environ | {TEMPORARY: str(self.temporary)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: Counter[str] = Counter()
        for replica in self.replicas:
            self._start(replica.name, self._serving(replica))
        while not all(replica.is_ready for replica in self.replicas):
            time.sleep(0.1)
        self._supervise()
        self._supervisor = threading.Thread(target=self._go_on)
        self._supervisor.start()

    @property
    def where(self) -> list[str]:
        """The repository and all servers, as options of a command."""
        return ["--repository", str(self.repository), "--server", ",".join(r.address for r in self.replicas)]

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts a command beside."""
        with (self._logs / "beside.log").open("ab") as log:
            return subprocess.Popen([*GATI, *command], stdout=log, stderr=log, env=self._environment)

    def refresh_once(self) -> subprocess.Popen[bytes]:
        """Starts a turn beside the refresher's, which learns from as much."""
        return self.run("refresh", self.chain.model, *self.where, *self._turn)

    def live(self) -> list[int]:
        """The release that each server serves.

        Raises:
            UnavailableError: If one of them does not answer.
        """
        found = []
        for replica in self.replicas:
            with Control(replica.address, self.repository) as control:
                found.append(control.live_release(self.chain))
        return found

    def refresher(self) -> int:
        """The refresher's process; its turns are below it."""
        return self._processes[REFRESHER].pid

    def command(self, replica: Replica) -> int:
        """The process of `gati serve` for a replica."""
        return self._processes[replica.name].pid

    def servers(self, replica: Replica) -> list[int]:
        """The process of its tritonserver, where there is one."""
        return children(self.command(replica))

    def orchestrators(self, replica: Replica) -> list[int]:
        """The processes that its tritonserver runs the chain in."""
        found = [pid for server in self.servers(replica) for pid in children(server)]
        return [pid for pid in found if model_of(arguments(pid)) == self.chain.model]

    def processes(self) -> dict[str, list[int]]:
        """All that runs, by what it is."""
        found: dict[str, list[int]] = {"watch": [self.refresher()], "turn": children(self.refresher())}
        for replica in self.replicas:
            found.setdefault("`gati serve`", []).append(self.command(replica))
            found.setdefault("Triton", []).extend(self.servers(replica))
            found.setdefault("orchestrator", []).extend(self.orchestrators(replica))
        return found

    def regions(self) -> set[str]:
        """Names in /dev/shm that orchestrators share with their Tritons."""
        pids = [pid for replica in self.replicas for pid in self.orchestrators(replica)]
        return {words[2] for pid in pids if len(words := arguments(pid)) > 2}

    def said(self) -> str:
        """What servers and refresher have said."""
        return "".join(file.read_text(errors="replace") for file in sorted(self._logs.glob("*.log")))

    def stop(self) -> None:
        """Ends all, the refresher first."""
        self._ending = True
        self._supervisor.join()
        for name in (REFRESHER, *(replica.name for replica in self.replicas)):
            self._processes[name].terminate()
            self._processes[name].wait()

    def _serving(self, replica: Replica) -> list[str]:
        """The command that serves, each time with a log of its own: a server keeps only that of the one before."""
        ports = zip(("grpc", "http", "metrics"), replica.ports, strict=True)
        options = [text for kind, port in ports for text in (f"--{kind}-port", str(port))]
        self._started[replica.name] += 1
        log = self._logs / f"{replica.name}-triton-{self._started[replica.name]}.log"
        return ["serve", str(self.repository), *options, "--patience", str(PATIENCE_SECONDS), "--log", str(log)]

    def _go_on(self) -> None:
        while not self._ending:
            self._supervise()
            time.sleep(0.2)

    def _supervise(self) -> None:
        """Starts what has ended, or was never started."""
        for replica in self.replicas:
            if self._has_ended(replica.name):
                self._start(replica.name, self._serving(replica))
        if self._has_ended(REFRESHER):
            self._start(REFRESHER, self._refreshing())

    def _has_ended(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is None or process.poll() is not None

    def _refreshing(self) -> list[str]:
        return ["refresh", self.chain.model, *self.where, "--watch", *self._watch, *self._turn]

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen([*GATI, *command], stdout=log, stderr=log, env=self._environment)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]
