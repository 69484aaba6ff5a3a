"""The report's table of cut points, for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from gati_export.report.data import Cut, Report
from gati_export.report.units import MISSING, duration, percent, size

OF_ENGINE = ", of the engine's time alone: a request's way through the server stays as long"
"""What an expected speed-up is of: what clients see is less."""


def cuts_table(report: Report) -> Table:
    """A line a cut point: how much of the backbone is done there, the head in use, how good it is and what it costs."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("exit", justify="right", no_wrap=True)
    table.add_column("tensor", overflow="ellipsis", max_width=24)  # alone gives way where the terminal is narrow
    table.add_column("before", justify="right", no_wrap=True)
    table.add_column("head", no_wrap=True)
    for column in ("agreement", "answers", "lookup", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for cut in report.cuts:
        table.add_row(*map(Text, _row(cut)), style="" if cut.used else "dim")  # names are no markup
    whole = duration(report.backbone_seconds)
    last = (str(len(report.cuts)), "backbone", "100%", "", "100.0%", percent(report.exits[-1]), whole, "")
    table.add_row(*last, style="dim")
    return table


def reasons(report: Report) -> list[str]:
    """Why there is no head where none is in use: a line a reason, with the exits that it holds for."""
    exits: dict[str, list[str]] = {}
    for cut in report.cuts:
        option = cut.shown
        if option is not None and not option.used and option.why != report.why_not:
            exits.setdefault(f"({option.family}): {option.why}", []).append(str(cut.index))
    return [f"No head at {', '.join(where)} {why}" for why, where in exits.items()]


def _row(cut: Cut) -> tuple[str, ...]:
    option = cut.shown
    before = (str(cut.index), cut.tensor, percent(cut.share, 0))
    if option is None:
        return *before, "none", *[MISSING] * 4
    return (
        *before,
        cut.used or "none",
        percent(option.agreement),
        percent(cut.hits) if cut.used else MISSING,
        duration(option.seconds),
        size(option.bytes) if option.bytes else MISSING,
    )
