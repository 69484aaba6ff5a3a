"""How soon a chain is fast again after a drift: scripts/drift.py [REPOSITORY], by default the demo's.

`gati serve` with `gati refresh --watch` beside it. Two digits carry most requests, until two others do. Requests come
at a fixed rate, by turns to the chain and to the plain model beside it, so that what the refresher does to the machine
slows both down. Reported for one block of requests after the other: the mean latency of the chain, that of the plain
model, and their ratio.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from world import World

from gati.options import existing_folder, json_option, write_json
from gati.repository.chain import find_chains, read_chain
from gati_client import Client
from gati_client.workload import hot
from gati_export.demo.digits import pools, views
from gati_export.report.history import turns

DEMO = Path(__file__).parents[1] / "demo" / "model_repository"
BLOCK = 250
"""Requests of a row of the table."""


@dataclass(frozen=True)
class Row:
    """One block of requests: its first, mean latencies, exits at any head, agreement with the plain model, releases."""

    first: int
    chain_ms: float
    plain_ms: float
    hits: float
    agreement: float
    releases: tuple[int, ...]

    @property
    def speedup(self) -> float:
        """Plain ÷ chain."""
        return self.plain_ms / self.chain_ms


def blocks(address: str, model: str, images: Iterator[np.ndarray], rate: float, last: int) -> Iterator[Row]:
    """Asks chain and plain model for the same images, by turns; answers for one block after the other."""
    with Client(address, model) as chain, Client(address, f"{model}-plain") as plain:
        due = time.perf_counter()
        for number, block in enumerate(images):
            taken, exits, agreed, releases = np.zeros((len(block), 2)), [], [], set[int]()
            for i, image in enumerate(block):
                due += 1 / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                started = time.perf_counter()
                answer = chain.infer(image[None])
                between = time.perf_counter()
                truth = plain.infer(image[None])
                taken[i] = between - started, time.perf_counter() - between
                assert answer.exit is not None and answer.release is not None
                exits.append(int(answer.exit[0]) < last)
                agreed.append(answer.output.argmax() == truth.output.argmax())
                releases |= {int(answer.release[0])} - {0}
            due = max(due, time.perf_counter())
            ours, theirs = (1e3 * taken.mean(0)).tolist()
            shares = float(np.mean(exits)), float(np.mean(agreed))
            yield Row(number * BLOCK, ours, theirs, *shares, tuple(sorted(releases)))


@click.command()
@click.argument("repository", type=existing_folder, default=DEMO)
@click.option(
    "--dwell", type=int, default=6000, show_default=True, help="Requests after which other digits are popular."
)
@click.option("--requests", type=int, default=12000, show_default=True)
@click.option("--rate", type=float, default=25, show_default=True, help="Requests a second, to either model.")
@click.option("--fresh", type=int, default=1500, show_default=True, help="As of gati refresh --watch.")
@click.option("--window", type=int, default=3000, show_default=True, help="As of gati refresh --watch.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def main(
    repository: Path, dwell: int, requests: int, rate: float, fresh: int, window: int, seed: int, json_path: Path | None
) -> None:
    """Serve through a drift, with a refresher beside, and see how soon the chain is as fast as before."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "models"
        shutil.copytree(repository, copy)
        chain = read_chain(copy, find_chains(copy)[0])
        pool = pools()[1]
        index = hot(pool.labels, requests, seed=seed, hot=2, share=0.9, dwell=dwell).reshape(-1, BLOCK)
        images = (views(pool, block, seed * 1_000_003 + number) for number, block in enumerate(index))
        table = Table(
            "from", "chain ms", "plain ms", "speed-up", "hits", "agree", "releases", title=f"Drift at {dwell:,}"
        )
        world = World(copy, chain, Path(folder), ("--every", "10", "--fresh", str(fresh), "--window", str(window)))
        rows: list[Row] = []
        try:
            for row in blocks(world.replicas[0].address, chain.model, images, rate, chain.backbone_exit):
                rows.append(row)
                cells = f"{row.chain_ms:.2f}", f"{row.plain_ms:.2f}", f"{row.speedup:.2f}"
                shares = f"{row.hits:.0%}", f"{row.agreement:.1%}"
                table.add_row(f"{row.first:,}", *cells, *shares, ", ".join(map(str, row.releases)))
        finally:
            world.stop()
        decided = turns(copy, chain.model)
    Console().print(table)
    for turn in decided:
        click.echo(f"{turn.at}, {turn.took:.0f} s: {turn.why}")
    write_json(
        json_path,
        {"rows": [asdict(row) | {"speedup": row.speedup} for row in rows], "turns": [vars(t) for t in decided]},
    )


if __name__ == "__main__":
    main()
