"""The trial of what was learned, by samples that came too late to learn from.

A certificate speaks of traffic like that which was recorded. Where traffic has changed since, or shortly before, the
breaker would find that out from answers that were given: here it is found out before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from gati_export.activations import BrokenSamples, open_segments
from gati_export.candidates import ask
from gati_export.progress import Progress
from gati_export.ragged import count
from gati_export.refutation import refuted, refuted_since
from gati_export.runs import find_runs
from gati_export.sketch import sketches
from gati_export.splitting import Split, split
from gati_export.standing import served
from gati_export.store import Recorded
from gati_export.task import Task
from gati_export.terms import Terms
from gati_export.trained import Certified

NEWEST = 2000
"""Samples that a trial takes, at most: a share of errors of twice epsilon rarely passes as many."""

Used = TypeVar("Used")


def objection(task: Task, certified: Certified, newest: Recorded | None, progress: Progress) -> str | None:
    """Why what was learned and certified must not serve, in a sentence; None if nothing speaks against it.

    Where the promise is kept, this objects with probability 2 delta at most.

    Args:
        task: What was to be learned.
        certified: What came of it.
        newest: Samples that were served after those that it was learned from; None if there are none.
        progress: Told what is being done and how far that is.
    """
    terms, wrong, groups = task.terms, certified.wrong, task.split.groups[task.split.calibrate]
    if newest is not None:
        newest, errors = without_broken(newest, lambda some: _errors(task, certified, some.samples, progress))
        late = parted(newest, terms).groups
        if refuted(errors, late, terms):
            share = f"{errors.mean():.2%} of {len(errors):,} samples that were served while it was learned"
            return f"Traffic has changed: it would differ on {share}, more than promised."
        wrong, groups = np.concatenate([wrong, errors]), np.concatenate([groups, late + groups.max(initial=-1) + 1])
    if refuted_since(wrong, groups, terms):
        return "Traffic has changed: it would differ on more of the newest samples held out than promised."
    return None


def parted(recorded: Recorded, terms: Terms) -> Split:
    """Splits recorded samples; see gati_export.splitting."""
    samples, cut = recorded.samples, recorded.content.cut
    if cut is None:
        return split(samples, find_runs(samples), terms=terms)
    return split(sketches(samples), find_runs(samples), terms=terms, content=f"features {cut}")


def without_broken(recorded: Recorded, use: Callable[[Recorded], Used]) -> tuple[Recorded, Used]:
    """Uses recorded samples, leaving out those for which the network gives NaN or infinite numbers.

    Served samples can be such: a head may have answered them before the segments that break ran.

    Args:
        recorded: The samples.
        use: What to do with them; raises BrokenSamples to have some left out, and is called again with the rest.

    Returns:
        The samples that are left, and what `use` made of them.

    Raises:
        BrokenSamples: If none would be left, or the broken rows are not among these samples.
    """
    while True:
        try:
            return recorded, use(recorded)
        except BrokenSamples as error:
            rows = error.rows[error.rows < recorded.window.samples]  # behind them are views of them
            if not 0 < len(rows) < recorded.window.samples:
                raise
            recorded = recorded.without(rows)


def _errors(task: Task, certified: Certified, newest: Mapping[str, np.ndarray], progress: Progress) -> np.ndarray:
    """Which of the newest samples it does not answer as the backbone does, bool [n]."""
    heads, thresholds = certified.judged.chosen, certified.certificate.thresholds
    sessions = open_segments(task.segment_paths)
    said, outputs = ask(task.chain, sessions, heads, newest, np.arange(count(newest)), progress)
    return served(said, [thresholds[head.cut] for head in heads], outputs, task.terms)[1]
