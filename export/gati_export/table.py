"""The table that export and refresh end with: cut points, and what became of each."""

from __future__ import annotations

from rich import box
from rich.table import Table

from gati.chain import Chain
from gati_export.training import CutReport, Trained


def heads_table(chain: Chain, trained: Trained) -> Table:
    """A line a cut point: how much of the backbone is done there, how long its head takes, how good it is, its hits."""
    table = Table(title=f"{chain.model}: cut points and heads", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("exit", justify="right")
    table.add_column("tensor", overflow="ellipsis", max_width=24, no_wrap=True)
    for column in ("compute before", "time", "agreement", "expected hits"):
        table.add_column(column, justify="right")
    table.add_column("")
    for cut in trained.cuts:
        table.add_row(
            str(cut.index),
            cut.tensor,
            f"{chain.segments[cut.index].share:.0%}",
            "—" if cut.seconds is None else f"{cut.seconds * 1e3:.2f} ms",
            "—" if cut.agreement is None else f"{cut.agreement:.1%}",
            f"{cut.hits:.1%}" if cut.used else "—",
            _note(cut),
        )
    left = 1 - sum(cut.hits for cut in trained.cuts)
    whole = sum(trained.segment_seconds) * 1e3
    table.add_row(
        str(len(chain.segments) - 1), "backbone", "100%", f"{whole:.2f} ms", "100.0%", f"{left:.1%}", style="dim"
    )
    return table


def _note(cut: CutReport) -> str:
    return "in use" if cut.used else "not used"
