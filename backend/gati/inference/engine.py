"""Engines run a chain's segments and heads: one interface, implemented twice (`inline` and `bls` beside this)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gati.inference.costs import Costs
from gati.inference.device import Hidden
from gati.inference.head import HeadSpec, Prediction
from gati.inference.steps import Joined
from gati.repository.release import Release


@dataclass(frozen=True)
class Stage:
    """Segments that run as one.

    Attributes:
        last: Index of the last of them.
        inputs: Names of the tensors that it reads.
        run: Computes the last segment's output, [batch, ...], from these, [batch, ...] each. The output stays where the
            engine keeps hidden state; the chain's own output is a NumPy array. Raises a GatiError if it can't run.
    """

    last: int
    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, Hidden]], Hidden]


@dataclass(frozen=True)
class Shortcuts:
    """Faster ways through stages and heads than one by one, as far as there are any (gati.inference.shortcuts).

    Attributes:
        joined: Stages and heads in one, for as many rows as `joined.rows`.
        whole: The backbone as one stage, for rows that no head is asked about.
        costs: Measures what lookups cost; None where heads are always asked.
    """

    joined: Joined | None = None
    whole: Stage | None = None
    costs: Costs | None = None


class Heads(Protocol):
    """The heads of one release, loaded."""

    def predict(self, index: int, hidden: Hidden, state: Mapping[str, np.ndarray]) -> Prediction | None:
        """Asks the head at cut point `index` about a batch; None if it is not ready, which is a miss."""
        ...

    def load_shortcuts(self) -> Shortcuts:
        """Loads faster ways through the same stages and heads; may take seconds."""
        ...


class Engine(Protocol):
    """Runs segments, and loads the heads of a release."""

    def load_stages(self, cuts: Sequence[int]) -> tuple[Stage, ...]:
        """Loads the whole chain in stages. One ends at each of these cut points; some may end at others, too.

        Raises:
            RepositoryError: If a segment is missing, damaged, or not the one that chain.json names.
        """
        ...

    def load_heads(self, release: Release) -> tuple[Heads, dict[int, HeadSpec]]:
        """Loads and warms a release's heads beside those that are live.

        Raises:
            ReleaseRefused: If one of them can't be used.
            NotLoadedError: If one of them is not loaded yet.
        """
        ...
