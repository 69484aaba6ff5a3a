"""`gati demo`: the story, told and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
from rich.console import Console

from gati.errors import GatiError
from gati.options import json_option, write_json
from gati.repository.workspace import workspace

DEFAULT_OUTPUT = Path("demo")
MARKS = (".gati-demo", "demo.json")
"""Files of which either tells that a demo made what lies beside it. The first is written before anything else, so that
a demo that was killed has left it; the second is what a demo that ended leaves."""


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUTPUT,
    show_default=True,
    help="Folder for the report, demo.json and the model repository; only what a demo left there is replaced.",
)
@click.option(
    "--requests",
    type=click.IntRange(100, 40_000),
    default=2000,
    show_default=True,
    help="Requests measured before the refresh, and again after it. Each new release gets 1,000 more first. With fewer "
    "than some 1,500 in all the refresh can't certify.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def demo(output: Path, requests: int, seed: int, json_path: Path | None) -> None:
    """Run the whole of gati on handwritten digits, in four to seventeen minutes.

    Trains a small network, exports it, serves it on a real Triton, asks the plain model and the chain the same
    questions, refreshes the heads from that traffic while more requests come, asks again, and rolls back. Ends with a
    table, OUTPUT/report.html and OUTPUT/demo.json.
    """
    from gati_export.demo.report import figures, table, write_page  # torch, matplotlib: not for --help
    from gati_export.demo.story import tell

    repository = output / "model_repository"
    _clear(output, repository)
    told = tell(output, repository, requests, seed)
    result = figures(told)
    (output / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_page(output / "report.html", told, result)
    write_json(json_path, result)
    Console().print(table(result))
    click.echo(f"The report is {output / 'report.html'}; serve the chain again with `gati serve {repository}`.")
    if result["failed"]:
        raise GatiError(f"{result['failed']} requests failed.")


def _clear(output: Path, repository: Path) -> None:
    """Removes a former demo's repository: an export replaces nothing by itself.

    Raises:
        GatiError: If the folders are there, and nothing tells that a demo made them.
    """
    left = [folder for folder in (repository, workspace(repository)) if folder.exists()]
    if left and not any((output / mark).is_file() for mark in MARKS):
        folders = " and ".join(map(str, left))
        raise GatiError(f"No demo made {folders}, which this one would replace; name another folder with --output.")
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKS[0]).touch()
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
