"""The report as a page: one file that needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from gati.system.files import replace
from gati_export.report.data import Report
from gati_export.report.history import Turn
from gati_export.report.live import ELSEWHERE, LiveChain
from gati_export.report.morning import Morning
from gati_export.report.plots import color, curves, front
from gati_export.report.timeline import SHOWN, timeline
from gati_export.report.units import duration, percent, promise, size, times

FEW = 12
"""Options, all in all, that are shown unfolded."""


@dataclass(frozen=True)
class Exit:
    """Where requests are answered: its name, the share of them, and how far along the chain it is, 0..1."""

    name: str
    share: float
    depth: float
    backbone: bool


def page(known: Report | LiveChain, turns: Sequence[Turn] = (), morning: Morning | None = None) -> str:
    """The page's HTML. All that a report names is escaped.

    Args:
        known: What was learned for a release, or what its repository tells of it.
        turns: What refreshes decided, oldest first.
        morning: What was served; None leaves that out.
    """
    shown = turns[-SHOWN:]
    report = known if isinstance(known, Report) else None
    return template("page.html").render(
        model=known.model,
        release="no release" if known.release is None else f"release {known.release}",
        created=known.created and _date(known.created),
        sentence=known.sentence,
        certificate=known.certificate,
        report=report,
        elsewhere=ELSEWHERE,
        morning=morning,
        served=_exits(morning.exits) if morning and morning.exits else (),
        now=_date(datetime.now(UTC)),
        turns=shown[::-1],
        timeline=timeline(shown),
        date=_date,
        **(_learned(report) if report else {}),
    )


def _learned(report: Report) -> dict[str, Any]:
    """What the page says of heads: of all that were tried, those in use among them."""
    return {
        "exits": _exits(report.exits),
        "color": lambda family: color(report, family),
        "panels": [(cut, curves(report, cut)) for cut in report.cuts],
        "front": front(report),
        "unfolded": sum(len(cut.options) for cut in report.cuts) <= FEW,
    }


def template(name: str) -> jinja2.Template:
    """A page of this folder, to be filled in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gati_export", "report"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (duration, percent, promise, size, times)}
    return environment.get_template(name)


def write_page(path: Path, text: str) -> None:
    """Writes a page, whole or not at all, making its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, text)


def _date(when: str | datetime) -> str:
    when = datetime.fromisoformat(when) if isinstance(when, str) else when
    return when.strftime("%Y-%m-%d %H:%M %Z").strip()


def _exits(shares: Sequence[float]) -> list[Exit]:
    """Exits that answer anything; the last one is the backbone's."""
    last = len(shares) - 1
    names = [f"exit {index}" for index in range(last)] + ["backbone"]
    found = enumerate(zip(names, shares, strict=True))
    return [Exit(name, share, i / max(last, 1), i == last) for i, (name, share) in found if share > 0]
