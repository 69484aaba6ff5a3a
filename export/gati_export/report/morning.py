"""The top of the page, for somebody who has ten seconds: is the promise kept, how fast is it, since when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC

from markupsafe import Markup

from gati.promise.ledger import Event
from gati_export.report.day import Day, Happening, latency, moment, named
from gati_export.report.history import Turn
from gati_export.report.hours import Panel, panels
from gati_export.report.lanes import lanes
from gati_export.report.live import LiveChain
from gati_export.report.scrape import Reading
from gati_export.report.units import duration, percent, promise

LISTED = 20
"""Happenings, at most, that are listed: the newest."""


@dataclass(frozen=True)
class Tile:
    """A number, what it is, and what to hold it against."""

    title: str
    number: str
    note: str


@dataclass(frozen=True)
class Morning:
    """What the top of the page shows.

    Attributes:
        sentence: Whether the promise is kept, for somebody who reads nothing else.
        more: How fast it is, and since when.
        bad: Whether it says that something is wrong.
        tiles: The numbers of the day; none without requests.
        exits: Share of the day's requests answered at each exit, the backbone's last; empty without requests.
        panels: The day in pictures.
        lanes: What happened, in a picture; None where nothing did.
        happenings: What happened, in words, newest first.
        now: What the servers that were asked say now, or why they say nothing, by address.
    """

    sentence: str
    more: str
    bad: bool
    tiles: Sequence[Tile]
    exits: Sequence[float]
    panels: Sequence[Panel]
    lanes: Markup | None
    happenings: Sequence[Happening]
    now: Mapping[str, Reading | str]


def morning(day: Day, live: LiveChain, turns: Sequence[Turn], now: Mapping[str, Reading | str]) -> Morning:
    """Puts together what the top of the page shows.

    Args:
        day: The last day, as replicas have written it down.
        live: What the repository has them serve.
        turns: What refreshes decided, oldest first.
        now: What servers that were asked say.
    """
    counts = day.exits
    rows, last = sum(counts.values()), live.cuts
    promised, bad = _promise(day, live)
    return Morning(
        sentence=promised,
        more=" ".join(filter(None, (_speed(day), _release(day, live), _held(day), _bypassed(day)))),
        bad=bad,
        tiles=_tiles(day, live) if rows else (),
        exits=[counts.get(exit_, 0) / rows for exit_ in range(last + 1)] if rows else (),
        panels=panels(day, live),
        lanes=lanes(day, turns, live),
        happenings=day.happenings[:LISTED],
        now=now,
    )


def _promise(day: Day, live: LiveChain) -> tuple[str, bool]:
    """Whether the promise is kept, as far as anybody knows, and whether it is known not to be."""
    promised = promise(live.epsilon)
    if day.closed:
        return _closed(day.closed, promised), True
    if day.bounds is None:
        return "No request of the last 24 hours is written down; servers write once a minute.", False
    lower, upper = day.bounds
    if lower > live.epsilon:
        return f"The promise is broken: more than {percent(lower)} of answers differ (promised: {promised}).", True
    if upper <= live.epsilon:
        return f"The promise is kept: at most {percent(upper)} of answers differ (promised: {promised}).", False
    if upper == 1:
        return f"Nothing speaks against the promise of {promised}; too few answers were audited to show it live.", False
    known = f"audits show so far that {percent(lower)} to {percent(upper)} of answers differ"
    return f"Nothing speaks against the promise of {promised}: {known}.", False


def _closed(closed: Mapping[str, Event], promised: str) -> str:
    """What is closed, where, and why: of one replica, and on how many more."""
    replica, event = next(iter(closed.items()))
    verb = "are" if len(event.closed) > 1 else "is"
    others = f" (and others on {len(closed) - 1} more)" if len(closed) > 1 else ""
    where = f"{named(event.closed).capitalize()} {verb} closed on {replica} since {short(event.at)}{others}"
    lower = event.alarm and percent(event.alarm.lower)
    return f"{where}: audits show that more than {lower} of answers differ (promised: {promised})."


def _speed(day: Day) -> str:
    minutes = day.all_minutes
    half, whole = latency(minutes, 0.5), latency(minutes, 0.5, backbone=True)
    if half is None:
        return ""
    against = "" if whole is None else f"; where the backbone had to answer, {duration(whole)}"
    rows = sum(day.exits.values())  # a server that has just started may have written down a single one
    requests = f"{rows:,} request{'s' * (rows != 1)}"
    return f"Of {requests} written down in the last 24 hours, half took at most {duration(half)}{against}."


def _release(day: Day, live: LiveChain) -> str:
    numbers = {minute.release for minute in day.latest.values()}
    if not numbers:
        return ""
    newest = max(numbers)
    if live.release is not None and live.release > newest:  # it came within the last minute, or nobody is asked
        heard = short(max(minute.at for minute in day.latest.values()))
        served = f"release {newest}" if newest else "the backbone alone"
        return f"Release {live.release} is the newest; when last heard of, {heard}, replicas served {served}."
    if not newest:
        return "No release is live: the backbone answers."
    since = f" since {short(day.went_live[newest].isoformat())}" if newest in day.went_live else ""
    behind = [replica for replica, minute in day.latest.items() if minute.release < newest]
    return f"Release {newest} serves{since}{', but not yet on ' if behind else ''}{', '.join(behind)}."


def _held(day: Day) -> str:
    held, rows = sum(minute.held for minute in day.all_minutes), sum(day.exits.values())
    if not held:
        return ""
    return f"While audits were in doubt about heads, {percent(held / rows)} of requests were left to the backbone."


def _bypassed(day: Day) -> str:
    bypassed, rows = sum(minute.bypassed for minute in day.all_minutes), sum(day.exits.values())
    if not bypassed:
        return ""
    return f"Heads took more time than they saved while {percent(bypassed / rows)} of requests went past them."


def _tiles(day: Day, live: LiveChain) -> list[Tile]:
    minutes, counts = day.all_minutes, day.exits
    rows, last = sum(counts.values()), live.cuts
    audited, agreed = day.audits
    (lower, upper), promised = day.bounds or (0.0, 1.0), promise(live.epsilon)
    whole = [duration(latency(minutes, share, backbone=True)) for share in (0.5, 0.99)]
    certified = live.certificate
    expected = f"; expected of release {live.release}: {percent(certified.hits)}" if certified else ""
    return [
        Tile(
            "Answered by heads",
            percent(1 - counts.get(last, 0) / rows),
            f"of {rows:,} requests{expected}",
        ),
        Tile(
            "Half of requests within",
            duration(latency(minutes, 0.5)),
            f"99% within {duration(latency(minutes, 0.99))}; the backbone's: {whole[0]}, {whole[1]}",
        ),
        Tile(
            "Audited hits that agree",
            percent(agreed / audited if audited else None, 2),
            f"{agreed:,} of {audited:,}",
        ),
        Tile(
            "Answers that differ",
            f"≤ {percent(upper)}" if upper < 1 else "not known",
            f"at least {percent(lower)}, with {promise(1 - live.delta)} confidence; promised: {promised}",
        ),
    ]


def short(at: str) -> str:
    """A time as a sentence has it, in UTC."""
    return moment(at).astimezone(UTC).strftime("%d %b %H:%M UTC").lstrip("0")
