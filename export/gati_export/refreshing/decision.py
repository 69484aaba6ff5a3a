"""The decision of a refresh: whether the new heads replace the live release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gati.errors import SamplesError
from gati_export.learning.trained import NoHeads
from gati_export.progress import Progress
from gati_export.refreshing.learned import Learned
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.standing import Standing, shut
from gati_export.refreshing.trial import NEWEST, objection
from gati_export.releases.publish import Draft
from gati_export.report.day import named
from gati_export.samples.store import Recorded, misfits, read_recent

BETTER = 0.02
"""By how much, as a share, a release has to be faster than the live one to be published: less is noise."""

UNSEEN = "The live release has a head before the features that are recorded, and can't be compared with."


@dataclass(frozen=True)
class Decision:
    """What a refresh is to do.

    Attributes:
        draft: What to publish; None for nothing.
        why: The reason, in a sentence.
        objected: Whether the trial objected to the new heads, which `always` does not overrule.
        shuts: Whether the draft is the live release, shut. The report then belongs to no release.
        failed: Whether the refresh ends as a failure, because there is nothing to publish.
    """

    draft: Draft | None
    why: str
    objected: bool = False
    shuts: bool = False
    failed: bool = False


def decide(plan: RefreshPlan, learned: Learned, progress: Progress) -> Decision:
    """Decides whether to publish the new heads; puts them on trial with the newest samples first."""
    live, standing, trained = learned.live, learned.standing, learned.trained
    if isinstance(trained, NoHeads):
        return _without_new_heads(learned, trained.why)
    closed = live.closed if live is not None else ()
    why, better = verdict(standing, trained.seconds, closed) if learned.comparable else (UNSEEN, False)
    if not better and not plan.always:
        return Decision(None, why)
    newest = _newest(plan, learned.recorded)
    against = objection(learned.task, trained, newest, progress)
    if against is None:
        window, origin = learned.recorded.window, live.number if live else 0
        return Decision(Draft(trained.heads, trained.certificate, window, "refresh", origin), why)
    if standing is not None and standing.untenable:
        return _without_new_heads(learned, against)
    return Decision(None, against, objected=True)


def _without_new_heads(learned: Learned, why_not: str) -> Decision:
    """What to do if no new heads can be published: shut the live release if it must not go on, else nothing."""
    live, standing, recorded = learned.live, learned.standing, learned.recorded
    if live is None or standing is None or not standing.untenable:
        stays = "the live release stays" if live else "the backbone goes on alone"
        aside = f" Of the samples, {misfits(recorded.left_out)}." if recorded.left_out else ""
        return Decision(None, f"Nothing is published, {stays}: {why_not}{aside}", failed=True)
    draft = shut(live, standing, learned.task.chain, len(learned.task.split.calibrate), recorded.window)
    why = f"The live release differs on {standing.differs:.2%} of the held-out samples, and is shut: {why_not}"
    return Decision(draft, why, shuts=True)


def verdict(live: Standing | None, seconds: float, closed: Sequence[int] = ()) -> tuple[str, bool]:
    """Whether certified heads are better than the live release, and why, in a sentence.

    They are if they are faster, or if the live release breaks its promise, or would not be certified once more.

    Args:
        live: How the live release does, without closed exits; None if there is none.
        seconds: Expected time of a request with the new heads.
        closed: The live release's closed exits.
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
        share = f"{live.differs:.2%} of the held-out samples, too many of so few to show that it keeps its promise"
        return f"The live release would not be certified once more: it differs on {share}.", True
    return f"It would not be faster on held-out samples: {times}.", False


def _newest(plan: RefreshPlan, recorded: Recorded) -> Recorded | None:
    """Samples of the same content that were recorded after those that were trained on; None if there are none."""
    try:
        newest = read_recent(plan.store, plan.chain, NEWEST, plan.age, recorded.mark)
    except SamplesError:
        return None
    return newest if newest.content == recorded.content else None
