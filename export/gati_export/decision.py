"""What a refresh decides: whether what was learned takes the place of what serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gati.errors import SamplesError
from gati_export.day import named
from gati_export.learned import Learned
from gati_export.progress import Progress
from gati_export.publish import Draft
from gati_export.refresh_plan import RefreshPlan
from gati_export.standing import Standing, shut
from gati_export.store import Recorded, misfits, read_recent
from gati_export.trained import NoHeads
from gati_export.trial import NEWEST, objection

BETTER = 0.02
"""How much less time a request has to take, as a share, for a release to be worth it: less is noise."""

UNSEEN = "The live release has a head before the features that are recorded, and can't be compared with."


@dataclass(frozen=True)
class Decision:
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


def decide(plan: RefreshPlan, learned: Learned, progress: Progress) -> Decision:
    """Whether what was learned is to be published; tries it on the newest samples first."""
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
    """What to do where no new heads can be published: shut the live release if it must not go on, else nothing."""
    live, standing, recorded = learned.live, learned.standing, learned.recorded
    if live is None or standing is None or not standing.untenable:
        stays = "the live release stays" if live else "the backbone goes on alone"
        aside = f" Of the samples, {misfits(recorded.left_out)}." if recorded.left_out else ""
        return Decision(None, f"Nothing is published, {stays}: {why_not}{aside}", failed=True)
    draft = shut(live, standing, learned.task.chain, len(learned.task.split.calibrate), recorded.window)
    why = f"The live release differs on {standing.differs:.2%} of the held-out samples, and is shut: {why_not}"
    return Decision(draft, why, shuts=True)


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
        share = f"{live.differs:.2%} of the held-out samples, too many of so few to show that it keeps its promise"
        return f"The live release would not be certified once more: it differs on {share}.", True
    return f"It would not be faster on held-out samples: {times}.", False


def _newest(plan: RefreshPlan, recorded: Recorded) -> Recorded | None:
    """What was served, and recorded in the same way, since the samples were read to learn from; None if nothing."""
    try:
        newest = read_recent(plan.store, plan.chain, NEWEST, plan.age, recorded.mark)
    except SamplesError:
        return None
    return newest if newest.content == recorded.content else None
