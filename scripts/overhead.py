"""What a chain costs when nothing hits: scripts/overhead.py [REPOSITORY], by default the demo's.

Compares the plain backbone (NAME-plain) with the chain's segments and its orchestrator in one process, and with the
chain asked for exact answers over gRPC.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from gati.chain import Chain, find_chains, read_chain
from gati.flight import Request
from gati.inline import InlineEngine
from gati.orchestrator import Orchestrator
from gati.server import HOST, Ports, Server
from gati.session import open_session, run
from gati.settings import NO_STORE, STORE
from gati_client import Client
from gati_client.load import alternate, summary

ROUNDS, REQUESTS, BLOCK = 600, 3000, 300


class Silent:
    """Nobody is told anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def in_process(repository: Path, chain: Chain, feeds: dict[str, np.ndarray]) -> None:
    """Medians of the backbone, the segments, and the orchestrator with them, in turns, batch 1."""
    engine = InlineEngine(repository, chain)
    plain = open_session(repository / f"{chain.model}-plain" / "1" / "model.onnx")
    observer: Any = Silent()
    orchestrator = Orchestrator(chain, engine, lambda: None, observer, 0, observer.later)

    def segments() -> None:
        values = dict(feeds)
        for segment in chain.segments:
            inputs = {name: values[name] for name in segment.inputs}
            values[segment.output.name] = engine.run_segment(segment.index, inputs)

    ways: dict[str, Callable[[], object]] = {
        "backbone": lambda: run(plain, [chain.output.name], feeds),
        "segments": segments,
        "orchestrator, all missing": lambda: orchestrator.serve([Request(feeds, True, lambda _: None)]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    base = np.median(seconds["backbone"])
    for name, taken in seconds.items():
        click.echo(f"in process  {name:<26} {np.median(taken) * 1e3:6.2f} ms  {np.median(taken) / base:.2f}")


def served(repository: Path, chain: Chain, feeds: dict[str, np.ndarray]) -> None:
    """The plain model and the chain, exact, over gRPC."""
    with Server(repository, Ports(0, 0, 0), {STORE: NO_STORE}) as server:
        address = f"{HOST}:{server.ports.grpc}"
        plain, exact = alternate(
            lambda: Client(address, f"{chain.model}-plain"),
            lambda: Client(address, chain.model),
            (feeds for _ in range(REQUESTS)),
            block=BLOCK,
            exact=(False, True),
        )
    for name, seen in (("plain model", plain), ("chain, exact", exact)):
        figures = ", ".join(f"{key[:-3]} {value:.2f} ms" for key, value in summary(seen.latency).items())
        click.echo(f"over gRPC   {name:<26} {figures}")


def main() -> None:
    """Measures and prints."""
    repository = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/model_repository")
    chain = read_chain(repository, find_chains(repository)[0])
    random = np.random.default_rng(0)
    feeds = {t.name: random.random(t.zeros().shape).astype(t.numpy) for t in chain.inputs}
    in_process(repository, chain, feeds)
    served(repository, chain, feeds)


if __name__ == "__main__":
    main()
