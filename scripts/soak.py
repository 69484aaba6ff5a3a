"""Everything together for a while: scripts/soak.py [REPOSITORY], by default the clone's own chain of digits.

`gati serve`, `gati refresh --watch` beside it, clients whose popular digits drift, and faults at random: turns, watch,
orchestrator and server killed, damaged releases, rollbacks; what happens is told as it does. At the end every answer
that was given is compared with the backbone's, which takes about as long again. Exits with 1 if a request failed that
no fault excuses, if more answers differ than the promise allows, or if what serves is not the newest release on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from gati.chain import Chain, find_chains, read_chain
from gati.errors import GatiError
from gati.model_control import is_ready
from gati.options import existing_folder, json_option, write_json
from gati.ports import HOST
from gati.proc import arguments, children
from gati.release import head_folder, numbers_on_disk, valid_releases
from gati.settings import workspace
from gati.stubs import model_of
from gati_client import Client
from gati_client.errors import ClientError
from gati_client.workload import hot
from gati_export.activations import open_segments, run_batches
from gati_export.control import Control
from gati_export.day import Day, read_day
from gati_export.demo.digits import Pool, pools, views
from gati_export.history import Turn, turns

CLONE = Path(__file__).parents[1] / "model_repository"
GATI = [sys.executable, "-c", "from gati.cli import main; main()"]
CLIENTS = 2
BLOCK = 100
"""Requests that are drawn at a time."""
DWELL = 3000
"""Requests after which other digits are popular."""
EXCUSE_SECONDS = 20.0
"""After a server or an orchestrator was killed, within which requests may fail."""
SURE = 0.999
WATCH = ("--every", "20", "--fresh", "1000", "--window", "6000")
"""How the refresher watches."""


@dataclass
class Asked:
    """What was asked and answered: the request's number, when, the class it was told (-1: it failed), its release."""

    rows: list[tuple[int, float, int, int]] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Traffic:
    """Views of digits, two of which are popular for a while, then two others; the same seed, the same views."""

    def __init__(self, pool: Pool, length: int, seed: int) -> None:
        self._pool, self._seed = pool, seed
        self._index = hot(pool.labels, length, seed=seed, hot=2, share=0.9, dwell=DWELL)
        self._lock, self._next = threading.Lock(), 0

    def block(self, number: int) -> np.ndarray:
        """The requests of a block, float32 [BLOCK, 1, 64, 64]."""
        index = self._index[number * BLOCK : (number + 1) * BLOCK]
        return views(self._pool, index, self._seed * 1_000_003 + number)

    def take(self) -> Iterator[tuple[int, np.ndarray]]:
        """One request after another with its number, shared by all clients."""
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            for i, image in enumerate(self.block(number)):
                yield number * BLOCK + i, image[None]


class World:
    """Server and refresher, kept running by a supervisor as production has one, and what can happen to them."""

    def __init__(self, repository: Path, chain: Chain, logs: Path, watch: Sequence[str] = WATCH) -> None:
        self.repository, self.chain = repository, chain
        self._watch = watch
        self._logs = logs
        self._ports = [free_port() for _ in range(3)]
        self.address = f"{HOST}:{self._ports[0]}"
        self.excused: list[float] = []
        self._ending = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start("serve")
        self._start("refresh")
        self._supervisor = threading.Thread(target=self._supervise)
        self._supervisor.start()

    def _command(self, name: str) -> list[str]:
        if name == "serve":
            ports = zip(("grpc", "http", "metrics"), self._ports, strict=True)
            options = [text for kind, port in ports for text in (f"--{kind}-port", str(port))]
            return ["serve", str(self.repository), *options]
        where = ["--repository", str(self.repository), "--server", self.address]
        return ["refresh", self.chain.model, *where, "--watch", *self._watch]

    def _start(self, name: str) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen([*GATI, *self._command(name)], stdout=log, stderr=log)
        while name == "serve" and not is_ready(self._ports[1]):
            time.sleep(0.1)

    def _supervise(self) -> None:
        while not self._ending:
            for name, process in list(self._processes.items()):
                if process.poll() is not None and not self._ending:
                    self._start(name)
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends both, in order."""
        self._ending = True
        self._supervisor.join()
        for name in ("refresh", "serve"):
            self._processes[name].terminate()
            self._processes[name].wait()

    def live(self) -> int:
        """The release that the server serves."""
        with Control(self.address, self.repository) as control:
            return control.live_release(self.chain)

    def kill_turn(self) -> None:
        """A turn of the refresher is killed, where one is at work."""
        for pid in children(self._processes["refresh"].pid):
            kill(pid)

    def kill_watch(self) -> None:
        """The refresher is killed, and a turn with it."""
        kill(self._processes["refresh"].pid)

    def kill_orchestrator(self) -> None:
        """The process that Triton runs the chain in is killed."""
        for server in children(self._processes["serve"].pid):
            for pid in children(server):
                if model_of(arguments(pid)) == self.chain.model:
                    self.excused.append(time.monotonic())
                    kill(pid)

    def kill_server(self) -> None:
        """Triton is killed."""
        for server in children(self._processes["serve"].pid):
            self.excused.append(time.monotonic())
            kill(server)

    def place_damage(self) -> None:
        """Half a release lies in the repository, under the next number."""
        number = max(numbers_on_disk(self.repository, self.chain), default=0) + 1
        folder = head_folder(self.repository, self.chain, self.chain.heads[0], number)
        with suppress(FileExistsError):  # a refresher was faster
            folder.mkdir()
            (folder / "release.json").write_text('{"format": 2, "model":')

    def roll_back(self) -> None:
        """Somebody goes back to the release before; where there is none, or the server is away, that is said."""
        where = ["--repository", str(self.repository), "--server", self.address]
        subprocess.run([*GATI, "rollback", self.chain.model, *where], capture_output=True, check=False)


def say(words: str) -> None:
    """Tells whoever watches."""
    click.echo(words, err=True)


def kill(pid: int) -> None:
    """Kills a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def ask(world: World, requests: Iterator[tuple[int, np.ndarray]], asked: Asked, done: threading.Event) -> None:
    """Asks one request after another until told to end; after a failure, a moment later."""
    with Client(world.address, world.chain.model) as client:
        for number, image in requests:
            if done.is_set():
                return
            started = time.monotonic()
            try:
                answer = client.infer(image)
            except ClientError as error:
                asked.errors.append((time.monotonic(), str(error)))
                done.wait(0.2)
                continue
            asked.seconds.append(time.monotonic() - started)
            release = 0 if answer.release is None else int(answer.release[0])
            asked.rows.append((number, started, int(answer.output.argmax()), release))


def disturb(world: World, minutes: float, random: np.random.Generator, asked: Asked) -> Counter[str]:
    """Does one thing or another to the world, every 5 to 15 seconds, and says so; gives what was done how often."""
    faults: list[Callable[[], None]] = [
        world.kill_turn, world.kill_watch, world.kill_orchestrator, world.kill_server, world.place_damage,
        world.roll_back,
    ]  # fmt: skip
    seen: Counter[str] = Counter()
    started = time.monotonic()
    end = started + 60 * minutes
    while time.monotonic() < end - 30:  # the last half minute is quiet, for all to settle
        time.sleep(random.uniform(5, 15))
        fault = faults[random.integers(len(faults))]
        name = fault.__name__.replace("_", " ")
        say(f"{time.monotonic() - started:5.0f} s: {len(asked.rows):,} answered, {len(asked.errors):,} failed; {name}")
        fault()
        seen[name] += 1
    time.sleep(max(0, end - time.monotonic()))
    return seen


def wrong(world: World, traffic: Traffic, rows: list[tuple[int, float, int, int]]) -> np.ndarray:
    """Where an answer was not the backbone's, bool [rows]."""
    chain = world.chain
    sessions = open_segments(chain.segment_paths(world.repository))
    told = np.array([row[2] for row in rows])
    numbers = np.array([row[0] for row in rows])
    truth = np.empty(len(rows), int)
    for block in np.unique(numbers // BLOCK):
        of = numbers // BLOCK == block
        samples = {chain.inputs[0].name: traffic.block(int(block))}
        batches = run_batches(chain, sessions, samples, numbers[of] - block * BLOCK, lambda *_: None)
        truth[of] = np.concatenate([hidden[-1].argmax(1) for _, hidden in batches])
    return told != truth


def recount(day: Day, decided: Sequence[Turn], evidence: Path) -> None:
    """Says what became of releases and exits, what refreshes decided, and what audits found of which heads."""
    for happening in reversed(day.happenings):
        say(f"{happening.at:%H:%M:%S} {happening.words}")
    for turn in decided:
        say(f"{turn.at[11:19]} Turn of {turn.took:.0f} s: {turn.why}")
    for file in evidence.glob("*.json"):
        for heads, past in json.loads(file.read_text())["heads"].items():
            _, drawn, _, *differed = np.sum(past["blocks"], axis=0)
            say(f"Heads of origin {heads.split(':')[0]}: {drawn} requests drawn, {sum(differed)} differ.")


@click.command()
@click.argument("repository", type=existing_folder, default=CLONE)
@click.option("--minutes", type=click.FloatRange(1), default=10, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def main(repository: Path, minutes: float, seed: int, json_path: Path | None) -> None:
    """Serve, refresh, drift and break things for a while, and see what was promised kept."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "models"
        shutil.copytree(repository, copy)
        chain = read_chain(copy, find_chains(copy)[0])
        traffic, asked, done = Traffic(pools()[1], int(minutes * 60 * 500), seed), Asked(), threading.Event()
        world = World(copy, chain, Path(folder))
        requests = traffic.take
        clients = [threading.Thread(target=ask, args=(world, requests(), asked, done)) for _ in range(CLIENTS)]
        try:
            for client in clients:
                client.start()
            faults = disturb(world, minutes, np.random.default_rng(seed), asked)
            newest = next(valid_releases(copy, chain)).number
            live = world.live()
        except GatiError as error:
            raise click.ClickException(str(error)) from error
        finally:
            done.set()
            for client in clients:
                client.join()
            world.stop()
        say(f"Comparing {len(asked.rows):,} answers with the backbone's.")
        differs = wrong(world, traffic, asked.rows)
        decided = turns(copy, chain.model)
        recount(read_day(copy, chain.model), decided, workspace(copy) / "breaker" / chain.model)
        logs = {name: (Path(folder) / f"{name}.log").read_text(errors="replace") for name in ("serve", "refresh")}
    unexcused = [e for at, e in asked.errors if not any(0 <= at - t <= EXCUSE_SECONDS for t in world.excused)]
    allowed = int(binom.ppf(SURE, len(differs), chain.epsilon))
    published = [turn.release for turn in decided if turn.release is not None]
    answered = np.array([release for _, _, _, release in asked.rows])
    releases = {int(release): answered == release for release in np.unique(answered[answered > 0])}
    verdicts = {
        "requests answered": (len(asked.rows), True),
        "failed while a process was killed": (len(asked.errors) - len(unexcused), True),
        "failed with no excuse": (len(unexcused), not unexcused),
        f"answers that differ (allowed: {allowed})": (int(differs.sum()), differs.sum() <= allowed),
        "turns that were decided, published": (f"{len(decided)}, {len(published)}", True),
        "releases that answered": (len(releases), True),
        **{
            f"answers of release {release}": (f"{of.sum():,}, {differs[of].mean():.2%} differ", True)
            for release, of in releases.items()
        },
        "newest release on disk, live": (f"{newest}, {live}", newest == live),
        "tracebacks in logs": (sum(log.count("Traceback") for log in logs.values()), True),
        "mean, p99 ms": (f"{1e3 * np.mean(asked.seconds):.2f}, {1e3 * np.quantile(asked.seconds, 0.99):.1f}", True),
    }
    table = Table("", "", "", title=f"{minutes:g} minutes; " + ", ".join(f"{n} × {f}" for f, n in faults.items()))
    for name, (value, kept) in verdicts.items():
        table.add_row(name, str(value), "" if kept else "BROKEN")
    Console().print(table)
    for error in sorted(set(unexcused)):
        click.echo(f"No excuse: {error}")
    result = {name: {"value": value, "kept": bool(kept)} for name, (value, kept) in verdicts.items()}
    write_json(json_path, result | {"faults": dict(faults), "turns": [vars(turn) for turn in decided]})
    sys.exit(not all(kept for _, kept in verdicts.values()))


if __name__ == "__main__":
    main()
