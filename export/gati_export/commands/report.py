"""`gati report`: what was learned for a release, and what is promised."""

from __future__ import annotations

from pathlib import Path

import click

from gati.errors import UnavailableError
from gati.options import OutputFile, json_option, write_json
from gati.repository.chain import find_chains
from gati_export.commands.common import checked_addresses, found_model, model_argument, repository_option, results
from gati_export.report.data import Report, reports_folder
from gati_export.report.day import read_day
from gati_export.report.history import turns
from gati_export.report.live import ELSEWHERE, known_of, live_in
from gati_export.report.morning import morning
from gati_export.report.page import page, write_page
from gati_export.report.scrape import Reading, read_metrics
from gati_export.report.table import OF_ENGINE, cuts_table, reasons


@click.command()
@model_argument
@repository_option
@click.option(
    "--release",
    "number",
    type=click.IntRange(0),
    help="The release; 0: the last export or refresh that led to none.  [default: the live release]",
)
@click.option(
    "--out",
    metavar="FILE.html",
    type=OutputFile(),
    help="Where to write the page.  [default: DIR.gati/reports/MODEL-RELEASE.html]",
)
@click.option(
    "--metrics",
    metavar="HOST:METRICS_PORT",
    multiple=True,
    callback=lambda _ctx, option, values: checked_addresses(option, values),
    help="A server to ask for its state now; repeat it, or use commas, for several. Without it, the report ends a "
    "minute ago.",
)
@json_option
def report(
    model: str, repository: Path, number: int | None, out: Path | None, metrics: str | None, json_path: Path | None
) -> None:
    """Show how MODEL was served in the last day, and what was learned for a release of it.

    The promise and a table are printed; a page of HTML has the rest, and needs no network. It shows exits, latency and
    agreement of the last 24 hours; releases, refreshes and closed exits in time; what refreshes decided and why; then
    the certificate, and all heads that were tried, with the reasons against those that are not used. All of it is read
    from files beside the repository, which server, export and refresh write.

    \b
    gati report resnet18 --repository models
    gati report resnet18 --repository models --metrics replica-1:8002 --metrics replica-2:8002
    gati report resnet18 --repository models --release 3 --out resnet18.html
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    live = live_in(repository, found_model(repository, find_chains(repository), model))
    found = known_of(repository, live, number)
    path = out or reports_folder(repository) / f"{live.model}-{found.release or 0}.html"
    past, day = turns(repository, live.model), read_day(repository, live.model, cuts=live.cuts, release=live.release)
    now = {address: _asked(address, live.model) for address in (metrics or "").split(",") if address}
    served = morning(day, live, past, now) if day.events or day.minutes or now else None
    write_page(path, page(found, past, served))
    write_json(json_path, found.as_json() | {"page": str(path), "served": served and served.sentence})
    if served is not None:
        click.echo(f"{served.sentence} {served.more}".strip())
    click.echo(found.sentence)
    if isinstance(found, Report):
        _tell(found)
    elif found.certificate:
        click.echo(ELSEWHERE)
    click.echo(f"Page: {path}")


def _tell(found: Report) -> None:
    """Prints the certificate and the table of cut points."""
    if found.why_not and found.why_not not in found.sentence:
        click.echo(f"No head serves: {found.why_not}")
    else:
        click.echo(f"Expected speed-up {found.speedup:.2f}{OF_ENGINE}.")
    results.print(cuts_table(found))
    for line in reasons(found):
        click.echo(line)


def _asked(address: str, model: str) -> Reading | str:
    """What a server says now, or why it says nothing, which must not keep the page from being written."""
    try:
        return read_metrics(address, model)
    except UnavailableError as error:
        return str(error)
