"""The repository that a benchmark measures in: what is in it to be measured, and what is not, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gati.inference.session import CPU, DEVICE, Device
from gati.repository.chain import Chain
from gati.repository.release import Release, head_path
from gati.settings import STORE
from gati_export.bench.rows import PLAIN


@dataclass(frozen=True)
class Contender:
    """A model that is measured.

    Attributes:
        name: Of the row, and of the model on the server.
        chain: The chain, of a chain.
    """

    name: str
    chain: Chain | None = None

    @property
    def models(self) -> list[str]:
        """The models that run for it."""
        if self.chain is None or self.chain.mode == "inline":
            return [self.name]
        segments = [self.chain.segment_model(segment.index) for segment in self.chain.segments]
        return [self.name, *segments, *(self.chain.head_model(index) for index in self.chain.heads)]


@dataclass
class Arena:
    """A model repository made for one benchmark.

    Attributes:
        repository: Where it lies.
        source: The repository that the chain came from.
        chain: The chain.
        device: Where inline chains run, and what they are compared with.
        release: Its live release; None if it has none.
        contenders: What there is to measure.
        notes: Why something is not among them, in sentences.
    """

    repository: Path
    source: Path
    chain: Chain
    device: Device = CPU
    release: Release | None = None
    contenders: list[Contender] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def heads(self) -> dict[int, bytes]:
        """The live release's heads by cut point."""
        if self.release is None:
            return {}
        number = self.release.number
        return {
            head.index: head_path(self.source, self.chain, head.index, number).read_bytes()
            for head in self.release.heads
        }

    @property
    def environment(self) -> dict[str, str]:
        """Of a server of it: where chains run, and that requests of a benchmark are kept in no store but its own."""
        return {DEVICE: str(self.device), STORE: ""}

    def backbone(self) -> Path:
        """The backbone's file."""
        return self.repository / PLAIN / "1" / "model.onnx"
