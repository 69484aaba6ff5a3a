"""Times by how long they were, in steps of 5 %: counts of any minutes and replicas add up, and quantiles with them.

A quantile of quantiles would be none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

FINEST = 1e-6
"""Seconds below which times are not told apart."""
STEP = math.log(1.05)


def bucket(seconds: float) -> int:
    """The step that a time belongs to."""
    return int(math.log(max(seconds, FINEST) / FINEST) / STEP)


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """Seconds within which such a share (0..1] of the times lie, to 3 %; None where there are none.

    Args:
        counts: How many times belong to each step.
        share: The share.
    """
    wanted, seen = share * sum(counts.values()), 0
    for step in sorted(counts):
        seen += counts[step]
        if seen >= wanted > 0:
            return FINEST * math.exp((step + 0.5) * STEP)
    return None
