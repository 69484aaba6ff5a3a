"""`gati refresh`: from served traffic to the next release."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gati.errors import GatiError, UnavailableError
from gati.inference.session import THREADS
from gati.options import checked, json_option, write_json
from gati.repository.chain import Chain, read_chain
from gati.settings import FOREVER, STORE_AGE, parse_age
from gati.system.resources import cores
from gati_export.commands.common import (
    announce,
    device_option,
    model_argument,
    repository_option,
    results,
    shown_progress,
    takers_option,
)
from gati_export.refreshing.watch import AGAIN, RefreshWatch

if TYPE_CHECKING:
    from gati_export.refreshing.refresh import Refreshed

WATCHING = {"watch", "every", "fresh", "threads", "nice"}
"""Options of a watch, and not of its turns."""


@click.command()
@model_argument
@repository_option
@takers_option
@click.option("--store", metavar="URL", help="Where the server keeps samples.  [default: DIR.gati/samples]")
@click.option(
    "--window", type=click.IntRange(1), default=20_000, show_default=True, help="How many of the newest samples to use."
)
@click.option(
    "--store-age",
    metavar="AGE",
    envvar=STORE_AGE,
    callback=checked(parse_age),
    help=f"Oldest samples to use: 30d, 12h, 90m, 45s, or {FOREVER} for any age.  [default: {FOREVER}]",
)
@click.option(
    "--always", is_flag=True, help="Publish certified heads even if they are not faster than the live release."
)
@click.option(
    "--measure",
    is_flag=True,
    help="Measure latencies anew, on another machine than the export's, say. The server should be idle meanwhile.",
)
@device_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training; same seed, same heads.")
@click.option("--watch", is_flag=True, help="Go on, one refresh after another, until Ctrl-C or SIGTERM.")
@click.option(
    "--every",
    type=click.FloatRange(1),
    default=300,
    show_default=True,
    help="With --watch: least seconds from the beginning of one refresh to that of the next.",
)
@click.option(
    "--fresh",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="With --watch: how many new samples a refresh waits for. If the store keeps fewer, all of them must be new.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: max(1, cores() // 2),
    show_default="half of the cores",
    help="With --watch: threads to use, so that cores are left to the server beside it.",
)
@click.option(
    "--nice",
    type=click.IntRange(0, 19),
    default=10,
    show_default=True,
    help="With --watch: priority below the server's, as in nice(1).",
)
@json_option
@click.pass_context
def refresh(
    context: click.Context,
    model: str,
    repository: Path,
    server: str | None,
    store: str | None,
    window: int,
    store_age: str | None,
    always: bool,
    measure: bool,
    seed: int,
    watch: bool,
    every: float,
    fresh: int,
    threads: int,
    nice: int,
    json_path: Path | None,
) -> None:
    """Learn MODEL's heads anew from what it served, and publish them while it goes on answering.

    Reads the newest recorded samples, runs the segments for the backbone's answers, trains heads at each cut point,
    certifies the chain on held-out samples, and compares it with the live release on these.

    The next release is published if it is faster there, or if the live one no longer keeps its promise. If nothing can
    be certified, nothing is published, and the reason is given. `gati report` shows what was decided.

    The exit code is 75 if trying again may help: a server or the store can't be reached, a disk is full, or another
    publisher is at work. Other failures exit with 1, as in all commands.

    \b
    gati refresh resnet18 --repository models --server localhost:8001
    gati refresh resnet18 --repository models --server localhost:8001 --watch
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    from gati_export.releases.sync import follow
    from gati_export.report.history import last_turn
    from gati_export.samples.store import count_since, default_store

    chain = read_chain(repository, model)
    store = store or default_store(repository)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads wait busily else, on the server's cores
    if watch:
        _stand_back(nice, threads)
        fresh_since = partial(count_since, store, chain, enough=fresh)
        last = partial(last_turn, repository, model)
        RefreshWatch(_once(context), fresh_since, last, fresh, every, click.echo).run()
        return
    with _again_where_away():
        follow(repository, click.echo)
    from gati_export.refreshing.plan import RefreshPlan
    from gati_export.refreshing.refresh import refreshed  # brings PyTorch, which a watch leaves to its turns

    plan = RefreshPlan(repository, chain, store, window, server, always, measure, seed, parse_age(store_age or FOREVER))
    with _again_where_away(), shown_progress() as progress:
        result = refreshed(plan, progress)
    _tell(chain, result)
    write_json(json_path, result.as_json())


def _stand_back(nice: int, threads: int) -> None:
    """Takes fewer threads and a lower priority than the server; processes that are started from here inherit both."""
    os.nice(nice)
    os.environ.update(dict.fromkeys((THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))


def _tell(chain: Chain, result: Refreshed) -> None:
    from gati_export.report.table import cuts_table
    from gati_export.samples.store import misfits

    results.print(cuts_table(result.report))
    if result.left_out:
        click.echo(f"Of the samples, {misfits(result.left_out)}.")
    click.echo(result.turn.why)
    if result.rollout is not None:
        announce(chain, result.rollout)
    elif result.objected:
        click.echo("Nothing is published.")
    else:
        live = f"release {result.turn.live} of {chain.model}"
        click.echo(f"Nothing is published: {live} goes on. Ask for --always to publish.")


class _Away(click.ClickException):
    exit_code = AGAIN


@contextmanager
def _again_where_away() -> Iterator[None]:
    """Exits with `AGAIN` if a server or store is away, a lock held or a disk full, so that a watch tries again."""
    try:
        yield
    except GatiError as error:
        if not isinstance(error, UnavailableError) and not isinstance(error.__cause__, OSError):
            raise
        raise _Away(str(error)) from error


def _once(context: click.Context) -> list[str]:
    """The arguments of `gati` for one turn of a watch."""
    arguments = ["refresh"]
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.name in WATCHING or value is None or value is False:
            continue
        name = [option.opts[0]] if isinstance(option, click.Option) else []
        arguments += name if value is True else [*name, str(value)]
    return arguments
