"""`gati rollback`: an earlier release again, under the next number."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gati.errors import PublishError
from gati.options import json_option, write_json
from gati.repository.chain import read_chain
from gati_export.commands.common import announce, model_argument, repository_option, takers_option
from gati_export.releases.publish import earlier
from gati_export.releases.rollout import publish_to
from gati_export.releases.sync import follow


@click.command()
@model_argument
@repository_option
@takers_option
@click.option(
    "--to", "number", type=click.IntRange(1), help="The release to go back to.  [default: the one that served before]"
)
@json_option
def rollback(model: str, repository: Path, server: str | None, number: int | None, json_path: Path | None) -> None:
    """Publish an earlier release of MODEL again, under the next number.

    Numbers only grow, so that servers and people can tell what happened when. No request fails meanwhile. Exits that
    audits have closed stay closed, until heads are learned anew. If a replica does not take the release, the others
    still do; the replica is named, and the command exits with 1.
    """
    chain = read_chain(repository, model)
    follow(repository, click.echo)
    rollout = publish_to(repository, chain, earlier(repository, chain, number), server)
    announce(chain, rollout, f": {rollout.release.reason}")
    write_json(json_path, {**asdict(rollout.release), "replicas": rollout.replicas_as_json()})
    if any(replica.state == "refuses" for replica in rollout.replicas):
        raise PublishError(
            "Not all replicas have gone back: restart those that did not, or see to it that they answer nobody."
        )
