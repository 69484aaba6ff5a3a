"""What runs a chain's segments and heads: one interface, two ways (gati.inline, gati.bls), the same answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gati.device import Hidden
from gati.head import Heads, HeadSpec
from gati.release import Release


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
