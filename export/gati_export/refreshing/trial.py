"""The trial of new heads on the newest samples, which came too late to train on.

A certificate holds for traffic like that which was recorded. If traffic has changed since, or shortly before, audits
would find that out from answers that were given. The trial finds it out before any is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from gati.repository.agreement import parse_agreement
from gati_export.certificates.refutation import refuted, refuted_since
from gati_export.certificates.runs import find_runs
from gati_export.certificates.sketch import sketches
from gati_export.certificates.splitting import Split, split
from gati_export.learning.candidates import ask
from gati_export.learning.course import Course
from gati_export.learning.task import Task
from gati_export.learning.trained import Certified
from gati_export.progress import Progress
from gati_export.samples.activations import BrokenSamples, open_segments
from gati_export.samples.ragged import count
from gati_export.samples.store import Recorded
from gati_export.terms import Terms

NEWEST = 2000
"""The most samples of a trial: heads that err on twice epsilon rarely pass so many."""

Used = TypeVar("Used")


def objection(task: Task, certified: Certified, newest: Recorded | None, progress: Progress) -> str | None:
    """Why certified heads must not serve after all, in a sentence; None if nothing speaks against them.

    If they keep the promise, this objects with a probability of 2 delta at most.

    Args:
        task: What they were trained for.
        certified: The heads.
        newest: Samples that were served after those that they were trained on; None if there are none.
        progress: Called with what is being done, and how far it is.
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
    """Splits recorded samples; see gati_export.certificates.splitting."""
    samples, cut = recorded.samples, recorded.content.cut
    if cut is None:
        return split(samples, find_runs(samples), terms=terms)
    return split(sketches(samples), find_runs(samples), terms=terms, content=f"features {cut}")


def without_broken(recorded: Recorded, use: Callable[[Recorded], Used]) -> tuple[Recorded, Used]:
    """Uses recorded samples without those for which the network's output is NaN or infinite.

    There can be such samples: a head may have answered them before the segments ran that break on them.

    Args:
        recorded: The samples.
        use: What to do with them. It raises BrokenSamples to have some left out, and is called again with the rest.

    Returns:
        The samples that are left, and the result of `use`.

    Raises:
        BrokenSamples: If no samples would be left, or the broken rows are none of these samples.
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
    """Which of the newest samples the heads answer otherwise than the backbone, bool [n]."""
    heads, thresholds = certified.judged.chosen, certified.certificate.thresholds
    sessions = open_segments(task.segment_paths)
    heard = ask(task.chain, sessions, heads, newest, np.arange(count(newest)), progress)
    agreement = parse_agreement(task.terms.agreement)
    return Course(*heard).served([thresholds[head.cut] for head in heads], agreement)[1]
