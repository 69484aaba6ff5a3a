"""Samples to train on only, such as those that the backbone was trained on: it is surer of them than of new ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gati_export.ragged import count, joined
from gati_export.splitting import Split, digests


def with_extra(
    samples: Mapping[str, np.ndarray], split: Split, more: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Split]:
    """Adds samples to the training part; those that tune or calibrate already are left out.

    Args:
        samples: Model inputs by name, n rows each.
        split: Their parts.
        more: Model inputs by the same names, m rows each.

    Returns:
        All samples, the new ones last, and their parts.
    """
    held_out = set(digests(samples, split.held_out))
    fresh = [row for row, digest in enumerate(digests(more, range(count(more)))) if digest not in held_out]
    both = {name: joined([rows, more[name][fresh]]) for name, rows in samples.items()}
    return both, split.grown(len(fresh))
