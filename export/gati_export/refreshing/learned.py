"""The learning part of a refresh: trains heads on recent samples, and judges the live release by the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gati.errors import RepositoryError
from gati_export.composition.latency import Measured
from gati_export.learning.evidence import backbone_bytes, measured_in, report_of
from gati_export.learning.task import Earlier, Task
from gati_export.learning.trained import Certified, Trained
from gati_export.learning.training import train_heads
from gati_export.progress import Progress
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.standing import Live, Standing, judge
from gati_export.refreshing.trial import parted, without_broken
from gati_export.releases.replicas import Replicas, resolved
from gati_export.report.data import Report, read
from gati_export.samples.activations import learnable
from gati_export.samples.store import Recorded, read_recent


@dataclass(frozen=True, eq=False)
class Learned:
    """What a refresh has learned, before anything is decided.

    Attributes:
        recorded: The samples.
        task: What was trained for.
        trained: The heads, or why there are none.
        report: The report about them, before they are a release.
        live: The live release, with all closed exits known; None if there is none.
        standing: How the live release does on the samples; None if it was not judged.
        comparable: Whether the live release can be judged by the samples at all.
    """

    recorded: Recorded
    task: Task
    trained: Trained
    report: Report
    live: Live | None
    standing: Standing | None
    comparable: bool


def learn(plan: RefreshPlan, live: Live | None, progress: Progress, saw: Callable[[int], None]) -> Learned:
    """Trains heads on recent samples, and judges the live release by the same ones.

    Args:
        plan: What to refresh, and how.
        live: The release that serves; None if there is none.
        progress: Called with what is being done, and how far it is.
        saw: Called with the number of samples.

    Raises:
        SamplesError: If there are too few samples.
        UnavailableError: If the store can't be reached.
    """
    chain = plan.chain
    paths, terms = plan.segment_paths, plan.terms
    earlier = Earlier(live.heads, live.parts) if live else None
    known = None if plan.measure else _known(plan, live)

    def learned_from(some: Recorded) -> tuple[Task, Trained]:
        saw(some.window.samples)
        task = Task(chain, paths, some.samples, parted(some, terms), terms)
        return task, train_heads(task, progress, earlier=earlier, known=known)

    recorded, (task, trained) = without_broken(read_recent(plan.store, chain, plan.window, plan.age), learned_from)
    standing = None
    comparable = live is None or set(live.heads) <= set(learnable(chain, recorded.samples))
    if live is not None and comparable and trained.judged is not None:
        live = _as_it_serves(plan, live)
        within = trained.within if isinstance(trained, Certified) else 1.0
        standing = judge(live, task, trained.judged, within, recorded.times, progress)
    report = report_of(chain, trained, terms, None, backbone_bytes(paths))
    return Learned(recorded, task, trained, report, live, standing, comparable)


def _known(plan: RefreshPlan, live: Live | None) -> Measured | None:
    """Times measured before, so that a busy machine need not measure again: the live release's, or the newest ones."""
    try:
        report = live.report if live and live.report else read(plan.repository, plan.chain.model)
    except RepositoryError:
        return None
    return measured_in(report)


def _as_it_serves(plan: RefreshPlan, live: Live) -> Live:
    """The live release with all closed exits. Replicas are asked, too, since their journals may lie elsewhere."""
    if plan.server is None:
        return live
    first = Replicas(plan.repository, plan.chain, resolved(plan.server)).closed(live.number)
    behind = [index for index in live.heads if first is not None and index >= first]
    return replace(live, closed=sorted({*live.closed, *behind}))
