"""Samples: which rows of a served flight, and of an audit, are recorded, and with what."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from gati.recording.content import Content, features_at, inputs_of
from gati.recording.recorder import Recorder
from gati.recording.shard import Sample
from gati.repository.chain import Chain
from gati.serving.audits import Audit
from gati.serving.flight import Flight
from gati.serving.live import LiveRelease
from gati.settings import FEATURES, NOTHING, Settings


class Samples:
    """Chooses what is recorded, as the settings say.

    Args:
        chain: The chain.
        settings: Its settings.
        dropped: Called with the number of samples that could not be kept.
        warn: Called with what went wrong, and with what can't be recorded.
    """

    def __init__(
        self, chain: Chain, settings: Settings, dropped: Callable[[int], None], warn: Callable[[str], None]
    ) -> None:
        self._last = chain.backbone_exit
        self._share = settings.record_share
        self._warn = warn
        self._content = None if settings.store is None else self._chosen(chain, settings)
        self._recorder: Recorder | None = None
        if settings.store is not None and (self._content or settings.store_age):  # it also deletes old samples
            arguments = chain, settings.store, settings.store_bytes, dropped, warn, self._content, settings.store_age
            self._recorder = Recorder(*arguments)

    def _chosen(self, chain: Chain, settings: Settings) -> Content | None:
        if settings.record == NOTHING:
            return None
        if settings.record != FEATURES:
            return inputs_of(chain)
        if settings.cut in chain.heads:
            return features_at(chain, settings.cut)
        self._warn(f"nothing is recorded: there is no cut point {settings.cut} whose features could be")
        return None

    @property
    def cut(self) -> int | None:
        """Cut point whose activations are recorded in place of the inputs; None where inputs are, or nothing is."""
        return self._content.cut if self._content else None

    def went_live(self, live: LiveRelease) -> None:
        """Warns if a release keeps features from being recorded."""
        if self.cut is not None and not live.whole_at(self.cut):
            self._warn(
                f"nothing is recorded while release {live.number} is live: it has a head before cut point {self.cut}, "
                "and features there would be those of hard requests only"
            )

    def served(self, flight: Flight) -> None:
        """Records a flight: misses with the backbone's answer, hits without one.

        Rows that no head may answer, since they are not finite or were asked to be exact, are left out: heads are not
        certified for them.
        """
        if self._content is None or flight.kept is None:
            return
        for place in range(len(flight.requests)):
            if self._drawn():
                self._record(flight, place)

    def audited(self, audit: Audit, outputs: np.ndarray | None) -> None:
        """Records audited hits with the backbone's outputs, [rows, classes]; without these, if the audit failed."""
        if self._content is None or audit.kept is None or not self._drawn():
            return
        rows = len(audit.served)
        exits, numbers = np.full(rows, audit.index, np.int32), np.full(rows, audit.release.number, np.int64)
        self._keep(Sample(audit.kept, outputs, exits, numbers, audit.arrived))

    def _drawn(self) -> bool:
        """Whether to record a request: drawn whatever was answered, so that samples are like traffic."""
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
