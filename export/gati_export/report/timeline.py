"""What refreshes decided, turn by turn: what a request takes with the live release, and with what was learned."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from gati_export.report.drawing import Drawing, Scale
from gati_export.report.history import Turn
from gati_export.report.plots import Frame

SIZE = (660.0, 230.0)
SHOWN = 50
"""Turns, at most, that are drawn and listed: the newest."""
LABELS = 5


def timeline(turns: Sequence[Turn]) -> Markup | None:
    """Expected times of a request over turns, oldest first; None where fewer than two turns came to that.

    The line is the release that served; a dot is what was learned, large where it was published.
    """
    judged = [(turn, 1e3 * turn.live_seconds) for turn in turns if turn.live_seconds is not None]
    if len(judged) < 2:
        return None
    learned = [(i, 1e3 * turn.new_seconds, turn) for i, (turn, _) in enumerate(judged) if turn.new_seconds is not None]
    drawing = Drawing(*SIZE, f"Expected time of a request over {len(judged)} refreshes")
    frame = Frame(44, SIZE[0] - 12, 24, SIZE[1] - 32)
    across = Scale(0, len(judged) - 1, frame.left + 32, frame.right - 32)
    up = Scale(0, 1.1 * max(live for _, live in (*judged, *(each[:2] for each in learned))), frame.bottom, frame.top)
    step = max(1, len(judged) // LABELS)
    frame.draw(
        drawing,
        [(across(i), turn.at[5:16].replace("T", " ")) for i, (turn, _) in enumerate(judged) if i % step == 0],
        [(up(tick), f"{tick:g}") for tick in up.ticks(4)],
        ("refresh", "expected ms a request: line, the live release; dots, what was learned, large if published"),
    )
    drawing.path([(across(i), up(live)) for i, (_, live) in enumerate(judged)], "curve used f0")
    for i, new, turn in learned:
        published = turn.release is not None
        drawing.dot(across(i), up(new), 5 if published else 2.5, f"{'mark' if published else 'point'} f1")
    return drawing.markup()
