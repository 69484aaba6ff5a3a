"""What runs a chain's segments and heads: one interface, two ways (gati.inline, gati.bls), the same answers."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gati.head import Heads, HeadSpec
from gati.release import Release


class Engine(Protocol):
    """Runs segments, and loads the heads of a release."""

    def run_segment(self, index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Runs one segment on its inputs, each [batch, ...]; returns its output, [batch, ...].

        Raises:
            GatiError: If the segment can't be run.
        """
        ...

    def load_heads(self, release: Release) -> tuple[Heads, dict[int, HeadSpec]]:
        """Loads and warms a release's heads beside those that are live.

        Raises:
            ReleaseRefused: If one of them can't be used.
            UnavailableError: If one of them is not loaded yet.
        """
        ...
