"""Samples: what becomes of a flight that was served, and of an audit, on its way to the recorder."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from gati.audits import Audit
from gati.chain import Chain
from gati.content import Content, features_at, inputs_of
from gati.flight import Flight
from gati.live import LiveRelease
from gati.recorder import Recorder
from gati.settings import FEATURES, NOTHING, Settings
from gati.shard import Sample


class Samples:
    """Chooses what is recorded, as the settings say.

    Args:
        chain: The chain.
        settings: Its settings.
        dropped: Called with the number of samples that could not be kept.
        log: Called with what went wrong, and with what can't be recorded.
    """

    def __init__(
        self, chain: Chain, settings: Settings, dropped: Callable[[int], None], log: Callable[[str], None]
    ) -> None:
        self._last = chain.backbone_exit
        self._share = settings.record_share
        self._log = log
        self._content = None if settings.store is None else self._chosen(chain, settings)
        self._recorder: Recorder | None = None
        if settings.store is not None and (self._content or settings.store_age):  # old samples go in any case
            arguments = chain, settings.store, settings.store_bytes, dropped, log, self._content, settings.store_age
            self._recorder = Recorder(*arguments)

    def _chosen(self, chain: Chain, settings: Settings) -> Content | None:
        if settings.record == NOTHING:
            return None
        if settings.record != FEATURES:
            return inputs_of(chain)
        if settings.cut in chain.heads:
            return features_at(chain, settings.cut)
        self._log(f"nothing is recorded: there is no cut point {settings.cut} whose features could be")
        return None

    @property
    def cut(self) -> int | None:
        """Cut point whose activations are recorded in place of the inputs, if they are."""
        return self._content.cut if self._content else None

    def taken(self, live: LiveRelease) -> None:
        """Says where a release keeps features from being recorded."""
        if self.cut is not None and not live.whole_at(self.cut):
            self._log(
                f"nothing is recorded while release {live.number} is live: it has a head before cut point {self.cut}, "
                "and features there would be those of hard requests only"
            )

    def served(self, flight: Flight) -> None:
        """Records what was answered: misses with the backbone's answer, hits without one.

        What no head may answer, as it is not finite or was asked to be exact, is not what heads are certified for.
        """
        if self._content is None or flight.kept is None:
            return
        for place in range(len(flight.requests)):
            if self._drawn():
                self._record(flight, place)

    def audited(self, audit: Audit, outputs: np.ndarray | None) -> None:
        """Records hits with what the backbone says to them, [rows, classes]; with None, as hits that nobody audits."""
        if self._content is None or audit.kept is None or not self._drawn():
            return
        rows = len(audit.served)
        exits, numbers = np.full(rows, audit.index, np.int32), np.full(rows, audit.release.number, np.int64)
        self._keep(Sample(audit.kept, outputs, exits, numbers, audit.arrived))

    def _drawn(self) -> bool:
        """Whether to record: drawn without a look at what was answered, so that samples are like traffic."""
        return self._share == 1 or random.random() < self._share

    def _record(self, flight: Flight, place: int) -> None:
        """Records the rows of the request at this place."""
        request, span = flight.requests[place], flight.spans[place]
        kept, exits, cacheable = flight.kept_of(place), flight.exit[span], flight.cacheable[span]
        missed = exits == self._last
        hit = ~missed
        if flight.drawn.exists:
            hit &= ~flight.drawn.rows[span]  # recorded when they are audited
        for part, known in ((missed, True), (hit, False)):
            chosen = part & cacheable
            if count := np.count_nonzero(chosen):
                rows = slice(None) if count == len(chosen) else chosen
                output = flight.output[span][rows]
                self._keep(
                    Sample(
                        {name: value[rows] for name, value in kept.items()},
                        (output if output.size == flight.output.size else output.copy()) if known else None,
                        exits[rows],
                        flight.release[span][rows],
                        request.arrived,
                    )
                )

    def _keep(self, sample: Sample) -> None:
        if self._recorder is not None:
            self._recorder.record(sample)

    def close(self) -> None:
        """Writes what was recorded, and stops."""
        if self._recorder is not None:
            self._recorder.close()
