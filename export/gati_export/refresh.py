"""One turn of the offline job: recent samples, heads, certificate, release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gati.chain import Chain
from gati.errors import PublishError
from gati.release import Release
from gati_export.control import Control, publish_to
from gati_export.publish import Draft
from gati_export.samples import split
from gati_export.store import read_recent
from gati_export.training import Trained, train_heads


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did: the training's outcome, and the release that it became."""

    trained: Trained
    release: Release

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"release": asdict(self.release), "heads": self.trained.as_json()}


def refreshed(
    repository: Path,
    chain: Chain,
    store: str,
    window: int,
    server: str | None,
    report: Callable[[str, float], None],
    seed: int = 0,
) -> Refreshed:
    """Turns recent samples into the next release.

    Args:
        repository: The model repository.
        chain: The chain to refresh.
        store: fsspec URL of the sample store.
        window: How many of the newest samples to learn from.
        server: HOST:GRPC_PORT of the server that shall take the release, or None to only write it.
        report: Told what is being done and how far it is.
        seed: Of the training.

    Raises:
        SamplesError: If there are too few samples.
        PublishError: If no heads can be certified, or the release could not be made live.
        UnavailableError: If no server answers; found out before the training.
    """
    if server is not None:
        with Control(server, repository) as control:
            control.live_release(chain)
    recorded = read_recent(store, chain, window)
    paths = [chain.segment_path(repository, segment.index) for segment in chain.segments]
    trained = train_heads(
        chain, paths, recorded.inputs, split(recorded.inputs), chain.epsilon, chain.delta, report, seed
    )
    if trained.certificate is None:
        raise PublishError(f"Nothing is published, the live release stays: {trained.why_not}")
    draft = Draft(trained.heads, trained.certificate, recorded.window, "refresh")
    return Refreshed(trained, publish_to(repository, chain, draft, server, lambda step: report(f"Publish: {step}", 1)))
