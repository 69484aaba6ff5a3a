"""The chain's manifest, `<model>/1/chain.json`: its inputs and outputs, its segments, and how it is run."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gati.decode import decode
from gati.errors import RepositoryError, first_line
from gati.repository.agreement import DEFAULT

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a model may be called: a folder's name anywhere, that leads to no other one."""
Mode = Literal["inline", "bls"]
Engine = Literal["onnxruntime", "tensorrt"]

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""Triton's datatype names and what they are in NumPy."""


@dataclass(frozen=True)
class Tensor:
    """A named tensor: Triton datatype, and shape without the batch dimension (-1 where it may vary)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype."""
        return DTYPES[self.dtype]

    def zeros(self, batch: int = 1) -> np.ndarray:
        """Zeros of shape [batch, *shape], with dimensions that may vary set to 8."""
        return np.zeros((batch, *(8 if d < 0 else d for d in self.shape)), self.numpy)

    @property
    def dims(self) -> tuple[int, ...]:
        """Its dimensions as Triton has them: one number a row is [batch, 1] to clients, and [batch] to models."""
        return self.shape or (1,)


def as_sent(rows: np.ndarray) -> np.ndarray:
    """Rows of an input in the shape that a client sends; see `Tensor.dims`."""
    return rows[:, None] if rows.ndim == 1 else rows


@dataclass(frozen=True)
class Segment:
    """The graph between two cut points.

    Attributes:
        index: Position in the chain, from 0.
        inputs: Names of what it reads: the cut tensor before it, and model inputs carried past cuts
            (an attention mask, say).
        output: What it computes: the cut tensor after it, or the backbone's output.
        sha256: Of its `model.onnx`.
        share: Share of the backbone's compute spent when it is done, 0..1, measured at export.
        plan: SHA-256 of the `model.plan` beside it, which TensorRT runs in its place in BLS mode; empty without one.
    """

    index: int
    inputs: tuple[str, ...]
    output: Tensor
    sha256: str
    share: float
    plan: str = ""


@dataclass(frozen=True)
class Chain:
    """How a backbone was cut and how its chain is run.

    Attributes:
        model: Name of the chain on the server.
        mode: `inline` (sessions in the orchestrator's process) or `bls` (Triton models).
        inputs: The backbone's inputs.
        output: The backbone's scores, [batch, classes], which heads predict.
        segments: In order; the last one ends in `output`.
        epsilon: Largest share of requests whose answer may differ from the backbone's.
        delta: 1 − confidence of that statement.
        max_batch: Largest batch of a request; 1 where the backbone's batch is fixed at 1.
        agreement: When a served answer is as good as the backbone's; see `gati.repository.agreement`.
        families: Which heads the offline jobs try, as given to `gati export`.
        memory: Bytes that all heads together may take; None for any.
        p99: Seconds in the engine that 99 % of requests may take; None for any.
        views: Images that heads learn from at least, shifted and mirrored ones among them.
        engine: What runs segments in BLS mode, as their configurations say.
        outputs: The backbone's outputs, if these are not its scores alone; see `served`.
        tail: SHA-256 of `tail.onnx` beside the manifest, which computes the other outputs from the scores; empty
            without one.
        labels: For each output in the order of `served`, SHA-256 of the file that names its classes; empty without one.
        trained: SHA-256 of `trained.bin` beside the manifest, which identifies samples that were given to train on
            alone: they train whenever they are served, and never certify. Empty without any.
    """

    model: str
    mode: Mode
    inputs: tuple[Tensor, ...]
    output: Tensor
    segments: tuple[Segment, ...]
    epsilon: float
    delta: float
    max_batch: int
    agreement: str = DEFAULT
    families: str = "auto"
    memory: int | None = None
    p99: float | None = None
    views: int = 0
    engine: Engine = "onnxruntime"
    outputs: tuple[Tensor, ...] = ()
    tail: str = ""
    labels: tuple[str, ...] = ()
    trained: str = ""

    @property
    def served(self) -> tuple[Tensor, ...]:
        """The outputs that are served, in the backbone's order; its scores need not be among them."""
        return self.outputs or (self.output,)

    @property
    def labelled(self) -> list[int]:
        """Places in `served` of the outputs whose classes have names."""
        return [place for place, digest in enumerate(self.labels) if digest]

    @property
    def classes(self) -> int:
        """How many classes the backbone distinguishes."""
        return self.output.shape[-1]

    @property
    def heads(self) -> range:
        """Indices of the cut points: each may have a head."""
        return range(self.backbone_exit)

    @property
    def backbone_exit(self) -> int:
        """The exit of requests that no head answers: the index of the last segment."""
        return len(self.segments) - 1

    def segment_model(self, index: int) -> str:
        """Name of a segment's model in the repository."""
        return f"{self.model}-segment-{index}"

    def head_model(self, index: int) -> str:
        """Name of a head's model in the repository."""
        return f"{self.model}-head-{index}"

    def segment_path(self, repository: Path, index: int) -> Path:
        """Where a segment's ONNX file lies."""
        return repository / self.segment_model(index) / "1" / "model.onnx"

    def segment_paths(self, repository: Path) -> list[Path]:
        """Where the ONNX files of all segments lie, in order."""
        return [self.segment_path(repository, segment.index) for segment in self.segments]

    def plan_path(self, repository: Path, index: int) -> Path:
        """Where a segment's TensorRT plan lies, if it has one."""
        return self.segment_path(repository, index).with_name("model.plan")

    def check_segment(self, repository: Path, index: int) -> None:
        """Checks a segment's file against its digest.

        Raises:
            RepositoryError: If it can't be read, or is another one.
        """
        _check_digest(self.segment_path(repository, index), self.segments[index].sha256)

    def read_segment(self, repository: Path, index: int) -> bytes:
        """Reads a segment's file, and checks it against its digest.

        Raises:
            RepositoryError: If it can't be read, or is another one.
        """
        return _read(self.segment_path(repository, index), self.segments[index].sha256)

    def tail_path(self, repository: Path) -> Path:
        """Where the tail lies, if the chain has one."""
        return chain_path(repository, self.model).with_name("tail.onnx")

    def read_tail(self, repository: Path) -> bytes:
        """Reads the tail's file, and checks it against its digest.

        Raises:
            RepositoryError: If it can't be read, or is another one.
        """
        return _read(self.tail_path(repository), self.tail)

    def trained_path(self, repository: Path) -> Path:
        """Where the file lies that identifies samples to train on alone, if there are any."""
        return chain_path(repository, self.model).with_name("trained.bin")

    def read_trained(self, repository: Path) -> bytes:
        """Reads that file, and checks it against its digest; empty without one.

        Raises:
            RepositoryError: If it can't be read, or is another one.
        """
        return _read(self.trained_path(repository), self.trained) if self.trained else b""

    def labels_path(self, repository: Path, place: int) -> Path:
        """Where the file lies that names the classes of an output, by its place in `served`."""
        return repository / self.model / f"labels-{place}.txt"

    def read_labels(self, repository: Path, place: int) -> bytes:
        """Reads that file, and checks it against its digest.

        Raises:
            RepositoryError: If it can't be read, or is another one.
        """
        return _read(self.labels_path(repository, place), self.labels[place])

    def check_plan(self, repository: Path, index: int) -> None:
        """Checks a segment's plan, if it has one, against its digest.

        Raises:
            RepositoryError: If it can't be read, or is another one.
        """
        if self.segments[index].plan:
            _check_digest(self.plan_path(repository, index), self.segments[index].plan)

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of every segment, in order. A head fits a chain if it was trained behind the same."""
        return tuple(segment.sha256 for segment in self.segments)

    def to_json(self) -> str:
        """The text of chain.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Chain:
        """Reads chain.json's text.

        Raises:
            RepositoryError: If it is not a chain of a format that this version reads.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise RepositoryError("chain.json was written by another version of gati; export the model again.")
            chain: Chain = decode(cls, fields, "chain", exact=True)
            _check(chain)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RepositoryError(f"chain.json is damaged ({first_line(error)}); export the model again.") from error
        if not chain.segments:
            raise RepositoryError("chain.json names no segments; export the model again.")
        return chain


def _check(chain: Chain) -> None:
    """Checks what the types of fields do not ensure.

    Raises:
        ValueError: If a datatype is unknown, or the parts of a chain contradict each other.
    """
    for tensor in (*chain.inputs, *chain.served, chain.output, *(segment.output for segment in chain.segments)):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"unknown datatype {tensor.dtype!r}")
    if [segment.index for segment in chain.segments] != list(range(len(chain.segments))):
        raise ValueError("its segments are not in order")
    if chain.labels and len(chain.labels) != len(chain.served):
        raise ValueError("it has labels of other outputs")


def _check_digest(path: Path, expected: str) -> None:
    """Checks a file against its digest."""
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest != expected:
        raise _foreign(path)


def _read(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise _foreign(path)
    return content


def _unreadable(path: Path, error: OSError) -> RepositoryError:
    return RepositoryError(f"{path} can't be read ({error.strerror}).")


def _foreign(path: Path) -> RepositoryError:
    return RepositoryError(f"{path} is not the one that chain.json names; export the model again.")


def chain_path(repository: Path, model: str) -> Path:
    """Where a model's manifest lies, if it is a chain."""
    return repository / model / "1" / "chain.json"


def read_chain(repository: Path, model: str) -> Chain:
    """Reads a model's chain.

    Raises:
        RepositoryError: If the model is not in the repository, or not a chain.
    """
    path = chain_path(repository, model)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RepositoryError(f"{repository} holds no chain named {model!r} (no {path}).") from error
    chain = Chain.from_json(text)
    if chain.model != model:
        raise RepositoryError(f"{path} is the chain {chain.model!r}, not {model!r}: its folder was renamed or copied.")
    return chain


def find_chains(repository: Path) -> list[str]:
    """Names of the chains in a repository, sorted."""
    return sorted(p.parent.parent.name for p in repository.glob("*/1/chain.json"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
