"""Numbers as a person reads them, with their units."""

from __future__ import annotations

MISSING = "—"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percents: 0.7123 is 71.2%. More digits where these would show 0 or 100 of what is neither."""
    if share is None:
        return MISSING
    while digits < 4 and 0 < share < 1 and round(100 * share, digits) in (0, 100):
        digits += 1
    return f"{100 * share:.{digits}f}%"


def promise(share: float) -> str:
    """A share without digits that say nothing: 0.01 is 1%, 0.005 is 0.5%."""
    return f"{round(100 * share, 6):g}%"


def duration(seconds: float | None) -> str:
    """A time in µs, ms or s, in three digits or so."""
    if seconds is None:
        return MISSING
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{_short(seconds * scale)} {unit}"
    return f"{_short(seconds)} s"


def size(count: int) -> str:
    """Bytes in B, kB, MB or GB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{_short(value)} {unit}" if unit != "B" else f"{count} B"
        value /= 1e3
    return f"{_short(value)} GB"


def times(factor: float) -> str:
    """A speed-up: 2.10×."""
    return f"{factor:.2f}×"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
