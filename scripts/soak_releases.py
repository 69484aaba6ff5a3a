"""Hundreds of releases in a row under load: scripts/soak_releases.py [REPOSITORY], by default the clone's own.

Starts a server on a copy and publishes its releases again and again, one after the other, while clients ask it. Says
how many requests failed, what memory the server's processes held after the first ten releases and at the end, how long
requests took in the first and in the last tenth, and what was left in /dev/shm. Exits with 1 where a target is missed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from gati.options import existing_folder, json_option, write_json
from gati.repository.chain import Chain, find_chains, read_chain
from gati.repository.release import valid_releases
from gati.settings import NO_STORE, STORE
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_client import Client
from gati_client.load import Observations, drive, summary
from gati_export.bench.processes import resident_mib, shared_memory
from gati_export.demo.digits import pools, views
from gati_export.releases.publish import earlier
from gati_export.releases.rollout import publish_to

CLONE = Path(__file__).parents[1] / "model_repository"
FIRST = 10
"""Releases after which memory is first read: by then as many lie on disk as ever will."""
GROWTH = 1.1
"""What memory, and the median request, may be at the end, as a share of what it was."""
IMAGES = 2000


@dataclass(frozen=True)
class Target:
    """A figure before and after, and whether it is as it should be."""

    name: str
    before: float
    after: float
    met: bool | None = None


def soak(repository: Path, chain: Chain, releases: int, clients: int, settings: dict[str, str]) -> list[Target]:
    """Serves, publishes and asks; the repository is changed."""
    images, done = requests(), threading.Event()
    with Server(repository, Ports(0, 0, 0), settings) as server:
        pid, address = server.process.pid, f"{HOST}:{server.ports.grpc}"

        def load() -> Observations:
            endless = (image[None] for image in cycle(images))
            return drive(lambda: Client(address, chain.model), until(done, endless), clients)

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(load)
            try:
                resident = [resident_mib(pid) for _ in published(repository, chain, address, releases)]
            finally:
                done.set()
            seen = asked.result()
        shared = shared_memory(pid)
    left = sum(file.exists() for file in shared)
    tenth = len(seen) // 10
    first, last = summary(seen.latency[:tenth]), summary(seen.latency[-tenth:])
    return [
        Target("requests; failed", len(seen), seen.errors, seen.errors == 0),
        Target("resident MiB", resident[FIRST - 1], resident[-1], resident[-1] <= GROWTH * resident[FIRST - 1]),
        Target("p50 ms", first["p50_ms"], last["p50_ms"], last["p50_ms"] <= GROWTH * first["p50_ms"]),
        Target("p99 ms", first["p99_ms"], last["p99_ms"]),
        Target("files in /dev/shm; left", len(shared), left, left == 0),
    ]


def published(repository: Path, chain: Chain, address: str, releases: int) -> Iterator[None]:
    """Publishes so many releases, the heads of the first ones in turns; yields after each is live."""
    drafts = [earlier(repository, chain, release.number) for release in valid_releases(repository, chain)]
    for draft in islice(cycle(drafts), releases):
        publish_to(repository, chain, draft, address)
        yield


def requests() -> np.ndarray:
    """Digits, as the clone's chain takes them."""
    _, theirs = pools()
    return views(theirs, np.random.default_rng(0).integers(0, len(theirs.labels), IMAGES), seed=0)


def until(done: threading.Event, values: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The values, until told."""
    for value in values:
        if done.is_set():
            return
        yield value


@click.command()
@click.argument("repository", type=existing_folder, default=CLONE)
@click.option("--releases", type=click.IntRange(FIRST), default=300, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=4, show_default=True)
@click.option("--no-record", is_flag=True, help="Keep no samples: what waits to be written comes and goes, in memory.")
@json_option
def main(repository: Path, releases: int, clients: int, no_record: bool, json_path: Path | None) -> None:
    """Publish release after release under load, and see that nothing fails, grows or slows down."""
    with tempfile.TemporaryDirectory() as folder:
        copy, settings = Path(folder) / "models", {STORE: NO_STORE} if no_record else {}
        shutil.copytree(repository, copy)
        targets = soak(copy, read_chain(copy, find_chains(copy)[0]), releases, clients, settings)
    table = Table("", "before", "after", "", title=f"{releases} releases, {clients} clients")
    for target in targets:
        verdict = {True: "met", False: "MISSED", None: ""}[target.met]
        table.add_row(target.name, f"{target.before:,.2f}", f"{target.after:,.2f}", verdict)
    Console().print(table)
    write_json(json_path, [vars(target) for target in targets])
    sys.exit(any(target.met is False for target in targets))


if __name__ == "__main__":
    main()
