"""The demo's story: a backbone is exported, served, asked, refreshed under load, asked again, and rolled back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from gati.promise.draws import NEW
from gati_client import Client
from gati_client.load import Observations, alternate, drive
from gati_client.workload import hot
from gati_export.commands.common import shown_progress
from gati_export.demo import digits, network
from gati_export.demo.commands import gati, serving

MODEL = "digits"
HOT, SHARE = 2, 0.9
"""Of the ten digits, how many are popular, and the share of requests that show them."""
SAMPLES = 1600
BLOCK = 300
"""Requests to one model before it is the other's turn, when they are compared."""
PAUSE_SECONDS = 0.02
"""Between two requests of the load that runs while heads are republished."""


@dataclass(frozen=True)
class Phase:
    """Requests that were sent to the plain model and the chain in turns, and what came back."""

    name: str
    plain: Observations
    chain: Observations


@dataclass
class Timeline:
    """All that the chain was asked, in order.

    Attributes:
        began: `time.monotonic()` of the first request.
        parts: Observations, and the second at which each began.
    """

    began: float = field(default_factory=time.monotonic)
    parts: list[tuple[float, Observations]] = field(default_factory=list)

    @contextmanager
    def part(self) -> Iterator[Callable[[Observations], None]]:
        """Notes when a part begins; give what it is called with to the timeline at its end."""
        start = time.monotonic() - self.began
        yield lambda seen: self.parts.append((start, seen))


@dataclass(frozen=True)
class Told:
    """What happened, for the report."""

    phases: tuple[Phase, Phase]
    timeline: Timeline


class Traffic:
    """Requests: views of digits, of which two kinds are popular; no view comes twice."""

    def __init__(self, pool: digits.Pool, seed: int) -> None:
        # One sequence for the whole story: what is popular stays so, before and after the refresh.
        length = 100_000
        self._index = hot(pool.labels, length, seed=seed, hot=HOT, share=SHARE, dwell=length)
        self._pool = pool
        self._seed = seed
        self._taken = 0

    def take(self, count: int) -> np.ndarray:
        """The next views, float32 [count, 1, 64, 64]."""
        index = self._index[self._taken : self._taken + count]
        self._taken += count
        return digits.views(self._pool, index, self._seed * 1_000_000 + self._taken)

    def forever(self, stop: threading.Event) -> Iterator[np.ndarray]:
        """One view after another, with a pause between, until told to stop."""
        while True:
            for view in self.take(500):
                if stop.wait(PAUSE_SECONDS):
                    return
                yield view[None]


def tell(output: Path, repository: Path, requests: int, seed: int) -> Told:
    """Runs the story.

    Args:
        output: Folder for what is made on the way.
        repository: Where the model repository is to be.
        requests: How many are measured before the refresh, and again after it.
        seed: Of the network, the samples and the traffic.
    """
    ours, theirs = digits.pools(seed)
    click.echo(
        f"A network learns {len(ours.labels)} handwritten digits; requests will show {len(theirs.labels)} others."
    )
    with shown_progress() as progress:
        trained = network.train(ours, progress, seed)
    network.save(trained, output / f"{MODEL}.pt2")
    index = np.random.default_rng(seed).integers(0, len(theirs.labels), SAMPLES)
    np.savez(output / "samples.npz", image=digits.views(theirs, index, seed + 1))
    gati(
        "export", output / f"{MODEL}.pt2", "--samples", output / "samples.npz", "--repository", repository,
        "--name", MODEL, "--mode", "inline", "--plain", "--families", "pooled", "--views", "3000",
        "--json", output / "export.json",
    )  # fmt: skip
    with serving(repository, output) as server:
        return _ask(Traffic(theirs, seed + 2), repository, server["grpc"], requests, output)


def _ask(traffic: Traffic, repository: Path, address: str, requests: int, output: Path) -> Told:
    timeline = Timeline()
    where = ("--repository", repository, "--server", address)
    _warm_up(traffic, address)
    before = _measure("before the refresh", traffic, address, requests, timeline)
    _publish(traffic, address, timeline, "refresh", MODEL, *where, "--always", "--json", output / "refresh.json")
    after = _measure("after the refresh", traffic, address, requests, timeline)
    _publish(traffic, address, timeline, "rollback", MODEL, *where, "--json", output / "rollback.json")
    gati("status", MODEL, "--repository", repository, "--once")
    return Told((before, after), timeline)


def _warm_up(traffic: Traffic, address: str) -> None:
    """Both models answer some requests exactly, so that neither is measured cold; heads play no part in it."""
    for model in (MODEL, f"{MODEL}-plain"):
        with Client(address, model) as client:
            for view in traffic.take(50):
                client.infer(view[None], exact=True)


def _measure(name: str, traffic: Traffic, address: str, requests: int, timeline: Timeline) -> Phase:
    """Asks the plain model and the chain in turns, so that whatever slows the machine down slows both.

    The chain's release is new, and half of its first requests are audited: these come before.
    """
    click.echo(f"\n{NEW} requests to a new release, then {requests} to the plain model and to the chain, {name} ...")
    with timeline.part() as add:
        add(drive(lambda: Client(address, MODEL), (view[None] for view in traffic.take(NEW))))
    with timeline.part() as add:
        plain, chain = alternate(
            lambda: Client(address, f"{MODEL}-plain"),
            lambda: Client(address, MODEL),
            (view[None] for view in traffic.take(requests)),
            block=BLOCK,
        )
        add(chain)
    return Phase(name, plain, chain)


def _publish(traffic: Traffic, address: str, timeline: Timeline, *command: str | Path) -> None:
    """Runs a command that publishes a release while requests keep coming, and for a second after."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool, timeline.part() as add:
        load: Future[Observations] = pool.submit(drive, lambda: Client(address, MODEL), traffic.forever(stop))
        try:
            time.sleep(1)
            gati(*command)
            time.sleep(1)
        finally:
            stop.set()
        add(load.result())
