"""A day of a served chain, as its replicas have written it down: minute by minute, and what their breakers did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from gati.promise.ledger import Event
from gati.repository.workspace import workspace
from gati.system.journal import decoded
from gati.telemetry.histogram import quantile
from gati.telemetry.minutes import Minute

Line = TypeVar("Line", Minute, Event)

DAY = timedelta(days=1)
PRESENT = timedelta(minutes=30)
"""A replica that was heard of so long before the last that was is taken to be gone: in a cluster, names come and go."""
AHEAD = timedelta(minutes=15)
"""How far a replica's clock may be ahead of the reader's."""
RECENT = timedelta(days=3)
"""If no replica had requests, one whose breaker was silent for so long counts as gone, unless it serves the live
release."""


@dataclass(frozen=True)
class Happening:
    """Something that happened at a replica, in words, and whether somebody should look at it."""

    at: datetime
    replica: str
    words: str
    bad: bool


@dataclass(frozen=True)
class Day:
    """What replicas did up to a moment.

    Attributes:
        until: The moment.
        minutes: The last day's minutes with requests, of each replica that had any, oldest first.
        events: What the breaker of each of them remembers, oldest first; of all replicas, where none had requests.
        release: The live release; None if there is none, or it is not known.
    """

    until: datetime
    minutes: Mapping[str, Sequence[Minute]]
    events: Mapping[str, Sequence[Event]]
    release: int | None = None

    @property
    def all_minutes(self) -> list[Minute]:
        """The minutes of all replicas."""
        return [minute for minutes in self.minutes.values() for minute in minutes]

    @property
    def latest(self) -> dict[str, Minute]:
        """The last minute of each replica that may still be there, and not of those whose names nobody has now."""
        last = {replica: minutes[-1] for replica, minutes in self.minutes.items()}
        newest = max((moment(minute.at) for minute in last.values()), default=self.until)
        heard = min(newest, self.until)  # a clock that is ahead makes nobody else be gone
        return {replica: minute for replica, minute in last.items() if heard - moment(minute.at) <= PRESENT}

    @property
    def exits(self) -> dict[int, int]:
        """Rows answered, by exit."""
        return exits(self.all_minutes)

    @property
    def audits(self) -> tuple[int, int]:
        """Hits audited, and those of them that the backbone agreed with."""
        minutes = self.all_minutes
        return sum(minute.audited for minute in minutes), sum(minute.agreed for minute in minutes)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Bounds on the share of answers that differ, of the replica that may be worst; None without requests."""
        return worst(self.latest.values())

    @property
    def closed(self) -> dict[str, Event]:
        """What closed exits, of each replica where some are closed and that may still be there."""
        present = self.present
        return {
            replica: next(e for e in events if (e.release, e.alarm) == (events[-1].release, events[-1].alarm))
            for replica, events in self.events.items()
            if replica in present and events and events[-1].closed
        }

    @property
    def present(self) -> set[str]:
        """Replicas that may still be there."""
        return {*self.latest} or {replica for replica, events in self.events.items() if self._idle(events)}

    def heard(self, replica: str) -> datetime:
        """Until when something is known of a replica: until now, if it may still be there."""
        if replica in self.present:
            return self.until
        last = [*self.minutes.get(replica, ())[-1:], *self.events.get(replica, ())[-1:]]
        return max((moment(line.at) for line in last), default=self.until)

    def _idle(self, events: Sequence[Event]) -> bool:
        """Whether a replica without requests may still be there."""
        last = events[-1] if events else None
        return last is not None and (last.release == self.release or self.until - moment(last.at) <= RECENT)

    def closed_exits(self, release: int) -> list[int]:
        """The exits of a release that are closed at one replica or another, if they serve it."""
        last = [event for event in self.closed.values() if event.release == release]
        return sorted({exit_ for event in last for exit_ in event.closed})

    @property
    def went_live(self) -> dict[int, datetime]:
        """When each release went live at the first replica, as far as that is remembered."""
        found: dict[int, datetime] = {}
        for event in (event for events in self.events.values() for event in events):
            found[event.release] = min(found.get(event.release, self.until), moment(event.at))
        return found

    @property
    def happenings(self) -> list[Happening]:
        """What happened at replicas, newest first."""
        found = []
        for replica, events in self.events.items():
            for before, now in zip([None, *events], events, strict=False):
                found.append(Happening(moment(now.at), replica, *_words(before, now)))
        return sorted(found, key=lambda happening: happening.at)[::-1]  # of one second, the later first


def read_day(
    repository: Path,
    model: str,
    until: datetime | None = None,
    *,
    cuts: int | None = None,
    release: int | None = None,
) -> Day:
    """Reads what a chain's replicas have written down. What is damaged is passed over.

    Args:
        repository: The model repository.
        model: The chain's name.
        until: The end of the day; now, by default.
        cuts: The chain's number of cut points: minutes of one with others, which had its name before, are left out.
        release: The live release, if it is known: where nobody had requests, it tells who may still be there.
    """
    until = until or datetime.now(UTC)
    minutes: dict[str, list[Minute]] = {}
    for replica, path in _journals(repository, "minutes", model):
        of_day = [minute for minute in _dated(Minute, path) if until - DAY <= moment(minute.at) <= until + AHEAD]
        of_day = [minute for minute in of_day if cuts is None or minute.backbone in (cuts, -1)]
        if of_day:
            minutes[replica] = of_day
    events = {replica: _dated(Event, path) for replica, path in _journals(repository, "breaker", model)}
    replicas = minutes or events
    return Day(until, minutes, {replica: events[replica] for replica in replicas if replica in events}, release)


def exits(minutes: Iterable[Minute]) -> dict[int, int]:
    """Rows answered in some minutes, by exit."""
    counts: Counter[int] = Counter()
    for minute in minutes:
        counts.update(minute.exits)
    return dict(sorted(counts.items()))


def latency(minutes: Iterable[Minute], share: float, *, backbone: bool = False) -> float | None:
    """Seconds within which a share of the requests of some minutes were answered; None without requests.

    Args:
        minutes: The minutes.
        share: The share.
        backbone: Count only requests that ran the whole network.
    """
    counts: Counter[int] = Counter()
    for minute in minutes:
        counts.update(minute.backbone_times if backbone else minute.times)
    return quantile(counts, share)


def worst(minutes: Iterable[Minute]) -> tuple[float, float] | None:
    """The highest lower bound and the highest upper bound on the share of differing answers; None without minutes."""
    bounds = [(minute.lower, minute.upper) for minute in minutes]
    return (max(lower for lower, _ in bounds), max(upper for _, upper in bounds)) if bounds else None


def moment(at: str) -> datetime:
    """A time of a line; one that names no zone is in UTC."""
    when = datetime.fromisoformat(at)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _journals(repository: Path, what: str, model: str) -> list[tuple[str, Path]]:
    """Replicas and their files."""
    return [(path.stem, path) for path in sorted((workspace(repository) / what / model).glob("*.jsonl"))]


def _dated(kind: type[Line], path: Path) -> list[Line]:
    """A file's lines, less those whose time is none."""
    found = []
    for line in decoded(kind, path):
        with suppress(ValueError):
            moment(line.at)
            found.append(line)
    return found


def _words(before: Event | None, now: Event) -> tuple[str, bool]:
    """What an event says after the one before, and whether somebody should look."""
    names = named(now.closed)
    if before is not None and now.release == before.release and now.alarm is not None and now.alarm != before.alarm:
        return f"Closed {names}: {now.alarm}.", True
    if before is not None and now.release == before.release:
        return f"The server started again{f', with {names} closed' if now.closed else ''}.", bool(now.closed)
    again = [] if before is None else [exit_ for exit_ in before.closed if exit_ not in now.closed]
    opened = f", and opened {named(again)} again" if again else ""
    return f"Release {now.release} went live{opened}{f', with {names} closed' if now.closed else ''}.", bool(now.closed)


def named(closed: Sequence[int]) -> str:
    """Exits in words."""
    return f"exit{'s' * (len(closed) > 1)} {' and '.join(map(str, closed))}"
