"""The task of training: heads for a chain, from samples that are split into parts, under terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gati.repository.chain import Chain
from gati_export.certificates.splitting import Split
from gati_export.terms import Terms


@dataclass(frozen=True, eq=False)
class Task:
    """What heads are to be trained for, and on.

    Attributes:
        chain: The chain.
        segment_paths: Its segments' files, in order.
        samples: Model inputs by name, [n, ...] each, n ≥ 1, or recorded features in their place. There are no labels.
        split: Which samples train, tune and calibrate.
        terms: The promise and limits that heads must keep.
    """

    chain: Chain
    segment_paths: Sequence[Path]
    samples: Mapping[str, np.ndarray]
    split: Split
    terms: Terms


@dataclass(frozen=True)
class Earlier:
    """Heads that training may go on from.

    Attributes:
        heads: ONNX files, by cut point.
        way: How the samples were split that they were trained on (`Split.way`); None if that is the task's own split.
    """

    heads: Mapping[int, bytes]
    way: str | None = None
