"""How a day went, hour by hour: where requests were answered, how fast, and how many differed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from markupsafe import Markup

from gati.telemetry.minutes import Minute
from gati_export.report.day import Day, exits, latency, moment, worst
from gati_export.report.drawing import Drawing, Scale
from gati_export.report.live import LiveChain
from gati_export.report.plots import Frame, Ticks
from gati_export.report.units import percent, promise

PANEL = (330.0, 180.0)
BINS = 48
SHORTEST = timedelta(minutes=BINS)
STEPS = [timedelta(minutes=m) for m in (1, 5, 10, 30)] + [timedelta(hours=h) for h in (1, 3, 6, 12, 24, 48, 96, 192)]
"""Between two times on an axis."""
HALF = 18.0
"""Half the width of a time's name and a little more, in units of a drawing."""

Panel = tuple[str, Sequence[tuple[str, str]], Markup]
"""What it shows; its lines' colours and names; and its drawing."""


def panels(day: Day, live: LiveChain) -> list[Panel]:
    """The day in pictures; none without requests."""
    if not day.minutes:
        return []
    hours = Hours(day)
    return [_answered(hours, live), _latency(hours), _differ(hours, live)]


class Hours:
    """A day cut into equal parts, from its first minute on.

    Attributes:
        parts: The minutes of each part.
        since: Its beginning.
        until: Its end.
    """

    def __init__(self, day: Day) -> None:
        minutes = day.all_minutes
        self.until = day.until
        begun = min(moment(minute.at) - timedelta(seconds=minute.seconds) for minute in minutes)
        self.since = min(begun, self.until - SHORTEST)
        self.parts: list[list[Minute]] = [[] for _ in range(BINS)]
        for minute in minutes:
            place = (moment(minute.at) - self.since) / (self.until - self.since)
            self.parts[min(int(place * BINS), BINS - 1)].append(minute)

    def frame(self, said: str, up: Scale, ticks: Sequence[tuple[float, str]]) -> tuple[Drawing, Scale]:
        """An empty plot, and its scale of time from 0 to `BINS`."""
        drawing, frame = Drawing(*PANEL, said), Frame(40, PANEL[0] - 12, 10, PANEL[1] - 18)
        across = Scale(self.since.timestamp(), self.until.timestamp(), frame.left, frame.right)
        frame.draw(drawing, time_ticks(across, 5), [(up(value), text) for value, text in ticks], ("", ""))
        return drawing, Scale(0, BINS, frame.left, frame.right)

    def draw(
        self, drawing: Drawing, across: Scale, up: Scale, kind: str, value: Callable[[list[Minute]], float | None]
    ) -> None:
        """Draws what minutes come to, part by part, with a gap where there were no requests."""
        run: list[tuple[float, float]] = []
        for i, part in enumerate([*self.parts, []]):
            found = value(part) if part else None
            if found is not None:
                run += [(across(i + end), up(min(max(found, up.low), up.high))) for end in (0, 1)]
            else:
                drawing.path(run, f"curve {kind}")
                run = []


def time_ticks(across: Scale, most: int) -> Ticks:
    """Round times (UTC) on an axis of timestamps, so many at most.

    One so near an end that its name would reach past the axis, into another's numbers or out of the picture, has none.
    """
    step = next((step for step in STEPS if (across.high - across.low) / step.total_seconds() <= most), STEPS[-1])
    seconds = step.total_seconds()
    first = math.ceil(across.low / seconds) * seconds
    dated = timedelta(seconds=across.high - across.low) > timedelta(days=1)
    ticks: Ticks = []
    for i in range(int((across.high - first) // seconds) + 1):
        when = datetime.fromtimestamp(first + i * seconds, UTC)
        place, name = across(when.timestamp()), when.strftime("%d %b" if dated and not when.hour else "%H:%M")
        ticks.append((place, name if across.start + HALF <= place <= across.end - HALF else ""))
    return ticks


def _answered(hours: Hours, live: LiveChain) -> Panel:
    def share(part: list[Minute]) -> float | None:
        counts = exits(part)
        rows, last = sum(counts.values()), live.cuts
        return 1 - counts.get(last, 0) / rows if rows else None

    up = _upwards(0, 1)
    ticks = [(value, f"{100 * value:g}%") for value in (0, 0.25, 0.5, 0.75, 1)]
    drawing, across = hours.frame("Share of requests answered by heads, by time", up, ticks)
    said = "served"
    if live.certificate:
        expected = live.certificate.hits
        drawing.line(across.start, up(expected), across.end, up(expected), "budget")
        said += f"; dashed: {percent(expected, 0)} expected of release {live.release}"
    hours.draw(drawing, across, up, "used f0", share)
    return "Answered by heads", [("f0", said)], drawing.markup()


def _latency(hours: Hours) -> Panel:
    wanted = (("f5", 0.99, False), ("f7", 0.5, True), ("used f0", 0.5, False))
    known = [s for part in hours.parts for _, share, whole in wanted if (s := latency(part, share, backbone=whole))]
    up = _upwards(min(known, default=1e-3) / 1.5, max(known, default=1e-3) * 1.5, log=True)
    drawing, across = hours.frame("Time of a request, by time", up, [(v, f"{1e3 * v:g} ms") for v in up.ticks(5)])
    for kind, share, whole in wanted:
        hours.draw(drawing, across, up, kind, partial(latency, share=share, backbone=whole))
    key = [("f0", "half within"), ("f5", "99%"), ("f7", "half, backbone's")]
    return "Latency", key, drawing.markup()


def _differ(hours: Hours, live: LiveChain) -> Panel:
    known = [bounds for part in hours.parts if (bounds := worst(part))]
    up = _upwards(0, max([3 * live.epsilon, *(1.2 * lower for lower, _ in known)]))
    drawing, across = hours.frame(
        "Bounds on the share of answers that differ, by time", up, [(v, percent(v)) for v in up.ticks(4)]
    )
    drawing.line(across.start, up(live.epsilon), across.end, up(live.epsilon), "budget")
    for kind, bound in (("f7", 1), ("used f5", 0)):
        hours.draw(drawing, across, up, kind, lambda part, bound=bound: (worst(part) or (0, 0))[bound])
    key = [("f5", "at least"), ("f7", f"at most; dashed: {promise(live.epsilon)} promised")]
    return "Answers that differ", key, drawing.markup()


def _upwards(low: float, high: float, *, log: bool = False) -> Scale:
    return Scale(low, high, PANEL[1] - 18, 10, log)
