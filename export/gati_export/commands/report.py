"""`gati report`: what was learned for a release, and what is promised."""

from __future__ import annotations

from pathlib import Path

import click

from gati.chain import find_chains
from gati.options import json_option, write_json
from gati_export.commands.common import found_model, model_argument, repository_option, results
from gati_export.history import turns
from gati_export.report.data import read, reports_folder
from gati_export.report.page import page, write_page
from gati_export.report.table import cuts_table, reasons


@click.command()
@model_argument
@repository_option
@click.option(
    "--release",
    "number",
    type=click.IntRange(0),
    help="The release; 0 for the last export or refresh that led to none.  [default: the newest that has a report]",
)
@click.option(
    "--out",
    metavar="FILE.html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the page.  [default: DIR.gati/reports/MODEL-RELEASE.html]",
)
@json_option
def report(model: str, repository: Path, number: int | None, out: Path | None, json_path: Path | None) -> None:
    """Show what was learned for a release of MODEL: its certificate, its heads, all that was tried, and why not.

    The promise and a table come here; curves and the rest are on a page that needs no network, with what refreshes
    decided. Export and refresh keep what is shown beside the repository.

    \b
    gati report resnet18 --repository models
    gati report resnet18 --repository models --release 3 --out resnet18.html
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    found = read(repository, found_model(repository, find_chains(repository), model), number)
    path = out or reports_folder(repository) / f"{found.model}-{found.number}.html"
    write_page(path, page(found, turns(repository, found.model)))
    write_json(json_path, found.as_json() | {"page": str(path)})
    click.echo(found.sentence)
    if found.why_not and found.why_not not in found.sentence:
        click.echo(f"No head serves: {found.why_not}")
    else:
        click.echo(f"Expected speed-up {found.speedup:.2f}.")
    results.print(cuts_table(found))
    for line in (*reasons(found), f"Page: {path}"):
        click.echo(line)
