"""A tritonserver as a child process: started on a repository, waited for, and stopped."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from gati.errors import PublishError, RepositoryError, UnavailableError
from gati.repository.chain import find_chains
from gati.repository.secret import read_or_create_token
from gati.repository.workspace import workspace
from gati.settings import NO_STORE, REPLICA, STORE
from gati.system.parent import die_with_parent
from gati.system.temporary import TEMPORARY, held_folder, sweep
from gati.triton.heartbeat import HEARTBEATS, PATIENCE_SECONDS, UP, Heartbeats
from gati.triton.installation import Triton, find_triton
from gati.triton.log import STDERR, PortTakenError, check_taken, failure
from gati.triton.model_control import EXIT_SECONDS, NOT_ANSWERED, ModelControl, is_ready
from gati.triton.options import own_options
from gati.triton.ports import HOST, Ports, choose, listens
from gati.triton.quarantine import clear_before_start
from gati.triton.slot import Slot, ending, running
from gati.triton.startup import START_SECONDS, chain_parts, start_seconds, startup_models
from gati.triton.stubs import Stubs, end_orphans

TRIES = 3
"""Attempts to start on ports that were free: another program may take one before Triton listens there."""
BEFORE = ".1"
"""Suffix of the log of the server before."""
IDLE_SECONDS = 1
"""How long a server without models may take to end."""


class Server:
    """A running tritonserver. Use as a context manager, or call `stop`.

    Args:
        repository: The model repository.
        ports: Where to listen.
        environment: Settings of the chains, as `GATI_` variables (gati.settings).
        log: File for Triton's log, or `STDERR`; by default beside the repository, one for each server that runs there.
            What the one before has said is kept beside, in `<log>.1`.
        options: More options for tritonserver.
        host: `HOST`, or `ANYWHERE`: all interfaces.
        patience: Seconds of silence after which a model's process is taken to hang (gati.triton.heartbeat).

    Attributes:
        keeps_nothing: Whether the repository's workspace can't be written, so that neither samples nor a log are kept.

    Raises:
        UnavailableError: If there is no Triton, a port is taken, or it does not come up.
        RepositoryError: If the repository is not one, or a model does not load.
    """

    def __init__(
        self,
        repository: Path,
        ports: Ports | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        options: Sequence[str] = (),
        host: str = HOST,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.repository = repository.resolve()
        self.host = host
        self.refused = clear_before_start(self.repository)
        end_orphans(self.repository)
        self.models = startup_models(self.repository)
        self._in_turn = _in_turn(self.repository, self.models)
        self.keeps_nothing = not _writable(workspace(self.repository))
        self.ports = _choose(ports or Ports(), host, workspace(self.repository))
        try:
            self._token = read_or_create_token(self.repository)
        except (OSError, PublishError):  # it can't be kept: then nobody but this process controls the server
            self._token = secrets.token_urlsafe(32)
        if self.keeps_nothing:
            environment = {STORE: os.environ.get(STORE, NO_STORE)} | dict(environment or {})
        with ExitStack() as undo:
            own = undo.enter_context(held_folder())
            self._slot = Slot(own if self.keeps_nothing else workspace(self.repository))
            undo.callback(self._slot.release)
            self.log = log or self._slot.log
            _put_aside(self.log)
            backends, heartbeats, self._temporary = own / "backends", own / "heartbeats", own / "temporary"
            for folder in (backends, heartbeats, self._temporary):
                folder.mkdir()
            self._heartbeats = Heartbeats(heartbeats, patience)
            triton = find_triton()
            triton.prepare(backends)
            given = {HEARTBEATS: str(heartbeats), TEMPORARY: str(self._temporary)}
            settings = triton.environment(backends) | dict(environment or {}) | given
            self._start(
                lambda: [str(triton.executable), *self._own_options(triton, backends), *options],
                settings,
                ports or Ports(),
            )
            undo.callback(self._end)
            for model in set(find_chains(self.repository)).intersection(self.models):
                self._stubs.expect(model)
            with suppress(OSError):  # a full disk keeps nobody from serving
                heartbeats.with_name(UP).touch()
                self._slot.announce(self.process.pid, asdict(self.ports))
            self._undo = undo.pop_all()

    def _start(self, command: Callable[[], list[str]], settings: Mapping[str, str], asked: Ports) -> None:
        """Starts the program and waits for it. Tries other ports if a port that it may choose is taken meanwhile."""
        for left in reversed(range(TRIES if 0 in asdict(asked).values() else 1)):
            self._launch(command(), settings)
            try:
                self._wait()
                return
            except BaseException as error:
                self._end()
                if not (left and isinstance(error, PortTakenError)):
                    raise
                self.ports = choose(asked, self.host)

    def _launch(self, command: list[str], settings: Mapping[str, str]) -> None:
        """Starts the program."""
        with nullcontext(sys.stderr) if self.log == STDERR else self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env={REPLICA: f"{socket.gethostname()}-{self.ports.grpc}", **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is ours to handle
                preexec_fn=die_with_parent,  # noqa: PLW1509  # calls one function of libc, takes no lock
            )
        self._stubs = Stubs(self.process.pid)
        self._control = ModelControl(self.ports.http, self._token)

    def _own_options(self, triton: Triton, backends: Path) -> list[str]:
        return own_options(
            self.repository, backends, triton.caches, self.models, host=self.host, ports=self.ports, token=self._token
        )

    def _wait(self) -> None:
        seconds = start_seconds(self.repository)
        deadline = time.monotonic() + seconds
        while not (is_ready(self.ports.http) and listens(self.ports.metrics)):  # metrics are what Triton starts last
            if self.process.poll() is not None:
                if self.log != STDERR:
                    check_taken(self.log)
                raise RepositoryError(failure(self.log))
            if time.monotonic() > deadline:
                raise UnavailableError(f"tritonserver was not ready within {seconds} s; its log is {self.log}.")
            self._stubs.look()  # to know their shared memory, should the server not come up
            time.sleep(0.05)

    def end_hung(self) -> list[str]:
        """Kills the processes of models that hang; returns these models, which `revive` then loads again."""
        return [model for pid in self._heartbeats.hung() if (model := self._stubs.end(pid)) is not None]

    def revive(self) -> list[str]:
        """Loads models again whose process was killed; returns their names. Triton itself goes on without them.

        Returns none if the server itself has ended.

        Raises:
            UnavailableError: If one can't be loaded again.
        """
        models = self._stubs.killed()
        if not models:
            return []
        sweep(self._temporary)
        for model in models:
            try:
                self._control.unload(model)
                self._control.load(model, START_SECONDS)
                self._stubs.expect(model)
            except NOT_ANSWERED as error:
                if self._has_ended():
                    return []
                reason = f"The process of {model!r} was killed, and it can't be loaded again"
                raise UnavailableError(f"{reason} ({error}); its log is {self.log}.") from error
        self._stubs.sweep()
        return models

    def _has_ended(self) -> bool:
        """Whether the server itself has ended, perhaps just now."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return self.process.poll() is not None

    def stop(self) -> int:
        """Lets the server answer what it has taken, and ends it; returns its exit code."""
        with self._undo:
            return self._end()

    def _end(self) -> int:
        unloaded = False
        if self.process.poll() is None:
            unloaded = self._unload()
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(IDLE_SECONDS if unloaded else EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._stubs.clean(self._heartbeats)

    def _unload(self) -> bool:
        """Unloads all models, callers before those that they call; returns whether none is left.

        Each model then answers requests that it has taken, and writes what it has recorded. If Triton is told to end
        with models loaded, it waits for idle HTTP connections until its exit timeout is over, and does none of that.
        """
        deadline = time.monotonic() + EXIT_SECONDS
        try:
            return all(self._control.unload_all(batch, deadline) for batch in self._in_turn)
        except NOT_ANSWERED:
            return False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _in_turn(repository: Path, models: Sequence[str]) -> list[set[str]]:
    """Models in the order in which to unload them: other models may call chains, and chains call their parts."""
    called, chains = chain_parts(repository).intersection(models), set(find_chains(repository)).intersection(models)
    return [set(models) - chains - called, chains, called]


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to; makes it if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _choose(asked: Ports, host: str, folder: Path) -> Ports:
    """Chooses ports, and waits for one that a server has which ends, since its `gati serve` was killed.

    Else whoever starts that again gives up, after five times in ten seconds say, before the port is free.
    """
    deadline = time.monotonic() + EXIT_SECONDS
    while True:
        try:
            return choose(asked, host)
        except UnavailableError:
            taken = {port for ports in ending(folder) for port in ports.values()}
            if time.monotonic() > deadline or taken.isdisjoint(asdict(asked).values()):
                raise
        time.sleep(0.05)


def _put_aside(log: Path) -> None:
    """Keeps what the server before said, beside: whoever asks why that ended comes when the next one runs."""
    with suppress(OSError):  # where nothing can be written, it serves all the same
        if log != STDERR and stat.S_ISREG(log.lstat().st_mode) and log.stat().st_size:
            log.replace(log.with_name(f"{log.name}{BEFORE}"))


def running_ports(repository: Path) -> list[Ports]:
    """Ports of the servers that `gati serve` runs on a repository on this host."""
    return [Ports(**ports) for ports in running(repository)]
