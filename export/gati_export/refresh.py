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
from gati.errors import GatiError, PublishError, RepositoryError, SamplesError, UnavailableError
from gati.release import Release
from gati.settings import workspace
from gati_export.activations import learnable
from gati_export.day import named
from gati_export.evidence import backbone_bytes, measured_in, report_of
from gati_export.history import Turn, note
from gati_export.latency import Measured
from gati_export.progress import Progress
from gati_export.publish import Draft, OvertakenError
from gati_export.replicas import Replicas, resolved
from gati_export.report.data import Report, read, write
from gati_export.rollout import Rollout, publish_to, settle
from gati_export.splitting import Split
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
class RefreshPlan:
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

    @property
    def segment_paths(self) -> list[Path]:
        """The ONNX files of the chain's segments, in order."""
        return self.chain.segment_paths(self.repository)

    @property
    def terms(self) -> Terms:
        """What heads are to keep to."""
        return Terms.of(self.chain, self.seed, self.chain.read_trained(self.repository))


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


@dataclass(frozen=True, eq=False)
class _Learned:
    """What recent samples have taught, before anything is decided.

    Attributes:
        recorded: The samples.
        parts: Their parts.
        trained: The heads, or why there are none.
        report: About them, of no release as yet.
        live: The release that serves, without the exits that are closed; None if there is none.
        standing: How that does; None where it was not judged.
        comparable: Whether the samples can tell how it does.
    """

    recorded: Recorded
    parts: Split
    trained: Trained
    report: Report
    live: Live | None
    standing: Standing | None
    comparable: bool


@dataclass(frozen=True)
class _Decision:
    """What a turn is to do.

    Attributes:
        draft: What to publish; None for nothing.
        why: The reason, in a sentence.
        objected: Whether something speaks against what was learned that `always` does not outweigh.
        shuts: Whether the draft is the live release, shut; the report is of no release then.
        failed: Whether the turn ends as a failure, since there is nothing that could be published.
    """

    draft: Draft | None
    why: str
    objected: bool = False
    shuts: bool = False
    failed: bool = False


@dataclass
class _Notes:
    """What becomes a turn, as far as it is known."""

    live: Live | None
    started: float = field(default_factory=time.monotonic)
    samples: int = 0
    learned: _Learned | None = None

    def turn(self, release: Release | None, why: str) -> Turn:
        """The turn that ends with this."""
        trained = self.learned.trained if self.learned else None
        standing = self.learned.standing if self.learned else None
        certified = trained is not None and trained.certificate is not None
        return Turn(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            took=time.monotonic() - self.started,
            samples=self.samples,
            live=self.live.number if self.live else 0,
            release=release.number if release else None,
            why=why,
            plain_seconds=sum(trained.segment_seconds) if trained else None,
            live_seconds=standing.seconds if standing else None,
            new_seconds=_expected(trained) if trained and certified else None,
            live_differs=standing.differs if standing else None,
        )


def refreshed(plan: RefreshPlan, progress: Progress) -> Refreshed:
    """Turns recent samples into the next release, if that is better than the one that serves.

    What was decided, and why, is kept (`gati_export.history`), also where this fails.

    Args:
        plan: What to refresh, and how.
        progress: Told what is being done and how far it is.

    Raises:
        SamplesError: If there are too few samples.
        PublishError: If no heads can be certified, or the release could not be made live, or another refresh of this
            chain is at work, or nothing was published and the reason could not be written down.
        UnavailableError: If no server answers; found out before the training.
    """
    with _alone(plan):
        notes = _Notes(live_release(plan.repository, plan.chain))
        try:
            learned = notes.learned = _learn(plan, notes, progress)
            decision, rollout = _carry_out(plan, _decide(plan, learned, progress), progress)
        except GatiError as error:
            if notes.learned is not None or not isinstance(error, UnavailableError):  # a watch asks again and again
                _write_down(plan, notes.turn(None, str(error)), None)
            raise
        release = rollout.release if rollout else None
        numbered = None if release is None or decision.shuts else release.number
        report = replace(learned.report, release=numbered)
        turn = _write_down(plan, notes.turn(release, decision.why), report)
        if decision.failed:
            raise PublishError(turn.why)
        return Refreshed(report, turn, rollout, decision.objected, learned.recorded.left_out)


def _learn(plan: RefreshPlan, notes: _Notes, progress: Progress) -> _Learned:
    """Trains heads on recent samples, and judges the live release by the same ones."""
    repository, chain = plan.repository, plan.chain
    if plan.server is not None:
        settle(repository, chain, plan.server)
        notes.live = live_release(repository, chain)  # there may be another now
    live = notes.live
    paths, terms, heads = plan.segment_paths, plan.terms, live.heads if live else {}
    known = None if plan.measure else _known(plan, live)

    def learned_from(some: Recorded) -> Trained:
        notes.samples = some.window.samples
        parts = parted(some, terms)
        way = live.parts if live else None
        return train_heads(chain, paths, some.samples, parts, terms, progress, heads, known=known, way=way)

    recorded, trained = without_broken(read_recent(plan.store, chain, plan.window, plan.age), learned_from)
    samples, parts, standing = recorded.samples, parted(recorded, terms), None
    comparable = live is None or set(live.heads) <= set(learnable(chain, samples))
    if live is not None and comparable and trained.candidates.heads:
        live = _as_it_serves(plan, live)
        standing = judge(live, chain, paths, samples, parts, terms, trained, recorded.times)
    report = report_of(chain, trained, terms, None, backbone_bytes(paths))
    return _Learned(recorded, parts, trained, report, live, standing, comparable)


def _known(plan: RefreshPlan, live: Live | None) -> Measured | None:
    """Times that need not be measured, beside a busy server say: those of the live release, or else the newest ones."""
    try:
        report = live.report if live and live.report else read(plan.repository, plan.chain.model)
    except RepositoryError:
        return None
    return measured_in(report)


def _decide(plan: RefreshPlan, learned: _Learned, progress: Progress) -> _Decision:
    """Whether what was learned is to be published; tries it on the newest samples first."""
    live, standing, trained = learned.live, learned.standing, learned.trained
    if trained.certificate is None:
        return _without_new_heads(plan, learned, trained.why_not or "")
    closed = live.closed if live is not None else ()
    why, better = verdict(standing, _expected(trained), closed) if learned.comparable else (UNSEEN, False)
    if not better and not plan.always:
        return _Decision(None, why)
    newest = _newest(plan, learned.recorded)
    against = objection(plan.chain, plan.segment_paths, trained, learned.parts, newest, plan.terms, progress)
    if against is None:
        return _Decision(_draft(trained, learned.recorded, live), why)
    if standing is not None and standing.untenable:
        return _without_new_heads(plan, learned, against)
    return _Decision(None, against, objected=True)


def _without_new_heads(plan: RefreshPlan, learned: _Learned, why_not: str) -> _Decision:
    """What to do where no new heads can be published: shut the live release if it must not go on, else nothing."""
    live, standing, recorded = learned.live, learned.standing, learned.recorded
    if live is None or standing is None or not standing.untenable:
        stays = "the live release stays" if live else "the backbone goes on alone"
        aside = f" Of the samples, {misfits(recorded.left_out)}." if recorded.left_out else ""
        return _Decision(None, f"Nothing is published, {stays}: {why_not}{aside}", failed=True)
    draft = shut(live, standing, plan.chain, len(learned.trained.outputs), recorded.window)
    why = f"The live release differs on {standing.differs:.2%} of the held-out samples, and is shut: {why_not}"
    return _Decision(draft, why, shuts=True)


def _carry_out(plan: RefreshPlan, decision: _Decision, progress: Progress) -> tuple[_Decision, Rollout | None]:
    """Publishes what was decided on; the decision is changed where another release was published meanwhile.

    Raises:
        PublishError: If the release could not be made live.
        UnavailableError: If no server answers.
    """
    if decision.draft is None:
        return decision, None
    follow(plan.repository)
    try:
        rollout = publish_to(
            plan.repository, plan.chain, decision.draft, plan.server, lambda step: progress(f"Publish: {step}", 1)
        )
    except OvertakenError as error:
        return _Decision(None, str(error), objected=True), None
    return decision, rollout


def _write_down(plan: RefreshPlan, turn: Turn, report: Report | None) -> Turn:
    """Keeps a turn, and the report if there is one. Returns the turn, which says so if that failed.

    Raises:
        PublishError: If that failed and nothing was published: a disk that is full now may have room for another turn.
    """
    try:
        if report is not None:
            write(plan.repository, report)
        note(plan.repository, plan.chain.model, turn)
    except OSError as error:
        turn = replace(turn, why=f"{turn.why} That could not be written down ({error.strerror}).")
        if turn.release is None:
            raise PublishError(turn.why) from error
    return turn


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


def _as_it_serves(plan: RefreshPlan, live: Live) -> Live:
    """The live release with all exits that are closed; replicas say so, too, as their journals may lie elsewhere."""
    if plan.server is None:
        return live
    first = Replicas(plan.repository, plan.chain, resolved(plan.server)).closed(live.number)
    behind = [index for index in live.heads if first is not None and index >= first]
    return replace(live, closed=sorted({*live.closed, *behind}))


def _newest(plan: RefreshPlan, recorded: Recorded) -> Recorded | None:
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


@contextmanager
def _alone(plan: RefreshPlan) -> Iterator[None]:
    """Held by the one refresh of a chain that is at work; the kernel lets go of it when that is killed."""
    folder = workspace(plan.repository)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / f"refresh-{plan.chain.model}.lock").acquire(timeout=0)
    except Timeout as error:
        raise PublishError(f"Another refresh of {plan.chain.model!r} is at work.") from error
    with lock:
        yield
