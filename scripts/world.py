"""Servers on one repository and a refresher beside them, kept running by a supervisor as production has one."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gati.chain import Chain
from gati.model_control import is_ready
from gati.ports import HOST
from gati.proc import arguments, children
from gati.stubs import model_of
from gati_export.control import Control

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
        watch: How the refresher watches, as options.
        replicas: How many servers there are.
    """

    def __init__(self, repository: Path, chain: Chain, logs: Path, watch: Sequence[str], *, replicas: int = 1) -> None:
        self.repository, self.chain = repository, chain
        self.replicas = [Replica(f"serve-{i}", (free_port(), free_port(), free_port())) for i in range(replicas)]
        self._watch, self._logs = watch, logs
        self._ending = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
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
        """Starts a command beside, of which nobody hears."""
        return subprocess.Popen([*GATI, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

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
        ports = zip(("grpc", "http", "metrics"), replica.ports, strict=True)
        options = [text for kind, port in ports for text in (f"--{kind}-port", str(port))]
        log = self._logs / f"{replica.name}-triton.log"
        return ["serve", str(self.repository), *options, "--patience", str(PATIENCE_SECONDS), "--log", str(log)]

    def _go_on(self) -> None:
        while not self._ending:
            self._supervise()
            time.sleep(0.2)

    def _supervise(self) -> None:
        """Starts what has ended, or was never started."""
        wanted = {replica.name: self._serving(replica) for replica in self.replicas}
        wanted[REFRESHER] = ["refresh", self.chain.model, *self.where, "--watch", *self._watch]
        for name, command in wanted.items():
            process = self._processes.get(name)
            if process is None or process.poll() is not None:
                self._start(name, command)

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen([*GATI, *command], stdout=log, stderr=log)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]
