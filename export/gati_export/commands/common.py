"""What the offline subcommands share: their options, and progress on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gati.errors import RepositoryError
from gati.options import existing_folder

console = Console(stderr=True)
results = Console()

model_argument = click.argument("model", metavar="MODEL")
repository_option = click.option(
    "--repository", metavar="DIR", type=existing_folder, required=True, help="The model repository."
)
server_option = click.option(
    "--server",
    metavar="HOST:GRPC_PORT",
    callback=lambda _ctx, _param, value: checked_address(value),
    help="The server that shall take the release. Without it the release is only written: a server that runs inline "
    "takes it by itself.",
)

Report = Callable[[str, float], None]
"""Told what is being done, and what share of it is done, 0..1."""


def checked_address(value: str | None) -> str | None:
    """An option's HOST:PORT.

    Raises:
        click.BadParameter: If it is none.
    """
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal():
        raise click.BadParameter(f"{value!r} is not HOST:GRPC_PORT, such as localhost:8001.")
    return value


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


@contextmanager
def progress() -> Iterator[Report]:
    """A bar a task, on a terminal only."""
    bars = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, int] = {}

    def report(what: str, done: float) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=1.0)
        bars.update(tasks[what], completed=done)  # type: ignore[arg-type]

    with bars:
        yield report
