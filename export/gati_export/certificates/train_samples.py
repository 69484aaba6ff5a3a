"""Samples that are only trained on (`--train-samples`), such as those that the backbone itself was trained on.

The backbone is surer of these than of anything new, so that they must neither tune nor certify heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gati_export.certificates.splitting import Split, digests
from gati_export.samples.ragged import count, joined


def with_train_samples(
    samples: Mapping[str, np.ndarray], split: Split, more: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Split]:
    """Adds samples to the training part, except copies of those that tune or calibrate.

    Args:
        samples: Model inputs by name, n rows each.
        split: Their parts.
        more: Model inputs by the same names, m rows each, to train on.

    Returns:
        All samples, the added ones last, and their parts.
    """
    held_out = set(digests(samples, split.held_out))
    fresh = [row for row, digest in enumerate(digests(more, range(count(more)))) if digest not in held_out]
    both = {name: joined([rows, more[name][fresh]]) for name, rows in samples.items()}
    return both, split.grown(len(fresh))
