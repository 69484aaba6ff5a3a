"""Composition: which heads to use, so that a request is answered soonest on average.

Hits at different cut points are correlated, so sets of heads are judged on samples, not by products of hit rates. All
sets are tried: up to 12 cut points that is quick, and then nothing is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gati.errors import BackboneError
from gati_export.certificate import count_errors, exits, threshold_grid

LIMIT = 12
"""Most cut points that are composed: 4096 sets."""
CHUNK = 256


@dataclass(frozen=True)
class Composition:
    """The best set of heads.

    Attributes:
        heads: Their cut points, rising; empty if no head pays.
        threshold: Of all heads; infinite without heads.
        expected_seconds: Mean time of a request with them.
        plain_seconds: Time of a request without heads.
        toggled_seconds: For each cut point, the mean time if it were added to the set, or left out of it, as the
            case may be; infinite if that set is not safe at any threshold.
    """

    heads: tuple[int, ...]
    threshold: float
    expected_seconds: float
    plain_seconds: float
    toggled_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """What a set of heads does to n samples.

    Attributes:
        exits: Where each was answered: cut point of the head, or number of cut points for the backbone, [n].
        hits: Share of the samples that each head answers, by cut point.
        errors: Samples whose answer differs from the backbone's.
        mean_seconds: Mean time of a request.
        speedup: Time without heads ÷ mean time with them.
    """

    exits: np.ndarray
    hits: dict[int, float]
    errors: int
    mean_seconds: float
    speedup: float


def compose(
    scores: np.ndarray,
    agree: np.ndarray,
    segment_seconds: np.ndarray,
    head_seconds: np.ndarray,
    epsilon: float,
    grid: np.ndarray | None = None,
) -> Composition:
    """Chooses the set of heads with the least expected time, each set at its loosest threshold with few enough errors.

    Args:
        scores: Of a head at each cut point, on tuning samples, [heads, n].
        agree: Whether its answer is the backbone's, bool [heads, n].
        segment_seconds: Time of each segment, [heads + 1].
        head_seconds: Time of a lookup at each cut point, spent on a hit and on a miss alike, [heads].
        epsilon: Largest share of the samples whose answer may differ.
        grid: Thresholds, strictest first; taken from the scores if None.

    Raises:
        BackboneError: If there are more than `LIMIT` cut points.
    """
    heads, n = scores.shape
    if heads > LIMIT:
        raise BackboneError(f"There are {heads} cut points, and at most {LIMIT} can be composed; cut at fewer places.")
    plain = float(np.sum(segment_seconds))
    best = np.full(2**heads, np.inf)
    thresholds = np.full(2**heads, np.inf)
    for threshold in (threshold_grid(scores) if grid is None else grid).tolist():
        seconds, errors = _all_sets(scores >= np.float32(threshold), ~agree, segment_seconds, head_seconds)
        safe = errors <= epsilon * n
        best[safe], thresholds[safe] = seconds[safe], threshold
    best[0], thresholds[0] = plain, np.inf
    chosen = int(best.argmin())  # the set without heads comes first, so it wins a tie
    return Composition(
        heads=tuple(k for k in range(heads) if chosen >> k & 1),
        threshold=float(thresholds[chosen]),
        expected_seconds=float(best[chosen]),
        plain_seconds=plain,
        toggled_seconds=tuple(float(best[chosen ^ 1 << k]) for k in range(heads)),
    )


def _all_sets(
    hit: np.ndarray, wrong: np.ndarray, segment_seconds: np.ndarray, head_seconds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean seconds and number of errors of every set of heads at one threshold, [2^heads]; bit k of a set is head k.

    From the last cut point to the first, every row doubles the sets: those without its head, then those with it. What a
    set costs from cut point k on is known by then from the sets behind it.
    """
    heads, n = hit.shape
    seconds, errors = np.zeros(2**heads), np.zeros(2**heads, np.int64)
    for start in range(0, n, CHUNK):  # 4096 sets × 256 samples stay in the processor's cache
        part = slice(start, start + CHUNK)
        rest = np.full((1, hit[:, part].shape[1]), segment_seconds[-1], np.float64)
        differs = np.zeros(rest.shape, bool)
        for k in reversed(range(heads)):
            here, bad = hit[k, part], wrong[k, part]
            # sets are ordered by bit, and bit k is lower than all bits so far: it must alternate fastest
            rest = segment_seconds[k] + _interleave(rest, head_seconds[k] + np.where(here, 0.0, rest))
            differs = _interleave(differs, np.where(here, bad, differs))
        seconds += rest.sum(axis=1)
        errors += differs.sum(axis=1)
    return seconds / n, errors


def _interleave(without: np.ndarray, with_head: np.ndarray) -> np.ndarray:
    return np.stack([without, with_head], axis=1).reshape(-1, without.shape[1])


def evaluate(
    heads: tuple[int, ...],
    threshold: float,
    scores: np.ndarray,
    agree: np.ndarray,
    segment_seconds: np.ndarray,
    head_seconds: np.ndarray,
) -> Evaluation:
    """Runs a set of heads on samples by their scores.

    Args:
        heads: Cut points of the heads in use, rising.
        threshold: Of all of them.
        scores: Of a head at each cut point, [all heads, n].
        agree: Whether its answer is the backbone's, bool [all heads, n].
        segment_seconds: Time of each segment, [all heads + 1].
        head_seconds: Time of a lookup at each cut point, [all heads].
    """
    used = list(heads)
    places = np.array([*used, len(scores)])
    where = places[exits(scores[used], threshold)]
    lookups = np.zeros(len(scores) + 1)
    lookups[used] = np.asarray(head_seconds)[used]
    until = np.cumsum(np.asarray(segment_seconds) + lookups)
    mean = float(until[where].mean())
    return Evaluation(
        exits=where,
        hits={k: float((where == k).mean()) for k in used},
        errors=count_errors(scores[used], agree[used], threshold),
        mean_seconds=mean,
        speedup=float(np.sum(segment_seconds)) / mean,
    )
