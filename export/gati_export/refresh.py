"""One turn of the offline job: recent samples, heads, certificate, release."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gati.chain import Chain
from gati.errors import PublishError
from gati.release import Release, head_path, valid_releases
from gati_export.activations import Progress
from gati_export.evidence import backbone_bytes, report_of
from gati_export.publish import Draft
from gati_export.report.data import Report, write
from gati_export.rollout import Rollout, publish_to, settle
from gati_export.splitting import find_runs, split
from gati_export.store import read_recent
from gati_export.training import Terms, train_heads


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did: what it learned, and how that was published."""

    report: Report
    rollout: Rollout

    @property
    def release(self) -> Release:
        """What was published."""
        return self.rollout.release

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "release": asdict(self.release),
            "replicas": self.rollout.replicas_as_json(),
            "report": self.report.as_json(),
        }


def refreshed(
    repository: Path,
    chain: Chain,
    store: str,
    window: int,
    server: str | None,
    report: Progress,
    seed: int = 0,
) -> Refreshed:
    """Turns recent samples into the next release.

    Args:
        repository: The model repository.
        chain: The chain to refresh.
        store: fsspec URL of the sample store.
        window: How many of the newest samples to learn from.
        server: HOST:GRPC_PORT of the servers that shall take the release, with commas, or None to only write it.
        report: Told what is being done and how far it is.
        seed: Of the training.

    Raises:
        SamplesError: If there are too few samples.
        PublishError: If no heads can be certified, or the release could not be made live.
        UnavailableError: If no server answers; found out before the training.
    """
    if server is not None:
        settle(repository, chain, server)
    recorded = read_recent(store, chain, window)
    paths = [chain.segment_path(repository, segment.index) for segment in chain.segments]
    terms = Terms.of(chain, seed)
    parts = split(recorded.inputs, find_runs(recorded.inputs))
    trained = train_heads(chain, paths, recorded.inputs, parts, terms, report, _live_heads(repository, chain))
    whole = backbone_bytes(paths)
    if trained.certificate is None:
        write(repository, report_of(chain, trained, terms, None, whole))
        raise PublishError(f"Nothing is published, the live release stays: {trained.why_not}")
    draft = Draft(trained.heads, trained.certificate, recorded.window, "refresh")
    rollout = publish_to(repository, chain, draft, server, lambda step: report(f"Publish: {step}", 1))
    learned = report_of(chain, trained, terms, rollout.release, whole)
    write(repository, learned)
    return Refreshed(learned, rollout)


def _live_heads(repository: Path, chain: Chain) -> dict[int, bytes]:
    """The heads of the newest valid release, by cut point: training goes on from them where they fit."""
    live = next(valid_releases(repository, chain), None)
    if live is None:
        return {}
    return {head.index: head_path(repository, chain, head.index, live.number).read_bytes() for head in live.heads}
