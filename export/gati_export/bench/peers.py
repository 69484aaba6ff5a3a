"""The peers' ways, on the chain's own segments and samples: what their papers would serve here.

`gati` (arXiv 2101.07344) and `knn` (Freeze Inference, arXiv 2002.02645) have selectors, and keep the chain's own
promise: their heads are chosen and certified as ours are. `selfxit` (arXiv 2209.08625) and `branchynet` (arXiv
1709.01686) leave at fixed thresholds, at every exit, whatever share of the answers then differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gati.repository.agreement import of_numbers, parse_agreement
from gati.repository.chain import Chain
from gati_export.certificates.runs import find_runs
from gati_export.certificates.splitting import split
from gati_export.composition.latency import Measured, measure_segments
from gati_export.learning.candidates import Candidate, ask, fit_candidates
from gati_export.learning.headfile import with_threshold
from gati_export.learning.task import Task
from gati_export.learning.trained import NoHeads
from gati_export.learning.training import enlarged, train_heads
from gati_export.progress import Progress
from gati_export.samples.activations import open_segments
from gati_export.terms import Terms

CERTIFIED = {"gati": "gati", "knn": "nearest"}
"""Peer: the family of its heads."""
FIXED = "selfxit", "branchynet"
SURE = 0.9
"""SelfXit's fixed threshold of confidence, and BranchyNet's of certainty, 1 − entropy ÷ its maximum."""


def peer_heads(
    chain: Chain,
    segments: Sequence[Path],
    samples: Mapping[str, np.ndarray],
    extra: Mapping[str, np.ndarray] | None,
    progress: Progress,
) -> tuple[dict[str, dict[int, bytes]], list[str]]:
    """Trains every peer's heads, on as much as the chain's own were.

    Args:
        chain: The chain.
        segments: Its segments' files.
        samples: To learn from, inputs by name, [n, ...]: the chain's own, for a fair comparison.
        extra: More samples to train on, likewise.
        progress: Told how far it is.

    Returns:
        The heads of each peer by cut point, thresholds inside, and why a peer has none, in sentences.
    """
    if of_numbers(chain.agreement):
        return {}, ["peers: their heads answer with classes, and this chain's answers are numbers."]
    terms = replace(Terms.of(chain, 0), memory=None, p99=None)
    parts = split(samples, find_runs(samples), extra=extra is not None, terms=terms)
    task = Task(chain, segments, samples, parts, terms)
    found: dict[str, dict[int, bytes]] = {}
    notes = []
    for peer, family in CERTIFIED.items():
        trained = train_heads(replace(task, terms=replace(terms, families=family)), progress, extra=extra)
        if isinstance(trained, NoHeads):
            found[peer] = {}
            notes.append(f"{peer}: {trained.why}")
        else:
            found[peer] = trained.heads
    sessions, measured = open_segments(segments), Measured(measure_segments(chain, segments, samples), {})
    task = enlarged(task, measured.times, extra)
    for peer in FIXED:
        candidates = fit_candidates(task, sessions, [peer], measured, progress)
        said, outputs = ask(chain, sessions, candidates.heads, task.samples, task.split.tune, progress)
        agree = parse_agreement(chain.agreement)
        rates = [float(agree(one.answers, outputs).mean()) for one in said]
        found[peer] = {cut: with_threshold(head.model, SURE) for cut, head in _best(candidates.heads, rates).items()}
        if not found[peer]:
            notes.append(f"{peer}: no exit of it fits any cut point.")
    return found, notes


def _best(heads: Sequence[Candidate], rates: Sequence[float]) -> dict[int, Candidate]:
    """At each cut point the head that agrees most often."""
    chosen: dict[int, tuple[float, Candidate]] = {}
    for head, rate in zip(heads, rates, strict=True):
        if head.cut not in chosen or rate > chosen[head.cut][0]:
            chosen[head.cut] = (rate, head)
    return {cut: head for cut, (_, head) in sorted(chosen.items())}
