"""`gati refresh`: from served traffic to the next release."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gati.chain import Chain, read_chain
from gati.errors import GatiError, UnavailableError
from gati.expiry import FOREVER, parse_age
from gati.options import checked, json_option, write_json
from gati.resources import cores
from gati.session import THREADS
from gati.settings import STORE_AGE
from gati_export.commands.common import (
    announce,
    device_option,
    model_argument,
    repository_option,
    results,
    shown_progress,
    takers_option,
)
from gati_export.refresh_watch import AGAIN, RefreshWatch

if TYPE_CHECKING:
    from gati_export.refresh import Refreshed

WATCHING = {"watch", "every", "fresh", "threads", "nice"}
"""Options of a watch, and not of its turns."""


@click.command()
@model_argument
@repository_option
@takers_option
@click.option("--store", metavar="URL", help="Where the server keeps samples.  [default: DIR.gati/samples]")
@click.option(
    "--window", type=click.IntRange(1), default=20_000, show_default=True, help="How many of the newest samples count."
)
@click.option(
    "--store-age",
    metavar="AGE",
    envvar=STORE_AGE,
    callback=checked(parse_age),
    help=f"How old a sample may be: 30d, 12h, 90m, 45s, or {FOREVER}: any that are kept.  [default: {FOREVER}]",
)
@click.option("--always", is_flag=True, help="Publish what is certified even where it would not be faster.")
@click.option(
    "--measure",
    is_flag=True,
    help="Measure latencies anew: on another machine than the export's, say. The server should be idle meanwhile.",
)
@device_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the training; same seed, same heads.")
@click.option("--watch", is_flag=True, help="Go on, one refresh after another, until Ctrl-C or SIGTERM.")
@click.option(
    "--every",
    type=click.FloatRange(1),
    default=300,
    show_default=True,
    help="With --watch: seconds from the beginning of one refresh to that of the next, at least.",
)
@click.option(
    "--fresh",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="With --watch: how many samples must have come since the last refresh, or all, where a store keeps fewer.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: max(1, cores() // 2),
    show_default="half of the cores",
    help="With --watch: threads to work with, so that the server beside it has cores of its own.",
)
@click.option(
    "--nice",
    type=click.IntRange(0, 19),
    default=10,
    show_default=True,
    help="With --watch: how far to stand back behind the server, as in nice(1).",
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

    Reads the newest recorded samples, asks the segments for the backbone's answers, trains a head per cut point,
    certifies the chain on samples held out, and compares it with the live release on these samples.
    The next release is published if it is faster there, or if the live one no longer keeps its promise; where nothing
    can be certified, nothing is published and the reason is given. `gati report` shows what was decided. Ends with
    75 where a server or the store is away, or a disk or another publisher in the way, and trying again may help; else
    as all commands do.

    \b
    gati refresh resnet18 --repository models --server localhost:8001
    gati refresh resnet18 --repository models --server localhost:8001 --watch
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    from gati_export.history import last_turn
    from gati_export.store import count_since, default_store
    from gati_export.sync import follow

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
    from gati_export.refresh import refreshed  # brings PyTorch, which a watch leaves to its turns
    from gati_export.refresh_plan import RefreshPlan

    plan = RefreshPlan(repository, chain, store, window, server, always, measure, seed, parse_age(store_age or FOREVER))
    with _again_where_away(), shown_progress() as progress:
        result = refreshed(plan, progress)
    _tell(chain, result)
    write_json(json_path, result.as_json())


def _stand_back(nice: int, threads: int) -> None:
    """Leaves the server cores of its own, and the first turn at all; what is started from here inherits that."""
    os.nice(nice)
    os.environ.update(dict.fromkeys((THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))


def _tell(chain: Chain, result: Refreshed) -> None:
    from gati_export.report.table import cuts_table
    from gati_export.store import misfits

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
    """Ends a turn that finds a server or a store away, a lock held or a disk full such that a watch makes it again."""
    try:
        yield
    except GatiError as error:
        if not isinstance(error, UnavailableError) and not isinstance(error.__cause__, OSError):
            raise
        raise _Away(str(error)) from error


def _once(context: click.Context) -> list[str]:
    """The arguments of `gati` that do once what a watch does again and again."""
    arguments = ["refresh"]
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.name in WATCHING or value is None or value is False:
            continue
        name = [option.opts[0]] if isinstance(option, click.Option) else []
        arguments += name if value is True else [*name, str(value)]
    return arguments
