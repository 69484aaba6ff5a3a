"""What happens to a world (world.py): processes killed and hung, a disk full, damaged releases, rollbacks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from world import PATIENCE_SECONDS, Replica, World

from gati.repository.release import head_folder, head_path, numbers_on_disk
from gati.system.proc import children
from gati.triton.tryout import newest_release

RECOVERY_SECONDS = 20.0
"""After a server or an orchestrator was killed, within which requests to it may fail."""
SMALL = 4 << 30
"""Bytes of a file system that is small enough to be filled."""


@dataclass(frozen=True)
class Strike:
    """What happened to a replica, and from when until when, in seconds of time.monotonic, its requests may fail."""

    kind: str
    start: float
    end: float


class Faults:
    """Does one thing or another to a world; what takes time goes on beside the next.

    Args:
        world: The world.
        disk: A folder on the disk that repository and workspace lie on, which is filled at times where it is small.
        random: Decides what happens, where, and for how long.

    Attributes:
        strikes: What happened to each replica.
        filled: When the disk was filled, in seconds of time.monotonic.
        turns_killed: How many turns of the refresher were at work as they were killed.
    """

    def __init__(self, world: World, disk: Path, random: np.random.Generator) -> None:
        self._world, self._disk, self._random = world, disk, random
        self._ends: list[threading.Timer] = []
        self._commands: list[subprocess.Popen[bytes]] = []
        self.strikes: dict[Replica, list[Strike]] = {replica: [] for replica in world.replicas}
        self.filled: list[float] = []
        self.turns_killed = 0
        self.kinds: list[Callable[[], None]] = [
            self.kill_turn, self.kill_watch, self.kill_orchestrator, self.hang_orchestrator, self.kill_server,
            self.kill_serve, self.hang_server, self.damage, self.roll_back, self.kill_publisher, self.refresh_beside,
        ]  # fmt: skip
        if shutil.disk_usage(disk).total <= SMALL:
            self.kinds.append(self.fill_disk)

    def happen(self) -> str:
        """Does one thing at random, and says what."""
        kind = self.kinds[self._random.integers(len(self.kinds))]
        kind()
        return kind.__name__.replace("_", " ")

    def end(self) -> None:
        """Waits until nothing of it goes on any more."""
        for timer in self._ends:
            timer.join()
        for command in self._commands:
            kill(command.pid)
            command.wait()

    def kill_turn(self) -> None:
        """A turn of the refresher is killed, where one is at work."""
        turns = children(self._world.refresher())
        self.turns_killed += len(turns)
        for pid in turns:
            kill(pid)

    def kill_watch(self) -> None:
        """The refresher is killed, and a turn with it."""
        self.turns_killed += len(children(self._world.refresher()))
        kill(self._world.refresher())

    def kill_orchestrator(self) -> None:
        """The process that Triton runs the chain in is killed."""
        self._strike("orchestrator killed", self._world.orchestrators)

    def hang_orchestrator(self) -> None:
        """It hangs, for good."""
        self._strike("orchestrator hung", self._world.orchestrators, signal.SIGSTOP, PATIENCE_SECONDS)

    def kill_server(self) -> None:
        """Triton is killed."""
        self._strike("Triton killed", self._world.servers)

    def kill_serve(self) -> None:
        """`gati serve` itself is killed."""
        self._strike("`gati serve` killed", lambda replica: [self._world.command(replica)])

    def hang_server(self) -> None:
        """A server answers late, for some seconds."""
        for pid in self._world.servers(self._replica()):
            signal_to(pid, signal.SIGSTOP)
            self._later(self._random.uniform(2, 8), lambda pid=pid: signal_to(pid, signal.SIGCONT))

    def fill_disk(self) -> None:
        """Nothing can be written any more, for some seconds."""
        ballast = self._disk / "ballast"
        self.filled.append(time.monotonic())
        with suppress(OSError), ballast.open("wb", buffering=0) as file:  # no space is left: so it should be
            while file.write(bytes(1 << 20)):
                pass
        self._later(self._random.uniform(5, 15), lambda: ballast.unlink(missing_ok=True))

    def damage(self) -> None:
        """A release that is damaged, foreign or hostile lies in the repository, under the next number."""
        repository, chain = self._world.repository, self._world.chain
        number = max(numbers_on_disk(repository, chain), default=0) + 1
        spoil = (half, truncated, foreign, hostile)[self._random.integers(4)]
        release = newest_release(repository, chain)
        if release is None:
            return
        with suppress(OSError):  # a publisher was faster, or there is no space left
            for head in release.heads:
                folder = head_folder(repository, chain, head.index, number)
                shutil.copytree(head_folder(repository, chain, head.index, release.number), folder)
            index = release.heads[0].index
            manifest = json.loads(release.to_json()) | {"number": number}
            file = head_path(repository, chain, index, number)
            file.write_bytes(spoil(file.read_bytes(), chain.segment_path(repository, 0)))
            for entry in manifest["heads"]:
                if entry["index"] == index and spoil is not truncated:
                    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            text = json.dumps(manifest)
            for head in release.heads:
                folder = head_folder(repository, chain, head.index, number)
                (folder / "release.json").write_text(text[: len(text) // 2] if spoil is half else text)

    def roll_back(self) -> None:
        """Somebody goes back to the release before; where there is none, or a server is away, that is said."""
        self._world.run("rollback", self._world.chain.model, *self._world.where).wait()

    def kill_publisher(self) -> None:
        """The same, and is killed while at work."""
        command = self._world.run("rollback", self._world.chain.model, *self._world.where)
        with suppress(subprocess.TimeoutExpired):
            command.wait(self._random.uniform(0.5, 3))
        command.kill()
        command.wait()

    def refresh_beside(self) -> None:
        """A second refresher is started beside the first."""
        self._commands.append(self._world.refresh_once())

    def _replica(self) -> Replica:
        return self._world.replicas[self._random.integers(len(self._world.replicas))]

    def _strike(
        self,
        kind: str,
        found: Callable[[Replica], list[int]],
        number: signal.Signals = signal.SIGKILL,
        longer: float = 0.0,
    ) -> None:
        """Sends a signal to processes of a replica, whose requests may fail until it has recovered."""
        replica, now = self._replica(), time.monotonic()
        self.strikes[replica].append(Strike(kind, now, now + longer + RECOVERY_SECONDS))
        for pid in found(replica):
            signal_to(pid, number)

    def _later(self, seconds: float, end: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, end)
        timer.start()
        self._ends.append(timer)


def kill(pid: int) -> None:
    """Kills a process, if it is still there."""
    signal_to(pid, signal.SIGKILL)


def signal_to(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def half(head: bytes, _segment: Path) -> bytes:
    """The head as it is: what is cut off is the manifest."""
    return head


def truncated(head: bytes, _segment: Path) -> bytes:
    """What a copy leaves that was cut off."""
    return head[: len(head) // 2]


def foreign(_head: bytes, segment: Path) -> bytes:
    """An ONNX file that is no head."""
    return segment.read_bytes()


def hostile(head: bytes, _segment: Path) -> bytes:
    """A head that would read a file of this machine."""
    model = onnx.load_model_from_string(head)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../etc/passwd")
    return model.SerializeToString()
