"""Latency of segments and heads on this machine, at batch 1."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

WARM_UP = 5
ROUNDS = 100
BUDGET = 10.0
"""Seconds after which no further round begins; three are always run."""


def measure(
    sessions: Sequence[ort.InferenceSession], feeds: Sequence[Mapping[str, np.ndarray]], rounds: int = ROUNDS
) -> list[float]:
    """Median time of each model, in seconds.

    Models take turns, so that whatever slows the machine down for a while slows all of them down.

    Args:
        sessions: The models.
        feeds: What to run each on.
        rounds: How often each is run, if that takes no longer than `BUDGET`.
    """
    taken: list[list[float]] = []
    end = time.perf_counter() + BUDGET
    for turn in range(WARM_UP + rounds):
        row = []
        for session, feed in zip(sessions, feeds, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            row.append(time.perf_counter() - start)
        taken.append(row)
        if turn >= WARM_UP + 2 and time.perf_counter() > end:
            break
    return np.median(taken[WARM_UP:], axis=0).tolist()
