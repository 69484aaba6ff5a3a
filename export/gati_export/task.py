"""What is to be learned: a chain's heads, from samples in parts, under terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gati.chain import Chain
from gati_export.splitting import Split
from gati_export.terms import Terms


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned, and from what.

    Attributes:
        chain: The chain.
        segment_paths: Its segments' files, in order.
        samples: Model inputs, or recorded features in their place, by name, [n, ...], n ≥ 1; no labels.
        split: Their parts.
        terms: What heads are to keep to.
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
        way: How the samples were split that they were learned from (`Split.way`); None for as those of the task are.
    """

    heads: Mapping[int, bytes]
    way: str | None = None
