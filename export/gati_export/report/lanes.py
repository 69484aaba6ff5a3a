"""What happened, on one axis of time: releases, refreshes, and when exits were closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from markupsafe import Markup

from gati_export.report.day import Day, moment
from gati_export.report.drawing import Drawing, Scale
from gati_export.report.history import Turn
from gati_export.report.hours import time_ticks
from gati_export.report.live import LiveChain

LONGEST = timedelta(days=7)
SHORTEST = timedelta(hours=1)
WIDTH, LEFT, LANE = 660.0, 96.0, 30.0
APART = 20.0
"""Between two numbers of releases; one that would touch the one before is left out."""
LETTERS = 15


def lanes(day: Day, turns: Sequence[Turn], live: LiveChain) -> Markup | None:
    """A week, or as much of it as anything is known of: a lane for releases, one for refreshes, one a replica.

    A replica's lane is thick while exits of it are closed, until it was last heard of. None where nothing happened in
    that time.
    """
    releases = _releases(day, turns, live)
    refreshes = [(moment(turn.at), turn.release is not None) for turn in turns]
    known = [*releases.values(), *(when for when, _ in refreshes), *(h.at for h in day.happenings)]
    recent = [when for when in known if day.until - LONGEST <= when <= day.until]
    if not recent:
        return None
    since = min(*recent, day.until - SHORTEST)
    height = (2 + len(day.events)) * LANE + 24
    drawing = Drawing(WIDTH, height, "Releases, refreshes and closed exits by time")
    across = Scale(since.timestamp(), day.until.timestamp(), LEFT + 8, WIDTH - 14)
    for x, name in time_ticks(across, 7):
        drawing.line(x, 4, x, height - 18, "grid")
        drawing.text(x, height - 5, name, anchor="middle")
    _draw_releases(drawing, across, releases)
    _lane(drawing, 1, "refreshes")
    for when, published in refreshes:
        if when >= since:
            drawing.dot(across(when.timestamp()), _middle(1), 5 if published else 2.5, "point f1")
    _draw_closed(drawing, across, day)
    return drawing.markup()


def _releases(day: Day, turns: Sequence[Turn], live: LiveChain) -> dict[int, datetime]:
    """When each release went live, or else when it was made."""
    made = {turn.release: moment(turn.at) for turn in turns if turn.release is not None}
    if live.published is not None:
        made[live.published.number] = moment(live.published.created)
    return made | day.went_live


def _draw_releases(drawing: Drawing, across: Scale, releases: Mapping[int, datetime]) -> None:
    _lane(drawing, 0, "releases")
    free = across.start
    for number, when in sorted(releases.items(), key=lambda release: release[1]):
        x = across(when.timestamp())
        if not across.start <= x <= across.end:
            continue
        drawing.dot(x, _middle(0), 5, "point f0")
        if x >= free:
            drawing.text(x, _middle(0) - 8, str(number), "strong", "middle")
            free = x + APART


def _draw_closed(drawing: Drawing, across: Scale, day: Day) -> None:
    for lane, (replica, history) in enumerate(day.events.items(), 2):
        _lane(drawing, lane, replica)
        ends = [*(moment(event.at).timestamp() for event in history[1:]), day.heard(replica).timestamp()]
        for event, end in zip(history, ends, strict=False):  # of a file without a line that can be read, there is none
            if event.closed and end >= across.low:
                begin = across(min(max(moment(event.at).timestamp(), across.low), across.high))
                drawing.line(
                    begin, _middle(lane), max(across(min(end, across.high)), begin + 2), _middle(lane), "closed"
                )


def _lane(drawing: Drawing, lane: int, name: str) -> None:
    drawing.line(LEFT, _middle(lane), WIDTH - 6, _middle(lane), "grid")
    short = name if len(name) <= LETTERS else "…" + name[1 - LETTERS :]
    drawing.text(LEFT - 6, _middle(lane) + 4, short, "name", "end", whole=name)


def _middle(lane: int) -> float:
    return (lane + 0.6) * LANE
