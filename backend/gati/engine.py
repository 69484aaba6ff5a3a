"""What runs a chain's segments and heads: one interface, two ways (gati.inline, gati.bls), the same answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gati.costs import Costs
from gati.device import Hidden
from gati.head import HeadSpec, Prediction
from gati.release import Release
from gati.steps import Joined


@dataclass(frozen=True)
class Stage:
    """Segments that run as one.

    Attributes:
        last: Index of the last of them.
        inputs: Names of what it reads.
        run: From those, each [batch, ...], to the last segment's output, [batch, ...], wherever the engine keeps hidden
            state; the chain's own output is NumPy's. Raises a GatiError if it can't.
    """

    last: int
    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, Hidden]], Hidden]


@dataclass(frozen=True)
class Shortcuts:
    """What takes less than going from stage to head to stage, as far as a release has it (gati.shortcuts).

    Attributes:
        joined: Stages and heads as one, for as many rows as that takes.
        whole: The backbone as one stage, for rows that no head is asked about.
        costs: Measures what rows take; None where heads are asked in any case.
    """

    joined: Joined | None = None
    whole: Stage | None = None
    costs: Costs | None = None


class Heads(Protocol):
    """The heads of one release, loaded."""

    def predict(self, index: int, hidden: Hidden, state: Mapping[str, np.ndarray]) -> Prediction | None:
        """Looks a batch up; None where the head is not ready, which is a miss."""
        ...

    def load_shortcuts(self) -> Shortcuts:
        """Loads what takes less than stages and these heads apart; takes a while."""
        ...


class Engine(Protocol):
    """Runs segments, and loads the heads of a release."""

    def load_stages(self, cuts: Sequence[int]) -> tuple[Stage, ...]:
        """Loads the whole chain in stages, one of which ends at each of these cut points; others may be passed over.

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
