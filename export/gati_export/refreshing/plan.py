"""What a refresh is to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gati.repository.chain import Chain
from gati_export.terms import Terms


@dataclass(frozen=True)
class RefreshPlan:
    """What to refresh, and how.

    Attributes:
        repository: The model repository.
        chain: The chain.
        store: fsspec URL of the sample store.
        window: How many of the newest samples to learn from.
        server: HOST:GRPC_PORT of the servers that shall take the release, with commas, or None to only write it.
        always: Whether to publish what is certified even where it is not faster than what serves. What breaks its
            promise on the newest samples is not published even then.
        measure: Whether to measure latencies anew, and not to take those that were measured for the release before.
        seed: Of the training.
        age: Seconds since samples were served, at most; None for any.
    """

    repository: Path
    chain: Chain
    store: str
    window: int = 20_000
    server: str | None = None
    always: bool = False
    measure: bool = False
    seed: int = 0
    age: float | None = None

    @property
    def segment_paths(self) -> list[Path]:
        """The ONNX files of the chain's segments, in order."""
        return self.chain.segment_paths(self.repository)

    @property
    def terms(self) -> Terms:
        """What heads are to keep to."""
        return Terms.of(self.chain, self.seed, self.chain.read_trained(self.repository))
