"""`gati sync`: a repository on disk as a copy of one in an object store."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from pathlib import Path

import click

from gati.errors import GatiError, RepositoryError
from gati.options import json_option, write_json
from gati.repository.chain import find_chains, read_chain
from gati_export.commands.common import server_option
from gati_export.releases.origin import Origin
from gati_export.releases.sync import Copy, Synced


@click.command()
@click.argument("url", metavar="URL")
@click.argument("repository", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--push", is_flag=True, help="Also put there what is new here: at first, all of it.")
@click.option("--watch", is_flag=True, help="Go on, until Ctrl-C or SIGTERM.")
@click.option(
    "--every",
    type=click.FloatRange(0.1),
    default=10,
    show_default=True,
    help="With --watch: seconds between two looks.",
)
@server_option("A server to tell of new releases, which chains in BLS mode need.")
@json_option
def sync(
    url: str, repository: Path, push: bool, watch: bool, every: float, server: str | None, json_path: Path | None
) -> None:
    """Keep DIR, a model repository on disk, in step with the one in an object store at URL.

    Takes chains and releases that are new there, and lets go of those that were pruned or withdrawn there. Each is
    checked before it is here, whole or not at all: one that is damaged or half there is left out, and that is said.
    DIR is a copy from then on: `gati refresh` and `gati rollback` on it publish at URL first. Credentials come from
    the environment.

    \b
    gati sync s3://bucket/models models --push      # an export, put there
    gati sync s3://bucket/models models --watch     # beside a server, which takes releases from DIR by itself

    Servers that run chains in BLS mode have to be told what is new: name them with --server.
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    copy, end = Copy(repository, Origin(url)), threading.Event()
    said: set[str] = set()
    for number in (signal.SIGTERM, signal.SIGINT) if watch else ():
        signal.signal(number, lambda *_: end.set())
    while True:
        try:
            done = _once(copy, push, repository, server, said)
            write_json(json_path, asdict(done))
        except GatiError as error:
            if not watch:
                raise
            click.echo(f"No sync: {error}", err=True)
        if not watch or end.wait(every):
            break
    if not find_chains(repository):
        raise RepositoryError(f"There is no chain in {url}, and none in {repository}.")


def _once(copy: Copy, push: bool, repository: Path, server: str | None, said: set[str]) -> Synced:
    """Syncs, and says what it did; what was refused, once."""
    done = copy.pull(push=push)
    if push:
        done.pushed = copy.push().pushed
    for model in done.models:
        click.echo(f"{model} is new here.")
    for what, releases in (("came", done.pulled), ("went", done.pushed), ("are gone", done.removed)):
        for model, numbers in releases.items():
            click.echo(f"Releases of {model} that {what}: {', '.join(map(str, numbers))}")
    for reason in {*done.refused} - said:
        click.echo(f"Not taken: {reason}", err=True)
    said |= {*done.refused}
    if server is not None:
        _tell(repository, server)
    return done


def _tell(repository: Path, server: str) -> None:
    from gati_export.releases.rollout import catch_up

    for model in find_chains(repository):
        for outcome in catch_up(repository, read_chain(repository, model), server):
            click.echo(f"{outcome.address}: {outcome.reason or f'{model} serves release {outcome.release}'}", err=True)
