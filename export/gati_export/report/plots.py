"""The plots of a report: agreement against coverage at each cut point, and speed-up against the promise."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from markupsafe import Markup

from gati_export.report.data import Cut, Report, TriedHead
from gati_export.report.drawing import Drawing, Scale, spread
from gati_export.report.units import percent, promise, times

COLORS = 8
"""Colours in the style sheet; a ninth family has the first one's again, and its name beside its line."""
NAME = 11
"""Letters of a family's name that fit beside a plot."""
PANEL = (320.0, 190.0)
FRONT = (340.0, 236.0)
FEWEST = 0.01
"""Share of the samples below which agreement is a matter of luck, and not drawn."""
FAR = 2.5
"""An oracle that is so many times as fast as the fastest composition is said, not drawn, so that the rest is seen."""


def color(report: Report, family: str) -> str:
    """Class of a family's colour."""
    return f"f{report.families.index(family) % COLORS}"


class Heights:
    """Heights for shares that agree: by the cube root of the share that differs, so that the last percents are seen."""

    def __init__(self, report: Report, bottom: float, top: float) -> None:
        lowest = min((share for cut in report.cuts for o in cut.options for share in o.agrees), default=0.0)
        low = max(share for share in (0.0, 0.5, 0.8, 0.9) if share <= lowest)
        self._scale = Scale(_spread(low), _spread(1), bottom, top)
        self.ticks = [share for share in (0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1) if share >= low]

    def __call__(self, share: float) -> float:
        """Height of a share."""
        return self._scale(max(_spread(share), self._scale.low))


def _spread(share: float) -> float:
    return -math.cbrt(1 - min(share, 1.0))


Ticks = list[tuple[float, str]]
"""Places on an axis, and what is written there."""


@dataclass(frozen=True)
class Frame:
    """Where in a drawing its plot is."""

    left: float
    right: float
    top: float
    bottom: float

    def draw(self, drawing: Drawing, across: Ticks, up: Ticks, titles: tuple[str, str]) -> None:
        """Draws grid, numbers and titles of the axis across and of the one upwards."""
        for x, number in across:
            drawing.line(x, self.top, x, self.bottom, "grid")
            drawing.text(x, self.bottom + 12, number, anchor="middle")
        for y, number in up:
            drawing.line(self.left, y, self.right, y, "grid")
            drawing.text(self.left - 4, y + 3.5, number, anchor="end")
        drawing.text((self.left + self.right) / 2, drawing.height - 3, titles[0], "axis", "middle")
        drawing.text(2, 9, titles[1], "axis")


def curves(report: Report, cut: Cut) -> Markup:
    """Agreement against coverage of all heads tried at a cut point, the one in use in bold with its threshold marked.

    All cut points of a report have the same axes.
    """
    width, height = PANEL
    frame = Frame(36, width - 84, 20, height - 30)
    across, up = Scale(0, 1, frame.left, frame.right), Heights(report, frame.bottom, frame.top)
    drawing = Drawing(width, height, _described(cut))
    frame.draw(
        drawing,
        [(across(share), f"{100 * share:g}") for share in (0, 0.25, 0.5, 0.75, 1)],
        [(up(share), f"{100 * share:g}") for share in up.ticks],
        ("requests answered, %", "agreement, %"),
    )
    budget = [(x, 1 - report.epsilon / x) for x in (report.epsilon + i / 200 for i in range(200)) if x <= 1]
    drawing.path([(across(x), up(y)) for x, y in budget if up(y) < frame.bottom], "budget")
    shown = sorted((option for option in cut.options if option.coverage), key=lambda option: option.used)
    for option in shown:
        pairs = list(zip(option.coverage, option.agrees, strict=True))
        points = [(across(x), up(y)) for x, y in pairs if x >= min(FEWEST, pairs[-1][0])]
        drawing.path(points, f"curve {color(report, option.family)}" + " used" * option.used)
    _name_curves(drawing, report, shown, [(across(o.coverage[-1]), up(o.agrees[-1])) for o in shown], frame)
    for option in shown:
        if option.covered:
            _mark(drawing, (across(option.covered), up(_at(option))), frame, color(report, option.family))
    return drawing.markup()


def _described(cut: Cut) -> str:
    """What a panel shows, for those who don't see it."""
    used = next((option for option in cut.options if option.used), None)
    said = f"Exit {cut.index}: agreement against requests answered of {len(cut.options)} heads"
    if used is None:
        return f"{said}, none in use"
    if used.covered is None:
        return f"{said}; {used.family} is in use"
    return (
        f"{said}; {used.family}, in use, would answer {percent(used.covered)}, and {percent(_at(used), 2)} of it right"
    )


def _name_curves(
    drawing: Drawing, report: Report, options: list[TriedHead], ends: list[tuple[float, float]], frame: Frame
) -> None:
    """Families' names to the right, each joined to its line's end."""
    edge = frame.right
    for option, end, y in zip(options, ends, spread([y for _, y in ends], 12, frame.top, frame.bottom), strict=True):
        name = option.family if len(option.family) <= NAME else option.family[: NAME - 1] + "…"
        drawing.path([end, (edge, end[1]), (edge + 8, y)], f"leader {color(report, option.family)}")
        drawing.text(edge + 11, y + 3.5, name, "strong" if option.used else "name", whole=option.family)


def _mark(drawing: Drawing, place: tuple[float, float], frame: Frame, kind: str) -> None:
    """Where the threshold of a head in use stands on its curve."""
    x, y = place
    drawing.line(x, y, x, frame.bottom, f"threshold {kind}")
    drawing.dot(x, y, 4, f"mark {kind}")


def _at(option: TriedHead) -> float:
    """Agreement at a head's threshold, read from its curve."""
    place = bisect_left(option.coverage, (option.covered or 0) - 1e-4)
    return option.agrees[min(place, len(option.agrees) - 1)] if option.agrees else 0.0


def front(report: Report) -> Markup:
    """Speed-up of the best compositions against the promise, with this release and the oracle."""
    width, height = FRONT
    frame = Frame(36, width - 12, 24, height - 32)
    epsilons = [report.epsilon, *(point.epsilon for point in report.pareto)]
    speedups = [1.0, report.speedup, *(point.speedup for point in report.pareto)]
    far = report.oracle_speedup > FAR * max(speedups)
    upper = max(*speedups, 1.1 if far else report.oracle_speedup)
    log = max(epsilons) > 4 * min(epsilons)
    across = Scale(*_padded(min(epsilons), max(epsilons), log), frame.left, frame.right, log)
    up = Scale(*_padded(min(speedups), upper, False), frame.bottom, frame.top)
    drawing = Drawing(width, height, _front_described(report))
    frame.draw(
        drawing,
        [(across(epsilon), f"{100 * epsilon:g}") for epsilon in across.ticks(5)],
        [(up(speedup), f"{speedup:g}") for speedup in up.ticks(5)],
        ("ε: answers that may differ, %", "expected speed-up, × the backbone"),
    )
    y = up.end if far else up(report.oracle_speedup)
    drawing.line(frame.left, y, frame.right, y, "oracle")
    said = f"oracle {times(report.oracle_speedup)}" + (", far above this scale" if far else "")
    drawing.text(frame.left + 4, y + (12 if y < frame.top + 14 else -5), said, "strong")
    _front_line(drawing, report, across, up)
    return drawing.markup()


def _front_line(drawing: Drawing, report: Report, across: Scale, up: Scale) -> None:
    points = sorted((across(point.epsilon), up(point.speedup)) for point in report.pareto)
    drawing.path(points, "curve used f0")
    for x, y in points:
        drawing.dot(x, y, 2.5, "point f0")
    x = across(report.epsilon)
    drawing.line(x, up.start, x, up.end, "threshold")
    to_right = x < (across.start + across.end) / 2
    place, anchor = (x + 8, "start") if to_right else (x - 8, "end")
    if report.certificate is None:
        drawing.text(place, up.start - 8, f"ε = {promise(report.epsilon)}: no heads", "strong", anchor)
        return
    y = up(report.speedup)
    drawing.dot(x, y, 5, "mark f1")
    # below the line on its right, above it on its left: there the front, which rises, leaves room
    lift = 16 if to_right else -16
    drawing.text(place, y + lift, f"this release: {times(report.speedup)}", "strong", anchor)


def _front_described(report: Report) -> str:
    ends = sorted(report.pareto, key=lambda point: point.epsilon)
    said = f"Expected speed-up against ε; this release has {times(report.speedup)} at {promise(report.epsilon)}"
    if not ends:
        return said
    a, b = ends[0], ends[-1]
    reach = f"from {times(a.speedup)} at {promise(a.epsilon)} to {times(b.speedup)} at {promise(b.epsilon)}"
    return f"{said}; the best compositions go {reach}"


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    """A range with room at its ends, so that no point lies on the frame."""
    if log:
        return low / 1.25, high * 1.25
    room = (high - low) * 0.06 or 0.5 * low
    return low - room, high + room
