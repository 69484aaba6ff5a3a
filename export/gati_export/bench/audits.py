"""Audits: how many of a chain's hits are audited, which is what a new release costs until it is known to be good."""

from __future__ import annotations

import math

from gati.promise.draws import EAGER
from gati_export.report.scrape import Reading


def audited(before: Reading, after: Reading) -> float:
    """The share, of what heads would have answered between two readings of a chain's metrics, that was audited."""
    known = after.hits - before.hits + after.held - before.held
    return (after.audits[0] - before.audits[0]) / max(1, known)


def eager(share: float, usual: float) -> bool:
    """Whether a share of hits is audited as of a new release (gati.promise.draws), and not as is usual.

    Args:
        share: Of hits between two readings, some hundreds.
        usual: What is drawn in the long run (`--audit`); `EAGER` times that at first, as far as there is.
    """
    return share > math.sqrt(usual * min(1.0, EAGER * usual))
