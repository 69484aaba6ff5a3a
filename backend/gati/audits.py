"""Audits: hits that were drawn, on their way to what the backbone says to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gati.device import Hidden
from gati.flight import NOBODY, Drawn, Flight
from gati.live import LiveRelease


@dataclass(frozen=True)
class Audit:
    """Hits drawn at random, to be run on to the end: where they left the chain, and what they were told.

    `rows` are theirs in the flight, `drawn` is the draw that they were among, `kept` what is recorded of them, and
    `values` what goes on at the cut point `at`: where they left, or −1 for the inputs of rows that they answered
    joined. Of hits that were held all has been run, and `served` is what they would have been told.
    """

    index: int
    release: LiveRelease
    rows: np.ndarray
    drawn: Drawn
    values: Mapping[str, Hidden]
    served: np.ndarray
    kept: dict[str, np.ndarray] | None
    arrived: float
    at: int

    def among(self, rows: np.ndarray) -> Audit:
        """Those of them that are among rows of the flight, bool [rows of the flight]."""
        some = rows[self.rows]
        values = {name: value[some] for name, value in self.values.items()}
        kept = self.kept and {name: value[some] for name, value in self.kept.items()}
        return replace(self, rows=self.rows[some], values=values, served=self.served[some], kept=kept)


class Held:
    """Rows of a flight that were drawn to be answered by the backbone, if any, and what heads would have told them."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._drawn = flight.drawn if flight.drawn is not None and flight.drawn.held else None
        self._open = NOBODY if self._drawn is None else self._drawn.rows.copy()
        self._said: list[tuple[int, np.ndarray, np.ndarray]] = []

    def hold(self, index: int, rows: np.ndarray, hit: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Takes in what a head says to rows of the flight; gives those that leave, bool [rows]: none that is held.

        The first head to be sure of a row would have answered it.
        """
        if self._drawn is None:
            return hit
        first = hit & self._open[rows]
        if first.any():
            self._said.append((index, rows[first], answers[first]))
            self._open[rows[first]] = False
        return hit & ~self._drawn.rows[rows]

    def audits(self, release: LiveRelease, last: int, output: str) -> list[Audit]:
        """What heads said, beside what the backbone has answered; recorded is its answer, as any."""
        if self._drawn is None:
            return []
        flight, drawn = self._flight, self._drawn
        return [
            Audit(
                index, release, rows, drawn, {output: flight.output[rows]}, said, None, flight.requests[0].arrived, last
            )
            for index, rows, said in self._said
        ]


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
    left = {name: value[chosen] for name, value in values.items()}
    rows = rows[chosen]
    kept = flight.kept and {name: value[rows] for name, value in flight.kept.items()}
    return [Audit(index, release, rows, flight.drawn, left, flight.output[rows], kept, flight.requests[0].arrived, at)]
