"""What recent samples teach: heads, and how the live release does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gati.errors import RepositoryError
from gati_export.activations import learnable
from gati_export.evidence import backbone_bytes, measured_in, report_of
from gati_export.latency import Measured
from gati_export.progress import Progress
from gati_export.refresh_plan import RefreshPlan
from gati_export.replicas import Replicas, resolved
from gati_export.report.data import Report, read
from gati_export.splitting import Split
from gati_export.standing import Live, Standing, judge
from gati_export.store import Recorded, read_recent
from gati_export.training import Trained, train_heads
from gati_export.trial import parted, without_broken


@dataclass(frozen=True, eq=False)
class Learned:
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


def learn(plan: RefreshPlan, live: Live | None, progress: Progress, saw: Callable[[int], None]) -> Learned:
    """Trains heads on recent samples, and judges the live release by the same ones.

    Args:
        plan: What to refresh, and how.
        live: The release that serves; None if there is none.
        progress: Told what is being done and how far it is.
        saw: Told how many samples there are.

    Raises:
        SamplesError: If there are too few samples.
        UnavailableError: If the store can't be reached.
    """
    chain = plan.chain
    paths, terms, heads = plan.segment_paths, plan.terms, live.heads if live else {}
    known = None if plan.measure else _known(plan, live)

    def learned_from(some: Recorded) -> tuple[Split, Trained]:
        saw(some.window.samples)
        parts, way = parted(some, terms), live.parts if live else None
        return parts, train_heads(chain, paths, some.samples, parts, terms, progress, heads, known=known, way=way)

    recorded, (parts, trained) = without_broken(read_recent(plan.store, chain, plan.window, plan.age), learned_from)
    samples, standing = recorded.samples, None
    comparable = live is None or set(live.heads) <= set(learnable(chain, samples))
    if live is not None and comparable and trained.candidates.heads:
        live = _as_it_serves(plan, live)
        standing = judge(live, chain, paths, samples, parts, terms, trained, recorded.times)
    report = report_of(chain, trained, terms, None, backbone_bytes(paths))
    return Learned(recorded, parts, trained, report, live, standing, comparable)


def _known(plan: RefreshPlan, live: Live | None) -> Measured | None:
    """Times that need not be measured, beside a busy server say: those of the live release, or else the newest ones."""
    try:
        report = live.report if live and live.report else read(plan.repository, plan.chain.model)
    except RepositoryError:
        return None
    return measured_in(report)


def _as_it_serves(plan: RefreshPlan, live: Live) -> Live:
    """The live release with all exits that are closed; replicas say so, too, as their journals may lie elsewhere."""
    if plan.server is None:
        return live
    first = Replicas(plan.repository, plan.chain, resolved(plan.server)).closed(live.number)
    behind = [index for index in live.heads if first is not None and index >= first]
    return replace(live, closed=sorted({*live.closed, *behind}))
