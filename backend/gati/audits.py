"""Audits: hits that were drawn, on their way to what the backbone says to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gati.device import Hidden
from gati.flight import Flight
from gati.live import LiveRelease


@dataclass(frozen=True)
class Audit:
    """Hits drawn at random, to be run on to the end: where they left the chain, and what they were told.

    `drawn` is what the release's breaker calls them, `kept` what is recorded of them, and `values` what goes on at the
    cut point `at`: where they left, or −1 for the inputs of rows that they answered joined.
    """

    index: int
    release: LiveRelease
    drawn: int
    values: Mapping[str, Hidden]
    served: np.ndarray
    kept: dict[str, np.ndarray] | None
    arrived: float
    at: int


def audits_of(
    index: int,
    release: LiveRelease,
    flight: Flight,
    rows: np.ndarray,
    hit: np.ndarray,
    values: Mapping[str, Hidden],
    at: int,
) -> list[Audit]:
    """The hits that were drawn, if any, as one audit."""
    if flight.drawn is None:
        return []
    chosen = np.flatnonzero(hit & flight.drawn.rows[rows])
    if not len(chosen):
        return []
    kept = flight.kept and {name: value[rows[chosen]] for name, value in flight.kept.items()}
    left = {name: value[chosen] for name, value in values.items()}
    served = flight.output[rows[chosen]]
    return [Audit(index, release, flight.drawn.number, left, served, kept, flight.requests[0].arrived, at)]
