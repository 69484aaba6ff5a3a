"""What scripts/families.py found, a row for each set of families: written, read, and shown as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t

SHOWN = (
    ("bound", ".2%"),
    ("disagreement", ".2%"),
    ("hits", ".1%"),
    ("early", ".1%"),
    ("macs_saved", ".1%"),
    ("speedup", ".2f"),
    ("oracle", ".1f"),
    ("lookups", ".1%"),
    ("memory", ".1%"),
)
"""Columns of the table, and how their numbers are written."""
COLUMNS = ("families", "heads", *(name.replace("_", " ") for name, _ in SHOWN))


@dataclass(frozen=True)
class Row:
    """What one set of families came to.

    Attributes:
        families: Their names.
        seed: Of their training.
        heads: The heads chosen, by cut point.
        bound: What the certificate says; None where no heads serve.
        disagreement: Share of the evaluation requests answered otherwise than by the backbone.
        hits: Share answered by a head.
        early: Share answered in the first half of the backbone's time.
        macs_saved: Share of the backbone's multiply-accumulate operations that were not done.
        exits: By exit, the share of the requests answered there, and of those the share answered as by the backbone.
        speedup: Time of the plain backbone ÷ time of the chain, measured in turns.
        interval: Of that, at 95 % confidence, by bootstrap over the turns.
        oracle: The same, expected, if every request left at the first cut point where any head is right, at no cost.
        lookups: Time of all lookups of a request that no head answers ÷ time of the backbone.
        memory: Bytes of the heads ÷ bytes of the backbone.
    """

    families: str
    seed: int
    heads: dict[int, str]
    bound: float | None
    disagreement: float
    hits: float
    early: float
    macs_saved: float
    exits: dict[int, tuple[float, float]]
    speedup: float
    interval: tuple[float, float]
    oracle: float
    lookups: float
    memory: float


def from_json(fields: dict[str, Any]) -> Row:
    """A row as it was written: JSON's keys are strings."""
    numbered = {name: {int(key): value for key, value in fields[name].items()} for name in ("heads", "exits")}
    return Row(**{"seed": 0, **fields, **numbered})


def show(rows: Sequence[Row], workload: str) -> None:
    """The table: means over the seeds, with their intervals at 95 % confidence where there are several."""
    table = Table(title=f"{workload}: families of heads")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("families", "heads") else "right", overflow="fold")
    for name in dict.fromkeys(row.families for row in rows):
        alike = [row for row in rows if row.families == name]
        heads = " / ".join(", ".join(f"{cut}:{head}" for cut, head in row.heads.items()) or "none" for row in alike)
        table.add_row(name, heads, *(_over_seeds([getattr(row, of) for row in alike], form) for of, form in SHOWN))
    Console(width=200).print(table)
    for row in rows:
        exits = ", ".join(f"{exit_}: {share:.1%} ({right:.2%} right)" for exit_, (share, right) in row.exits.items())
        click.echo(f"{row.families}, seed {row.seed}, by exit: {exits}; speed-up by turns {row.interval}")


def _over_seeds(values: Sequence[float | None], form: str) -> str:
    """The mean, and ± half the width of its interval by Student's t."""
    known = [value for value in values if value is not None]
    if not known:
        return "—"
    if len(known) == 1:
        return format(known[0], form)
    half = float(t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5)
    return f"{np.mean(known):{form}} ± {half:{form}}"
