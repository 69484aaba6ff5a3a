"""`gati serve`: a repository on this machine's tritonserver, until told to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import click

from gati.errors import UnavailableError
from gati.inference.session import DEVICE, parse_device
from gati.options import checked, existing_folder, json_option, port_option, write_json
from gati.recording.objects import public
from gati.repository.workspace import workspace
from gati.settings import (
    AUDIT,
    BYPASS,
    DEFAULT_AGE,
    FEATURES,
    FOREVER,
    INPUTS,
    NO_STORE,
    NOTHING,
    RECORD,
    RECORD_SHARE,
    STORE,
    STORE_AGE,
    STORE_BYTES,
    WORKERS,
    Settings,
    parse_age,
    parse_record,
)
from gati.triton.heartbeat import PATIENCE_SECONDS
from gati.triton.options import check_handed_on
from gati.triton.ports import ANYWHERE, HOST, Ports
from gati.triton.server import Server


@click.command()
@click.argument("repository", metavar="DIR", type=existing_folder)
@click.argument("handed_on", metavar="[-- OPTION...]", nargs=-1, callback=checked(check_handed_on))
@port_option("grpc", Ports.grpc)
@port_option("http", Ports.http)
@port_option("metrics", Ports.metrics)
@click.option(
    "--host", type=click.Choice([HOST, ANYWHERE]), default=HOST, show_default=True, help=f"{ANYWHERE}: all interfaces."
)
@click.option("--store", metavar="URL", help="Where to record samples (fsspec URL).  [default: DIR.gati/samples]")
@click.option(
    "--record",
    metavar="WHAT",
    callback=checked(parse_record),
    help=f"What to record of a request: its {INPUTS}; {FEATURES} in their place (at the first cut point, or "
    f"{FEATURES}:CUT); or {NOTHING}, and `gati refresh` has nothing to learn from.  [default: {INPUTS}]",
)
@click.option("--no-record", is_flag=True, help=f"The same as --record {NOTHING}.")
@click.option("--record-share", type=click.FloatRange(0, 1), help="Share of requests to record.  [default: 1]")
@click.option(
    "--store-age",
    metavar="AGE",
    callback=checked(parse_age),
    help=f"Age at which samples are deleted: 30d, 12h, 90m, 45s, or {FOREVER} for never.  [default: {DEFAULT_AGE}]",
)
@click.option(
    "--store-mib",
    type=click.IntRange(1),
    help="Most MiB of samples for each model; never more than half of a local disk.  [default: 1024]",
)
@click.option(
    "--audit",
    type=click.FloatRange(0, 1),
    help="Share of requests drawn for an audit: if a head answers one, the backbone also runs, to see whether it "
    "agrees. 25 times as many are drawn until a release has shown that it keeps its promise.  [default: 0.02]",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Threads that serve requests; 0: Triton's own thread does.  [default: 0 inline, 4 bls]",
)
@click.option(
    "--device",
    metavar="DEVICE",
    callback=checked(parse_device),
    help="Where inline chains run: cpu, cuda or cuda:N.  [default: cpu]",
)
@click.option("--no-bypass", is_flag=True, help="Ask heads even while they take more time than they save.")
@click.option(
    "--patience",
    type=click.FloatRange(1),
    default=PATIENCE_SECONDS,
    show_default=True,
    help="Seconds without a heartbeat after which a model's process is killed, and the model loaded again.",
)
@click.option(
    "--log",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="File for Triton's log; - for stderr. The last server's becomes FILE.1.  [default: DIR.gati/server.log]",
)
@json_option
def serve(
    repository: Path,
    handed_on: tuple[str, ...],
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    host: str,
    store: str | None,
    record: str | None,
    no_record: bool,
    record_share: float | None,
    store_age: str | None,
    store_mib: int | None,
    audit: float | None,
    workers: int | None,
    device: str | None,
    no_bypass: bool,
    patience: float,
    log: Path | None,
    json_path: Path | None,
) -> None:
    r"""Serve a model repository on this machine's tritonserver.

    Takes the tritonserver on PATH (as in NVIDIA's container), else the one in the pip wheel nvidia-pytriton, and
    listens on loopback; with --host 0.0.0.0, whoever reaches this machine can use it. Models can be loaded and
    unloaded only by those who can read DIR.gati/token. Ends on SIGTERM or Ctrl-C, when the requests in flight are
    answered. The file of --json is written when the server is ready.

    What stands behind -- is handed on to tritonserver, for example:

    \b
      gati serve models -- --log-format=ISO8601 --trace-config=level=TIMESTAMPS
    """
    options = {
        STORE: store,
        STORE_AGE: store_age,
        RECORD: NOTHING if no_record else record,
        RECORD_SHARE: record_share,
        STORE_BYTES: store_mib and store_mib << 20,
        AUDIT: audit,
        WORKERS: workers,
        DEVICE: device and parse_device(device),
        BYPASS: 0 if no_bypass else None,
    }
    environment = {name: str(value) for name, value in options.items() if value is not None}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    click.echo(f"Starting tritonserver on {repository} ...", err=True)
    ports = Ports(grpc_port, http_port, metrics_port)
    asked = [port for port in (grpc_port, http_port, metrics_port) if port]
    if len({*asked}) < len(asked):
        raise click.UsageError("gRPC, HTTP and metrics need a port each.")
    with Server(repository, ports, environment, log, handed_on, host, patience) as server:
        _announce(server, environment, json_path)
        _watch(server)


def _watch(server: Server) -> None:
    """Loads models again whose processes hang or were killed, as long as the server runs.

    Raises:
        UnavailableError: When it has ended by itself.
    """
    while server.process.poll() is None:
        time.sleep(0.2)
        for model in server.end_hung():
            click.echo(f"The process of {model!r} hangs; it is killed.", err=True)
        for model in server.revive():
            click.echo(f"The process of {model!r} was killed; it is loaded again.", err=True)
    raise UnavailableError(
        f"tritonserver ended by itself (exit code {server.process.returncode}); its log is {server.log}."
    )


def _end(_signal: int, _frame: FrameType | None) -> None:
    """Raises SystemExit, so that the server is stopped and cleaned up on the way out."""
    click.echo("Stopping ...", err=True)
    raise SystemExit(0)


def _announce(server: Server, environment: Mapping[str, str], json_path: Path | None) -> None:
    host, ports = server.host, server.ports
    for reason in server.refused:
        click.echo(f"Not served: {reason}", err=True)
    if server.keeps_nothing:
        folder = workspace(server.repository)
        click.echo(
            f"Warning: {folder} can't be written: nothing is kept there, and no release can be published.", err=True
        )
    click.echo(f"gRPC     {host}:{ports.grpc}")
    click.echo(f"HTTP     {host}:{ports.http}")
    click.echo(f"metrics  http://{host}:{ports.metrics}/metrics")
    click.echo(f"models   {', '.join(server.models)}")
    click.echo(f"log      {server.log}")
    if not server.keeps_nothing:
        click.echo(f"token    {workspace(server.repository) / 'token'}")
    click.echo(f"samples  {_samples(server.repository, server.keeps_nothing, environment)}")
    write_json(
        json_path,
        {
            "pid": server.process.pid,
            "grpc": f"{host}:{ports.grpc}",
            "http": f"{host}:{ports.http}",
            "metrics": f"{host}:{ports.metrics}",
            "models": server.models,
        },
    )


def _samples(repository: Path, keeps_nothing: bool, environment: Mapping[str, str]) -> str:
    """Where samples go, in words: by this command's options, or else by the variables of its environment."""
    default = {STORE: NO_STORE} if keeps_nothing else {}
    settings = Settings.from_environment({**default, **os.environ, **environment}, repository)
    if settings.store is None or settings.record == NOTHING or not settings.record_share:
        return "not kept"
    return public(settings.store)
