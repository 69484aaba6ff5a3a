"""A chain beside its plain model, on one server, in short turns: scripts/beside.py REPOSITORY MODEL SAMPLES.

One client asks both the same requests over gRPC, one at a time. The shorter the turns, the less it matters that a
shared machine is faster now and slower then; `gati bench` measures more, in longer turns. MODEL-plain is there after
`gati export --plain`.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from gati.promise.draws import NEW
from gati.repository.chain import read_chain
from gati.settings import NO_STORE, STORE
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_client import Client
from gati_client.load import alternate, summary
from gati_export.samples.ragged import count, rows_at
from gati_export.samples.samples import check_samples, load_samples


@click.command()
@click.argument("repository", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("model")
@click.argument("samples", type=click.Path(exists=True, path_type=Path))
@click.option("--requests", default=1_200, show_default=True, help="To each of the two.")
@click.option("--turn", default=40, show_default=True, help="Requests of a turn.")
def main(repository: Path, model: str, samples: Path, requests: int, turn: int) -> None:
    """Measures a chain beside its plain model."""
    chain = read_chain(repository, model)
    rows = check_samples(load_samples(samples), chain.inputs)
    order = np.random.default_rng(0).permutation(count(rows))
    feeds = [rows_at(rows, [row]) for row in np.resize(order, requests)]
    with Server(repository, Ports(0, 0, 0), {STORE: NO_STORE}) as server:
        address = f"{HOST}:{server.ports.grpc}"
        with Client(address, model) as client:
            for place in range(NEW):
                client.infer(feeds[place % requests])
        seen = alternate(
            lambda: Client(address, f"{model}-plain"), lambda: Client(address, model), iter(feeds), block=turn
        )
    for name, one in zip(("plain", "chain"), seen, strict=True):
        if one.errors:
            why = next(filter(None, one.error))
            raise click.ClickException(f"{one.errors} of {len(one)} requests to the {name} model failed: {why}")
        click.echo(f"{name}  " + ", ".join(f"{key[:-3]} {value:.2f} ms" for key, value in summary(one.latency).items()))
    plain, ours = (one.latency for one in seen)
    click.echo(
        f"speed-up {plain.mean() / ours.mean():.2f} of the mean, {np.median(plain) / np.median(ours):.2f} of p50"
    )


if __name__ == "__main__":
    main()
