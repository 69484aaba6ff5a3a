"""Audits: hits that were drawn, on their way to what the backbone says to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gati.inference.device import Hidden
from gati.serving.flight import Drawn, Flight
from gati.serving.live import LiveRelease


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


class DrawnHits:
    """What heads say to the requests of a flight that were drawn: told as answers, or held, where the backbone answers.

    Args:
        flight: The flight, when requests were drawn, if any.
        release: Whose heads they are.
        output: Name of the chain's output.
        last: Index of its last segment.
    """

    def __init__(self, flight: Flight, release: LiveRelease, output: str, last: int) -> None:
        self._flight = flight
        self._release = release
        self._output = output
        self._last = last
        self._told: list[Audit] = []
        self._held: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._open = flight.drawn.rows.copy() if flight.drawn.held else flight.drawn.rows

    def hold(self, index: int, rows: np.ndarray, hit: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Takes in what a head says to rows of the flight; gives those that leave, bool [rows]: none that is held.

        The first head to be sure of a row would have answered it.
        """
        drawn = self._flight.drawn
        if not drawn.held:
            return hit
        first = hit & self._open[rows]
        if first.any():
            self._held.append((index, rows[first], answers[first]))
            self._open[rows[first]] = False
        return hit & ~drawn.rows[rows]

    def left(self, index: int, rows: np.ndarray, hit: np.ndarray, values: Mapping[str, Hidden] | None = None) -> None:
        """Takes in which of some rows of the flight, bool [rows], a head has answered.

        With what goes on of these rows there; without, they are to be run on from their inputs.
        """
        drawn = self._flight.drawn
        if not drawn.exists:
            return
        chosen = np.flatnonzero(hit & drawn.rows[rows])
        if len(chosen):
            kept, rows = self._flight.kept, rows[chosen]
            kept = kept and {name: value[rows] for name, value in kept.items()}
            part, of = (rows, self._flight.values) if values is None else (chosen, values)
            going_on, at = {name: value[part] for name, value in of.items()}, -1 if values is None else index
            self._told.append(self._audit(index, rows, going_on, self._flight.output[rows], kept, at))

    def audits(self) -> list[Audit]:
        """Those of requests that were answered; of held ones, beside what the backbone has said to them."""
        flight = self._flight
        found = [
            self._audit(index, rows, {self._output: flight.output[rows]}, said, None, self._last)
            for index, rows, said in (self._held if flight.begun else [])
        ]
        if flight.replied:
            return [*self._told, *found]
        answered = (audit.among(flight.replied_rows) for audit in (*self._told, *found))
        return [audit for audit in answered if len(audit.served)]

    def _audit(
        self,
        index: int,
        rows: np.ndarray,
        values: Mapping[str, Hidden],
        served: np.ndarray,
        kept: dict[str, np.ndarray] | None,
        at: int,
    ) -> Audit:
        drawn, arrived = self._flight.drawn, self._flight.requests[0].arrived
        return Audit(index, self._release, rows, drawn, values, served, kept, arrived, at)
