"""`gati refresh`: from served traffic to the next release."""

from __future__ import annotations

from pathlib import Path

import click

from gati.chain import read_chain
from gati.options import json_option, write_json
from gati_export.commands.common import announce, model_argument, progress, repository_option, results, server_option
from gati_export.refresh import refreshed
from gati_export.report.table import cuts_table
from gati_export.store import default_store


@click.command()
@model_argument
@repository_option
@server_option
@click.option("--store", metavar="URL", help="Where the server keeps samples.  [default: DIR.gati/samples]")
@click.option(
    "--window", type=click.IntRange(1), default=20_000, show_default=True, help="How many of the newest samples count."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the training; same seed, same heads.")
@json_option
def refresh(
    model: str,
    repository: Path,
    server: str | None,
    store: str | None,
    window: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Learn MODEL's heads anew from what it served, and publish them while it goes on answering.

    Reads the newest recorded samples, asks the segments for the backbone's answers, trains a head per cut point,
    certifies the chain on samples that no training has seen, and publishes the next release. Where nothing can be
    certified, nothing is published and the reason is given.
    """
    chain = read_chain(repository, model)
    with progress() as report:
        result = refreshed(repository, chain, store or default_store(repository), window, server, report, seed)
    results.print(cuts_table(result.report))
    announce(chain, result.rollout)
    write_json(json_path, result.as_json())
