"""A benchmark as a page: one file that needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from gati_export.bench.rows import PLAIN, SERVED, Result, Row, load_name, serves
from gati_export.report.drawing import Drawing, Scale, spread
from gati_export.report.page import template
from gati_export.report.plots import COLORS, Frame
from gati_export.report.units import duration, percent, promise

BARS = (660.0, 22.0)
"""Width of the drawing of bars, and the height of each."""
NAMES = 110.0
LINES = (400.0, 240.0)


def page(result: Result) -> str:
    """The page's HTML. All that the result names is escaped."""
    return template("bench.html").render(
        conditions=result.conditions,
        facts=_facts(result),
        notes=result.notes,
        sentence=sentence(result),
        gains=any(row.speedup > 1 for row in _chains(result)),
        first=load_name(*result.loads()[0]) if result.rows else "Nothing",
        bars=_bars(result),
        throughput=_lines(result, lambda row: row.throughput, "answers a second"),
        tails=_lines(result, lambda row: row.p99_ms, "p99, ms"),
        loads=[(load_name(*load), result.under(load)) for load in result.loads()],
        exits=[row for row in result.first if row.exits],
    )


def sentence(result: Result) -> str:
    """What came out, in a sentence: of the chain that was fastest with one request at a time."""
    best = max(_chains(result), key=lambda row: row.speedup, default=None)
    plain = result.row(PLAIN, best.concurrency or 1) if best else None
    if best is None or plain is None:
        return "No chain was measured."
    agreement = (
        "" if best.agreement is None else f", and {best.agreement:.2%} of the answers {_asked(result)} agree with its"
    )
    several = result.conditions["turns"] > 1
    turns = f"its turns: {best.low:.2f} to {best.high:.2f}" if several else "one turn"
    return (
        f"{best.name} answers {best.speedup:.2f} times as fast ({turns}) as the plain model (mean {best.mean_ms:.2f} "
        f"ms, not {plain.mean_ms:.2f} ms, {load_name(best.concurrency, None)}){agreement}."
    )


def _asked(result: Result) -> str:
    """What answers were compared on, in words."""
    return f"to {result.conditions['compared']} requests ({result.conditions['distinct']} distinct)"


def _facts(result: Result) -> list[tuple[str, str]]:
    """The conditions in words."""
    forms: dict[str, Callable[[Any], str]] = {
        "epsilon": promise,
        "delta": promise,
        "repeats": percent,
        "start_seconds": lambda starts: ", ".join(f"{name} {duration(seconds)}" for name, seconds in starts.items()),
    }
    facts = [(name, forms.get(name, str)(value)) for name, value in result.conditions.items() if value is not None]
    return [(name.replace("_", " "), value) for name, value in facts]


def _chains(result: Result) -> list[Row]:
    """The chain's rows at the lowest concurrency."""
    lowest = min((row.concurrency for row in result.rows if row.concurrency), default=1)
    return [row for row in result.rows if row.name in SERVED and row.concurrency == lowest]


def _bars(result: Result) -> Markup:
    """Mean latencies at the first load, each with a thin line to its 99th percentile."""
    rows = result.first
    width, height = BARS
    drawing = Drawing(width, height * len(rows) + 30, "Mean latency of each contender, in milliseconds")
    across = Scale(0, max((row.p99_ms for row in rows), default=1), NAMES, width - 60)
    for tick in across.ticks(6):
        drawing.line(across(tick), 4, across(tick), height * len(rows) + 6, "grid")
        drawing.text(across(tick), height * len(rows) + 20, f"{tick:g} ms", anchor="middle")
    for place, row in enumerate(rows):
        y = height * (place + 0.5) + 4
        kind = "f0" if row.name == PLAIN else "f1" if row.name.startswith("chain-") else "f7"
        drawing.text(NAMES - 8, y + 4, row.name, "strong" if serves(row.name) else "name", "end")
        drawing.line(across(0), y, across(row.p99_ms), y, f"whisker {kind}")
        drawing.line(across(0), y, max(across(row.mean_ms), across(0) + 1), y, f"beam {kind}")
        drawing.text(across(row.p99_ms) + 5, y + 4, f"{row.mean_ms:.2f} ms")
    return drawing.markup()


def _lines(result: Result, value: Callable[[Row], float], title: str) -> Markup:
    """A value against the number of requests in flight, of all that one could serve."""
    rows = [row for row in result.rows if row.concurrency is not None and serves(row.name)]
    names = list(dict.fromkeys(row.name for row in rows))
    width, height = LINES
    frame = Frame(44, width - 100, 20, height - 30)
    drawing = Drawing(width, height, f"{title}, against requests in flight, of {', '.join(names)}")
    if not rows:
        return drawing.markup()
    loads = sorted({row.concurrency or 1 for row in rows})
    across = Scale(loads[0], max(loads[-1], loads[0] + 1), frame.left, frame.right, log=True)
    up = Scale(0, max(map(value, rows)), frame.bottom, frame.top)
    frame.draw(
        drawing,
        [(across(load), str(load)) for load in loads],
        [(up(tick), f"{tick:g}") for tick in up.ticks(5)],
        ("requests in flight", title),
    )
    ends = [up(value([row for row in rows if row.name == name][-1])) for name in names]
    for place, (name, y) in enumerate(zip(names, spread(ends, 12, frame.top, frame.bottom), strict=True)):
        points = [(across(row.concurrency or 1), up(value(row))) for row in rows if row.name == name]
        drawing.path(points, f"curve f{place % COLORS}" + " used" * name.startswith("chain-"))
        for x, height_ in points:
            drawing.dot(x, height_, 2.5, f"point f{place % COLORS}")
        drawing.path([points[-1], (frame.right + 8, y)], f"leader f{place % COLORS}")
        drawing.text(frame.right + 11, y + 3.5, name, "strong" if name.startswith("chain-") else "name")
    return drawing.markup()
