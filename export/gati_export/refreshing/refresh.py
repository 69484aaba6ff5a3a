"""One turn of the offline job: recent samples, heads, certificate, comparison with what serves, release."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

from gati.errors import GatiError, PublishError, UnavailableError
from gati.repository.release import Release, valid_releases
from gati.repository.workspace import workspace
from gati_export.learning.trained import Certified
from gati_export.progress import Progress
from gati_export.refreshing.decision import Decision, decide
from gati_export.refreshing.learned import Learned, learn
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.standing import Live, live_release
from gati_export.releases.publish import OvertakenError
from gati_export.releases.rollout import Rollout, publish_to, settle
from gati_export.releases.sync import follow
from gati_export.report.data import Report, forget, write
from gati_export.report.history import Turn, note


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
    learned: Learned | None = None

    def saw(self, samples: int) -> None:
        """Takes in how many samples there are to learn from."""
        self.samples = samples

    def turn(self, release: Release | None, why: str) -> Turn:
        """The turn that ends with this."""
        trained = self.learned.trained if self.learned else None
        standing = self.learned.standing if self.learned else None
        return Turn(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            took=time.monotonic() - self.started,
            samples=self.samples,
            live=self.live.number if self.live else 0,
            release=release.number if release else None,
            why=why,
            plain_seconds=trained.candidates.times.plain if trained else None,
            live_seconds=standing.seconds if standing else None,
            new_seconds=trained.seconds if isinstance(trained, Certified) else None,
            live_differs=standing.differs if standing else None,
        )


def refreshed(plan: RefreshPlan, progress: Progress) -> Refreshed:
    """Turns recent samples into the next release, if that is better than the one that serves.

    What was decided, and why, is kept (`gati_export.report.history`), also where this fails.

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
            if plan.server is not None:
                settle(plan.repository, plan.chain, plan.server)
                notes.live = live_release(plan.repository, plan.chain)  # there may be another now
            learned = notes.learned = learn(plan, notes.live, progress, notes.saw)
            decision, rollout = _carry_out(plan, decide(plan, learned, progress), progress)
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


def _carry_out(plan: RefreshPlan, decision: Decision, progress: Progress) -> tuple[Decision, Rollout | None]:
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
        return Decision(None, str(error), objected=True), None
    return decision, rollout


def _write_down(plan: RefreshPlan, turn: Turn, report: Report | None) -> Turn:
    """Keeps a turn, and the report if there is one. Returns the turn, which says so if that failed.

    Raises:
        PublishError: If that failed and nothing was published: a disk that is full now may have room for another turn.
    """
    try:
        if report is not None:
            write(plan.repository, report)
            on_disk = valid_releases(plan.repository, plan.chain)
            forget(plan.repository, plan.chain.model, {release.origin for release in on_disk})
        note(plan.repository, plan.chain.model, turn)
    except OSError as error:
        turn = replace(turn, why=f"{turn.why} That could not be written down ({error.strerror}).")
        if turn.release is None:
            raise PublishError(turn.why) from error
    return turn


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
