"""What the demo says that it found, and what it replaces."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from gati.errors import GatiError
from gati_client.load import Observations
from gati_export.demo import story
from gati_export.demo.command import demo
from gati_export.demo.report import figures, table, write_page
from gati_export.demo.story import Phase, Timeline, Told


def seen(latency: float, exit_: int, *, wrong: int = 0, failed: int = 0) -> Observations:
    """Forty requests, some of which were answered otherwise, and some not at all."""
    number = np.arange(40)
    answer = np.where(number < wrong, 1, 0)
    error = tuple("it is away" if place >= 40 - failed else None for place in number)
    exits = np.where(number >= 40 - failed, -1, exit_)
    return Observations(
        number * 0.1, np.full(40, latency), error, number, exits, np.where(exits < 0, -1, 2 - exit_), answer
    )


@pytest.fixture
def told() -> Told:
    before, after = seen(2e-3, 1, wrong=4), seen(1e-3, 0, failed=1)
    timeline = Timeline(parts=[(0.0, before), (10.0, after)])
    return Told((Phase("before", seen(3e-3, 2), before), Phase("after", seen(4e-3, 2), after)), timeline)


def test_the_figures_are_of_requests_that_both_answered(told: Told) -> None:
    result = figures(told)
    assert result["plain"]["mean_ms"] == pytest.approx(3.5)
    before, after = result["before_refresh"], result["after_refresh"]
    assert (before["speedup"], after["speedup"]) == (pytest.approx(1.5), pytest.approx(4))
    assert (before["agreement"], after["agreement"]) == (0.9, 1)
    assert (before["exits"], after["exits"]) == ({"1": 40}, {"0": 39})
    assert (result["requests"], result["failed"], result["releases"]) == (160, 1, [1, 2])


def test_the_table_has_them(told: Told) -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(table(figures(told)))
    said = console.export_text()
    assert re.search(r"chain before refresh\s+2\.00 ms\s+2\.00 ms\s+2\.00 ms\s+1\.50\s+90\.00%", said)
    assert "160 requests, 1 failed; releases seen: 1, 2" in said


def test_the_page_needs_no_network_and_its_pictures_lie_beside_it(told: Told, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", told, figures(told))
    page = (tmp_path / "report.html").read_text()
    assert "1.50" in page and not re.search(r'(src|href)="(?!data:|#)', page)
    for name in ("latencies", "exits"):
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_demo_replaces_what_a_demo_left_and_nothing_else(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = True

    def tell(_output: Path, repository: Path, *_: int) -> Told:
        for folder in (repository, repository.with_name("model_repository.gati")):
            folder.mkdir()  # where a demo begins, there must be none
        if killed:
            raise KeyboardInterrupt
        return told

    def run(output: Path) -> BaseException | None:
        return CliRunner().invoke(demo, ["--output", str(output)]).exception

    monkeypatch.setattr(story, "tell", tell)
    for name in ("model_repository", "model_repository.gati"):
        theirs = tmp_path / name / name / "precious"
        theirs.mkdir(parents=True)
        error = run(tmp_path / name)
        assert isinstance(error, GatiError) and str(error).startswith("No demo made ")
        assert theirs.is_dir() and [*(tmp_path / name).iterdir()] == [theirs.parent]
    output = tmp_path / "demo"
    for _ in range(2):
        assert isinstance(run(output), SystemExit) and (output / "model_repository").is_dir()
    killed = False
    for _ in range(2):
        error = run(output)
        assert isinstance(error, GatiError) and "1 requests failed" in str(error)
        assert (output / "demo.json").exists()
        (output / ".gati-demo").unlink()  # as of a demo before there were such marks
