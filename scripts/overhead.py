"""What a chain costs when nothing hits: scripts/overhead.py [REPOSITORY], by default the demo's.

Compares the plain backbone (NAME-plain) with the chain's segments and its orchestrator in one process: without heads,
in the stages of the live release, and with all heads of that missing, stage by stage and as one graph. And with the
chain asked for exact answers over gRPC.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from gati.inference.inline import InlineEngine
from gati.inference.session import open_session, run
from gati.repository.chain import Chain, find_chains, read_chain
from gati.repository.release import Window, head_path
from gati.serving.flight import Request
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Orchestrator
from gati.serving.watch import ReleaseWatch
from gati.settings import NO_STORE, STORE
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_client import Client
from gati_client.load import alternate, summary
from gati_export.certificates.certificate import uncertified
from gati_export.learning.headfile import CLOSED, with_threshold
from gati_export.releases.publish import Draft, publish

ROUNDS, REQUESTS, BLOCK = 600, 3000, 300


class Silent:
    """Nobody is told anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def in_process(repository: Path, chain: Chain, feeds: dict[str, np.ndarray]) -> None:
    """Medians of the backbone, its segments, and the orchestrator without a release and with one, in turns, batch 1."""
    engine = InlineEngine(repository, chain)
    plain = open_session(repository / f"{chain.model}-plain" / "1" / "model.onnx")
    silent: Any = Silent()
    apart = engine.load_stages(chain.heads)
    bare, missing = (ReleaseWatch(repository, chain, engine, silent.refused, silent.went_live) for _ in range(2))
    missing.look()
    staged = missing.live
    missing.look()
    whole = missing.live
    assert staged.joined is None and whole.joined is not None

    def segments() -> None:
        values: dict[str, Any] = dict(feeds)
        for stage, segment in zip(apart, chain.segments, strict=True):
            values[segment.output.name] = stage.run({name: values[name] for name in stage.inputs})

    def orchestrated(live: LiveRelease, *, exact: bool) -> Callable[[], object]:
        orchestrator = Orchestrator(chain, lambda: live, silent, silent.later)
        return lambda: orchestrator.serve([Request(feeds, exact, lambda *_: None)])

    ways: dict[str, Callable[[], object]] = {
        "backbone": lambda: run(plain, [chain.output.name], feeds),
        "all segments apart": segments,
        "orchestrator, no release": orchestrated(bare.live, exact=True),
        "the live release, exact, by stages": orchestrated(staged, exact=True),
        "the live release, exact, whole": orchestrated(whole, exact=True),
        "its heads missing, by stages": orchestrated(staged, exact=False),
        "its heads missing, one graph": orchestrated(whole, exact=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    base = np.median(seconds["backbone"])
    for name, taken in seconds.items():
        click.echo(f"in process  {name:<34} {np.median(taken) * 1e3:6.2f} ms  {np.median(taken) / base:.2f}")


def with_heads_that_miss(repository: Path, chain: Chain, to: Path) -> None:
    """Copies a chain, with a release of the live heads that always miss."""
    watch = ReleaseWatch(repository, chain, InlineEngine(repository, chain), lambda *_: None, lambda _: None)
    watch.look()
    heads = {index: head_path(repository, chain, index, watch.live.number).read_bytes() for index in watch.live.state}
    for folder in repository.glob(f"{chain.model}*"):
        shutil.copytree(folder, to / folder.name)
    none = uncertified(chain.epsilon, chain.delta)
    closed = {index: with_threshold(head, CLOSED) for index, head in heads.items()}
    publish(to, chain, Draft(closed, none, Window("none", 0), "benchmark"))


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
        click.echo(f"over gRPC   {name:<34} {figures}")


def main() -> None:
    """Measures and prints."""
    repository = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/model_repository")
    chain = read_chain(repository, find_chains(repository)[0])
    random = np.random.default_rng(0)
    feeds = {t.name: random.random(t.zeros().shape).astype(t.numpy) for t in chain.inputs}
    with tempfile.TemporaryDirectory() as work:
        with_heads_that_miss(repository, chain, Path(work, "models"))
        in_process(Path(work, "models"), chain, feeds)
    served(repository, chain, feeds)


if __name__ == "__main__":
    main()
