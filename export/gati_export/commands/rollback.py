"""`gati rollback`: an earlier release again, under the next number."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gati.chain import read_chain
from gati.options import json_option, write_json
from gati_export.commands.common import model_argument, repository_option, server_option
from gati_export.control import publish_to
from gati_export.publish import earlier


@click.command()
@model_argument
@repository_option
@server_option
@click.option("--to", "number", type=click.IntRange(1), help="The release to go back to.  [default: the one before]")
@json_option
def rollback(model: str, repository: Path, server: str | None, number: int | None, json_path: Path | None) -> None:
    """Publish an earlier release of MODEL again, under the next number.

    Numbers only grow, so that servers and people see what happened when. No request fails meanwhile.
    """
    chain = read_chain(repository, model)
    release = publish_to(repository, chain, earlier(repository, chain, number), server)
    click.echo(f"Release {release.number} of {model} is {'live' if server else 'written'}: {release.reason}.")
    click.echo(str(release.certificate))
    write_json(json_path, asdict(release))
