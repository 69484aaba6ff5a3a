"""What the offline subcommands share: their options, and how they show progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from gati.errors import RepositoryError
from gati.inference.session import DEVICE, parse_device
from gati.options import checked, existing_folder
from gati.triton.ports import Ports
from gati_export.progress import Progress

if TYPE_CHECKING:
    from gati.repository.chain import Chain
    from gati_export.releases.replicas import Outcome
    from gati_export.releases.rollout import Rollout

console = Console(stderr=True)
results = Console()

model_argument = click.argument("model", metavar="MODEL")
repository_option = click.option(
    "--repository", metavar="DIR", type=existing_folder, required=True, help="The model repository."
)


def server_option(purpose: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option `--server`, and what a command asks servers for."""
    several = "Repeat it, or use commas, for several; a name with many addresses means a server at each."
    return click.option(
        "--server",
        metavar="HOST:GRPC_PORT",
        multiple=True,
        callback=lambda _ctx, option, values: checked_addresses(option, values),
        help=f"{purpose} {several}",
    )


takers_option = server_option(
    "A server that is to take the release. Without it the release is only written; servers that run the chain inline "
    "find it by themselves."
)


def _on_device(context: click.Context, option: click.Parameter, text: str | None) -> None:
    """Has parts of inline chains be measured on a device, here and in processes that this one starts.

    Raises:
        click.BadParameter: If it is none.
        UnavailableError: If it can't be used.
    """
    if text is not None:
        from gati.inference.device import runner_on  # brings onnx, which `--help` need not wait for

        checked(parse_device)(context, option, text)
        runner_on(parse_device(text))
        os.environ[DEVICE] = text


device_option = click.option(
    "--device",
    metavar="DEVICE",
    envvar=DEVICE,
    expose_value=False,
    callback=_on_device,
    help="Where inline chains will run, and are measured: cpu, cuda or cuda:N.  [default: cpu]",
)

EVERY = 60.0
"""Seconds between two lines of progress, where it goes to a log."""


def checked_address(option: click.Parameter, value: str | None) -> str | None:
    """An option's HOST:PORT.

    Raises:
        click.BadParameter: If it is none.
    """
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal():
        usual = Ports.metrics if "METRICS" in str(option.metavar) else Ports.grpc
        raise click.BadParameter(f"{value!r} is not {option.metavar}, such as localhost:{usual}.")
    return value


def checked_addresses(option: click.Parameter, values: Sequence[str]) -> str | None:
    """What was given for an option's HOST:PORT, each alone or several with commas, joined by commas; None for nothing.

    Raises:
        click.BadParameter: If one is none.
    """
    addresses = [address.strip() for value in values for address in value.split(",")]
    return ",".join(str(checked_address(option, address)) for address in addresses) or None


def found_model(repository: Path, chains: list[str], model: str | None) -> str:
    """The chain meant: the one named, or the only one there is.

    Raises:
        RepositoryError: If there is none, or several and none named.
    """
    if model is not None and model in chains:
        return model
    if model is None and len(chains) == 1:
        return chains[0]
    there = ", ".join(chains) or "none"
    raise RepositoryError(f"{repository} has no chain {model or 'to choose by itself'} (there are: {there}).")


def announce(chain: Chain, rollout: Rollout, why: str = "") -> None:
    """Says of a release where it is live, what it promises, and, where there are several replicas, how each took it."""
    release, replicas = rollout.release, rollout.replicas
    live = sum(replica.state == "live" for replica in replicas)
    several = f" on {live} of {len(replicas)} replicas" if len(replicas) > 1 else ""
    click.echo(f"Release {release.number} of {chain.model} is {'live' if replicas else 'written'}{several}{why}.")
    if len(replicas) > 1:
        for replica in replicas:
            later = f": {replica.reason} {_later(chain, replica)}" if replica.reason else ""
            click.echo(f"  {replica.address}  {replica.state}{later}")
    click.echo(str(release.certificate))


def _later(chain: Chain, replica: Outcome) -> str:
    """How a replica gets a release that it has not taken yet."""
    if replica.state == "down":
        return "It takes the release when it starts."
    if replica.state == "refuses":
        return "It goes on with what it serves."
    return "It takes the release " + ("by itself, from the disk." if chain.mode == "inline" else "at the next run.")


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar a task on a terminal; elsewhere a line now and then, so that a log shows that long work goes on."""
    if not console.is_terminal:
        yield _lines()
        return
    bars = Bars(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, int] = {}

    def progress(what: str, done: float) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=1.0)
        bars.update(tasks[what], completed=done)  # type: ignore[arg-type]

    with bars:
        yield progress


def _lines() -> Progress:
    due = time.monotonic() + EVERY

    def progress(what: str, done: float) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + EVERY
            click.echo(f"{what}: {100 * done:.0f} %", err=True)

    return progress
