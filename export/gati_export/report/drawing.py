"""Drawings: SVG that goes into a page and takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup


class Drawing:
    """An SVG picture, to be read by people who see it and, by its label, by those who don't.

    Sizes and places are in units of the drawing, which the page scales; y grows downwards.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height = width, height
        self._root = ElementTree.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img"})
        ElementTree.SubElement(self._root, "title").text = label

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line; `kind` is its class in the style sheet."""
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        if points:
            self._add("polyline", kind, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        """A disc."""
        self._add("circle", kind, cx=x, cy=y, r=radius)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start", whole: str = "") -> None:
        """Words whose base line begins, or by `anchor` has its middle or end, at a point.

        Args:
            x: Of the point.
            y: Of the point.
            words: What is seen.
            kind: Class in the style sheet.
            anchor: `start`, `middle` or `end`.
            whole: What a pointer that rests on it is told, where the words are cut short.
        """
        element = self._add("text", kind, x=x, y=y)
        element.set("text-anchor", anchor)
        element.text = words
        if whole not in ("", words):
            ElementTree.SubElement(element, "title").text = whole

    def markup(self) -> Markup:
        """The picture, as it goes into a page. All text in it is escaped."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))

    def _add(self, tag: str, kind: str, **places: float | str) -> ElementTree.Element:
        written = {name: f"{place:.1f}" if isinstance(place, float) else str(place) for name, place in places.items()}
        return ElementTree.SubElement(self._root, tag, written | ({"class": kind} if kind else {}))


@dataclass(frozen=True)
class Scale:
    """From values to places on an axis.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Place of the lowest value.
        end: Place of the highest.
        log: Whether equal ratios, not equal differences, are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round values on the axis: about `count` of them, or on a logarithmic axis 1, 2 and 5 of each power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return self._within([digit * 10.0**power for power in powers for digit in (1, 2, 5)])
        if self.high <= self.low:
            return [self.low]
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return self._within([i * step for i in range(first, first + 2 * count + 2)])

    def _within(self, values: list[float]) -> list[float]:
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        return [value for value in values if self.low - slack <= value <= self.high + slack]


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: near those wanted, in their order, at least `gap` apart, and within low..high if all fit.

    Args:
        wanted: Places, in any order.
        gap: Between two labels.
        low: Of the first label, at least.
        high: Of the last one, at most.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places: list[float] = []
    for i in order:
        places.append(max(wanted[i], low if not places else places[-1] + gap))
    for k in reversed(range(len(places))):
        limit = high if k == len(places) - 1 else places[k + 1] - gap
        places[k] = min(places[k], limit)
    found = [0.0] * len(wanted)
    for k, i in enumerate(order):
        found[i] = places[k]
    return found
