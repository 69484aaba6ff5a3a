"""One turn of the offline job: recent samples, heads, certificate, comparison with what serves, release."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gati.chain import Chain
from gati.errors import GatiError, PublishError, SamplesError
from gati.release import Release
from gati.settings import workspace
from gati_export.activations import Progress, learnable
from gati_export.day import named
from gati_export.evidence import backbone_bytes, measured_in, report_of
from gati_export.history import Turn, note
from gati_export.publish import Draft, OvertakenError
from gati_export.replicas import Replicas, resolved
from gati_export.report.data import Report, write
from gati_export.rollout import Rollout, publish_to, settle
from gati_export.standing import Live, Standing, judge, live_release, shut
from gati_export.store import Recorded, misfits, read_recent
from gati_export.sync import follow
from gati_export.terms import Terms
from gati_export.training import Trained, train_heads
from gati_export.trial import NEWEST, objection, parted, without_broken

BETTER = 0.02
"""How much less time a request has to take, as a share, for a release to be worth it: less is noise."""

UNSEEN = "The live release has a head before the features that are recorded, and can't be compared with."


@dataclass(frozen=True)
class Plan:
    """What to refresh, and how.

    Attributes:
        repository: The model repository.
        chain: The chain.
        store: fsspec URL of the sample store.
        window: How many of the newest samples to learn from.
        server: HOST:GRPC_PORT of the servers that shall take the release, with commas, or None to only write it.
        always: Whether to publish what is certified even where it is not faster than what serves. What breaks its
            promise on the newest samples is not published even then.
        measure: Whether to measure latencies anew, and not to take those that were measured for the release before.
        seed: Of the training.
        age: Seconds since samples were served, at most; None for any.
    """

    repository: Path
    chain: Chain
    store: str
    window: int = 20_000
    server: str | None = None
    always: bool = False
    measure: bool = False
    seed: int = 0
    age: float | None = None


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        report: What it learned.
        turn: What it decided.
        rollout: How that was published, if it was.
        objected: Whether something spoke against it that `always` does not outweigh.
        left_out: Files of the store that hold nothing to learn from (`Recorded.left_out`).
    """

    report: Report
    turn: Turn
    rollout: Rollout | None
    objected: bool = False
    left_out: int = 0

    @property
    def release(self) -> Release | None:
        """What was published."""
        return self.rollout.release if self.rollout else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "release": asdict(self.release) if self.release else None,
            "replicas": self.rollout.replicas_as_json() if self.rollout else [],
            "turn": asdict(self.turn),
            "report": self.report.as_json(),
        }


@dataclass
class _Notes:
    """What becomes a turn, as far as it is known."""

    live: Live | None
    started: float = field(default_factory=time.monotonic)
    samples: int = 0
    standing: Standing | None = None
    trained: Trained | None = None

    def turn(self, release: Release | None, why: str) -> Turn:
        """The turn that ends with this."""
        certified = self.trained is not None and self.trained.certificate is not None
        plain = sum(self.trained.segment_seconds) if self.trained else None
        return Turn(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            took=time.monotonic() - self.started,
            samples=self.samples,
            live=self.live.number if self.live else 0,
            release=release.number if release else None,
            why=why,
            plain_seconds=plain,
            live_seconds=self.standing.seconds if self.standing else None,
            new_seconds=_expected(self.trained) if self.trained and certified else None,
            live_differs=self.standing.differs if self.standing else None,
        )


def refreshed(plan: Plan, report: Progress) -> Refreshed:
    """Turns recent samples into the next release, if that is better than the one that serves.

    What was decided, and why, is kept (`gati_export.history`), also where this fails.

    Args:
        plan: What to refresh, and how.
        report: Told what is being done and how far it is.

    Raises:
        SamplesError: If there are too few samples.
        PublishError: If no heads can be certified, or the release could not be made live, or another refresh of this
            chain is at work.
        UnavailableError: If no server answers; found out before the training.
    """
    with _alone(plan):
        notes = _Notes(live_release(plan.repository, plan.chain))
        try:
            return _refreshed(plan, notes, report)
        except GatiError as error:
            note(plan.repository, plan.chain.model, notes.turn(None, str(error)))
            raise


def _refreshed(plan: Plan, notes: _Notes, report: Progress) -> Refreshed:
    repository, chain = plan.repository, plan.chain
    if plan.server is not None:
        settle(repository, chain, plan.server)
        notes.live = live_release(repository, chain)  # there may be another now
    live = notes.live
    paths = [chain.segment_path(repository, segment.index) for segment in chain.segments]
    terms = Terms.of(chain, plan.seed, chain.read_trained(repository))
    heads = live.heads if live else {}
    known = measured_in(live.report) if live and live.report and not plan.measure else None

    def learned_from(some: Recorded) -> Trained:
        notes.samples = some.window.samples
        parts = parted(some, terms)
        way = live.parts if live else None
        return train_heads(chain, paths, some.samples, parts, terms, report, heads, known=known, way=way)

    recorded, trained = without_broken(read_recent(plan.store, chain, plan.window, plan.age), learned_from)
    samples, parts = recorded.samples, parted(recorded, terms)
    notes.trained = trained
    comparable = live is None or set(live.heads) <= set(learnable(chain, samples))
    if live is not None and comparable and trained.candidates.heads:
        live = _as_it_serves(plan, live)
        notes.standing = judge(live, chain, paths, samples, parts, terms, trained, recorded.times)
    learned = report_of(chain, trained, terms, None, backbone_bytes(paths))
    if trained.certificate is None:
        write(repository, learned)
        return _shut(plan, notes, live, learned, recorded, report, trained.why_not or "")
    closed = live.closed if live is not None else ()
    why, publish = verdict(notes.standing, _expected(trained), closed) if comparable else (UNSEEN, False)
    rollout = against = None
    if publish or plan.always:
        against = objection(chain, paths, trained, parts, _newest(plan, recorded), terms, report)
        if against and notes.standing is not None and notes.standing.untenable:
            return _shut(plan, notes, live, learned, recorded, report, against)
        try:
            rollout = None if against else _publish(plan, _draft(trained, recorded, live), report)
        except OvertakenError as error:
            against = str(error)
        why = against or why
    turn = notes.turn(rollout.release if rollout else None, why)
    learned = replace(learned, release=turn.release)
    try:
        write(repository, learned)
        note(repository, chain.model, turn)
    except OSError as error:
        if rollout is None:
            raise
        turn = replace(turn, why=f"{why} That could not be written down ({error.strerror}).")
    return Refreshed(learned, turn, rollout, against is not None, recorded.left_out)


def _shut(
    plan: Plan, notes: _Notes, live: Live | None, learned: Report, recorded: Recorded, report: Progress, why_not: str
) -> Refreshed:
    """Ends a turn that has nothing to publish: shuts the live release where that should not even serve alone.

    Raises:
        PublishError: If it may, or there is none.
    """
    assert notes.trained is not None
    standing = notes.standing
    if live is None or standing is None or not standing.untenable:
        stays = "the live release stays" if live else "the backbone goes on alone"
        aside = f" Of the samples, {misfits(recorded.left_out)}." if recorded.left_out else ""
        raise PublishError(f"Nothing is published, {stays}: {why_not}{aside}")
    draft = shut(live, standing, plan.chain, len(notes.trained.outputs), recorded.window)
    rollout = _publish(plan, draft, report)
    why = f"The live release differs on {standing.differs:.2%} of the held-out samples, and is shut: {why_not}"
    turn = notes.turn(rollout.release, why)
    note(plan.repository, plan.chain.model, turn)
    return Refreshed(learned, turn, rollout, left_out=recorded.left_out)


def verdict(live: Standing | None, seconds: float, closed: Sequence[int] = ()) -> tuple[str, bool]:
    """Whether a certified release that takes `seconds` a request, expected, is better than the live one, and why.

    It is if it is faster, or if the live one does not hold, or no longer for sure.

    Args:
        live: How that does, without the exits that audits have closed.
        seconds: What the new one takes.
        closed: These exits.
    """
    if live is None:
        return "Nothing served before.", True
    shut = f", with {named(closed)} closed" if closed else ""
    times = f"{seconds * 1e3:.3g} ms a request, the live release {live.seconds * 1e3:.3g} ms{shut}"
    if live.broken:
        return f"The live release differs on {live.differs:.2%} of the held-out samples, more than promised.", True
    if seconds <= (1 - BETTER) * live.seconds:
        return f"It is faster on held-out samples: {times}.", True
    if live.lapsed:
        share = f"{live.differs:.2%} of the held-out samples"
        return f"The live release would not be certified once more: it differs on {share}.", True
    return f"It would not be faster on held-out samples: {times}.", False


def _as_it_serves(plan: Plan, live: Live) -> Live:
    """The live release with all exits that are closed; replicas say so, too, as their journals may lie elsewhere."""
    if plan.server is None:
        return live
    first = Replicas(plan.repository, plan.chain, resolved(plan.server)).closed(live.number)
    behind = [index for index in live.heads if first is not None and index >= first]
    return replace(live, closed=sorted({*live.closed, *behind}))


def _newest(plan: Plan, recorded: Recorded) -> Recorded | None:
    """What was served, and recorded in the same way, since the samples were read to learn from; None if nothing."""
    try:
        newest = read_recent(plan.store, plan.chain, NEWEST, plan.age, recorded.mark)
    except SamplesError:
        return None
    return newest if newest.content == recorded.content else None


def _expected(trained: Trained) -> float:
    """Mean seconds of a request."""
    return sum(trained.segment_seconds) / trained.speedup


def _draft(trained: Trained, recorded: Recorded, live: Live | None) -> Draft:
    if trained.certificate is None:
        raise PublishError("What has no certificate is not published.")
    return Draft(trained.heads, trained.certificate, recorded.window, "refresh", live.number if live else 0)


def _publish(plan: Plan, draft: Draft, report: Progress) -> Rollout:
    follow(plan.repository)
    return publish_to(plan.repository, plan.chain, draft, plan.server, lambda step: report(f"Publish: {step}", 1))


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """Held by the one refresh of a chain that is at work; the kernel lets go of it when that is killed."""
    folder = workspace(plan.repository)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / f"refresh-{plan.chain.model}.lock").acquire(timeout=0)
    except Timeout as error:
        raise PublishError(f"Another refresh of {plan.chain.model!r} is at work.") from error
    with lock:
        yield
