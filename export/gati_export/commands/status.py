"""`gati status`: a live table of a served chain."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gati.errors import UnavailableError
from gati.options import existing_folder, json_option, write_json
from gati.repository.chain import find_chains
from gati.triton.ports import HOST, Ports
from gati.triton.server import running_ports
from gati_export.commands.common import checked_address, found_model
from gati_export.report.scrape import Reading, read_metrics


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option(
    "--repository", metavar="DIR", type=existing_folder, help="The model repository, by which the server is found."
)
@click.option(
    "--metrics",
    metavar="HOST:METRICS_PORT",
    callback=lambda _ctx, option, value: checked_address(option, value),
    help=f"The server's metrics.  [default: those of the first server on --repository, else {HOST}:{Ports.metrics}]",
)
@click.option("--once", is_flag=True, help="Print one table and end. So it is, too, if the output is no terminal.")
@click.option("--every", type=click.FloatRange(0.2), default=1.0, show_default=True, help="Seconds between readings.")
@json_option
def status(
    model: str | None, repository: Path | None, metrics: str | None, once: bool, every: float, json_path: Path | None
) -> None:
    """Watch MODEL as it is served: exits, hit rate, audit agreement, release, p50 and p99.

    Counts are since the server's start. Latencies are of the last 2,000 requests, without their way through the server.
    MODEL may be left out if --repository has only one chain. Ctrl-C ends it.
    """
    if repository is None and model is None:
        raise click.UsageError("Name a MODEL, or a --repository with one chain in it.")
    if repository is not None:
        model = found_model(repository, find_chains(repository), model)
    address = metrics or _address(repository)
    first = read_metrics(address, str(model))
    write_json(json_path, _as_json(first))
    console = Console()
    if once or not console.is_terminal:
        console.print(_table(str(model), address, first))
        return
    _watch(str(model), address, first, every, console)


def _address(repository: Path | None) -> str:
    if repository is None:
        return f"{HOST}:{Ports.metrics}"
    running = [f"{HOST}:{ports.metrics}" for ports in running_ports(repository)]
    if not running:
        raise UnavailableError(f"No server of `gati serve` runs on {repository}; name its --metrics HOST:PORT.")
    if len(running) > 1:
        click.echo(
            f"{len(running)} servers run on {repository}; --metrics {' or '.join(running[1:])} shows another.", err=True
        )
    return running[0]


def _watch(model: str, address: str, first: Reading, every: float, console: Console) -> None:
    with Live(_table(model, address, first), console=console) as live:
        try:
            while True:
                time.sleep(every)
                live.update(_table(model, address, read_metrics(address, model)))
        except KeyboardInterrupt:
            return


def _table(model: str, address: str, now: Reading) -> Table:
    table = Table(title=f"{model} on {address}", show_header=False)
    p50, p99 = now.quantiles.get(0.5), now.quantiles.get(0.99)
    audited, _ = now.audits
    agreement = "no audits yet" if now.agreement is None else f"{now.agreement:.2%} of {audited} audited hits"
    table.add_row("release", str(now.release or "none: the backbone answers"))
    table.add_row("closed exits", _closed(now))
    table.add_row("requests", f"{now.requests:,}")
    table.add_row("hit rate", "—" if now.hit_rate is None else f"{now.hit_rate:.1%}")
    for exit_, count in sorted(now.exits.items()):
        name = f"exit {exit_}" + (" (backbone)" if exit_ == max(now.exits) else "")
        share = count / now.requests if now.requests else 0.0
        table.add_row(name, f"{count:>9,}  {share:>6.1%}  {'█' * round(30 * share)}")
    table.add_row("agreement", agreement)
    lower, upper = now.disagreement
    table.add_row("answers that differ", f"{lower:.2%} to {upper:.2%} of all, as far as audits tell")
    table.add_row("held for the backbone", f"{now.held:,} while audits were in doubt")
    table.add_row("went past the heads", f"{now.bypassed:,} while these did not pay")
    table.add_row("p50 / p99", "—" if p50 is None or p99 is None else f"{p50 * 1e3:.2f} ms / {p99 * 1e3:.2f} ms")
    table.add_row("refused releases", str(now.refused))
    table.add_row("dropped samples", str(now.dropped))
    return table


def _closed(now: Reading) -> str:
    return f"{', '.join(map(str, now.closed))}: until heads are learned anew" if now.breaker_open else "none"


def _as_json(reading: Reading) -> dict[str, Any]:
    fields = asdict(reading)
    del fields["quantiles"]
    p50, p99 = reading.quantiles.get(0.5), reading.quantiles.get(0.99)
    latency = {"p50_ms": p50 and p50 * 1e3, "p99_ms": p99 and p99 * 1e3}
    return fields | {"hit_rate": reading.hit_rate, "agreement": reading.agreement} | latency
