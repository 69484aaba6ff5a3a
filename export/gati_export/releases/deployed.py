# protobuf makes its classes at run time, where a type checker does not see them
# pyright: reportAttributeAccessIssue=false
"""A model as Triton serves it, in its folder of a model repository: its chain is to take its place for all clients."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from gati.errors import BackboneError
from gati.repository.chain import DTYPES, Chain, Tensor, chain_path
from gati_export.backbones import model_folder
from gati_export.backbones.signature import Signature
from gati_export.releases.repository import plain_name, read_config, write_config
from gati_export.staging import write_part

PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "pytorch"}
"""What older configurations name in a backend's place."""

REFUSED = {
    "sequence_batching": "keeps state between requests (sequence_batching)",
    "batch_input": "is given inputs that Triton makes of the batch (batch_input)",
    "batch_output": "has outputs that Triton divides anew (batch_output)",
}
"""Fields of a configuration that change what a network is given or gives, and why a chain can't take its place."""
REFUSED_INPUTS = ("allow_ragged_batch", "optional", "is_shape_tensor", "is_non_linear_format_io")
KEPT = {
    "name", "platform", "backend", "max_batch_size", "input", "output", "metric_tags", "default_model_filename",
    "cc_model_filenames", "model_transaction_policy",
}  # fmt: skip
"""Fields that a chain keeps to, or of which more is said; others are about how a network is run, and are not taken
over."""
BATCHING = "dynamic_batching"
"""The field that is taken over where a chain has batches."""
POLICIES = ("priority_levels", "default_priority_level", "default_queue_policy", "priority_queue_policy")
"""Fields of it that are left out: with one of these, Triton 2.51 overlooks that the only instance of a model is free,
and lets what waits wait for half a second a batch, or until another request comes."""


@dataclass(frozen=True)
class Deployed:
    """What Triton serves, and what its configuration promises to clients.

    Attributes:
        name: Of the model.
        version: The newest that is served.
        path: The network's file, ONNX or TorchScript.
        config: As it was written; what it leaves out, Triton learns from the file.
        labels: Files that name the classes of outputs, by the outputs' names.
        others: Versions that are served beside it.
        remarks: What to know of how it was read.
    """

    name: str
    version: int
    path: Path
    config: ModelConfig = field(repr=False)
    labels: dict[str, Path]
    others: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def signature(self) -> Signature:
        """What clients give and see, as far as the configuration says."""
        return Signature(
            tuple(self._as_promised(tensor) for tensor in self.config.input),
            tuple(tensor.name for tensor in self.config.output),
        )

    @property
    def max_batch(self) -> int | None:
        """The largest batch of a request; None where it is not limited, or is not said."""
        return self.config.max_batch_size or None

    def check(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Checks that clients can send and read what they do now.

        Args:
            inputs: What the chain reads.
            outputs: What it serves.

        Raises:
            BackboneError: If the configuration has an input that is not there, or a tensor of another type or shape.
        """
        there = {tensor.name: tensor for tensor in (*inputs, *outputs)}
        for kind, tensors in (("input", self.config.input), ("output", self.config.output)):
            for tensor in tensors:
                if tensor.name in there:
                    self._check_alike(kind, self._as_promised(tensor), there[tensor.name])
        missing = [name for name in self.signature.names if name not in there]
        if missing:
            raise BackboneError(f"{self.name} has an input {missing[0]!r} to clients, and its network has none.")

    def _as_promised(self, tensor: Any) -> Tensor:
        """A tensor as clients have it, without the batch."""
        kind = DataType.Name(tensor.data_type).removeprefix("TYPE_")
        if kind not in DTYPES:
            raise BackboneError(f"{self.name} has {tensor.name!r} as {kind}, which gati does not serve.")
        return Tensor(tensor.name, kind, tuple(tensor.dims)[0 if self.max_batch else 1 :])

    def _check_alike(self, kind: str, promised: Tensor, ours: Tensor) -> None:
        if promised.dtype != ours.dtype:
            raise BackboneError(
                f"{self.name} has {kind} {ours.name!r} as {promised.dtype}, and here it is {ours.dtype}."
            )
        least = -1 if kind == "input" else 0  # what may vary for clients must not be fixed here
        pairs = zip(promised.shape, ours.dims, strict=False)
        differ = any(a != b for a, b in pairs if b >= 0 and a >= least)
        if len(promised.shape) != len(ours.dims) or differ:
            raise BackboneError(
                f"{self.name} has {kind} {ours.name!r} as {list(promised.shape)} to clients, and a chain would have it "
                f"as {list(ours.dims)}."
            )

    def write_labels(self, repository: Path, chain: Chain) -> tuple[str, ...]:
        """Copies the names of classes beside a chain; returns the SHA-256 of each output's, empty for one without."""
        if not any(tensor.name in self.labels for tensor in chain.served):
            return ()
        digests = []
        for place, tensor in enumerate(chain.served):
            content = self.labels[tensor.name].read_bytes() if tensor.name in self.labels else b""
            digests.append(write_part(chain.labels_path(repository, place), content) if content else "")
        return tuple(digests)

    def hand_over(self, repository: Path, chain: Chain, *, plain: bool) -> None:
        """Has a chain, and the plain model beside it if there is one, batch requests and be described as the model is.

        The model's other settings are about another way to be run.
        """
        self._settle(repository, chain.model, chain)
        if plain:
            self._settle(repository, plain_name(chain.model), chain)

    def _settle(self, repository: Path, name: str, chain: Chain) -> None:
        config = read_config(repository, name)
        config.metric_tags.update(self.config.metric_tags)
        for place in chain.labelled:
            path = chain.labels_path(repository, place)
            config.output[place].label_filename = path.name
            if name != chain.model:
                shutil.copyfile(path, repository / name / path.name)
        formats = {tensor.name: tensor.format for tensor in self.config.input}
        for tensor in config.input:
            tensor.format = formats.get(tensor.name, tensor.format)
        if self.config.HasField(BATCHING) and chain.max_batch > 1:
            config.dynamic_batching.CopyFrom(self.config.dynamic_batching)
            sizes = [size for size in self.config.dynamic_batching.preferred_batch_size if size <= chain.max_batch]
            config.dynamic_batching.preferred_batch_size[:] = sizes
            for policy in POLICIES:
                config.dynamic_batching.ClearField(policy)
        write_config(repository, config)

    def notes(self, chain: Chain) -> Iterator[str]:
        """What is different for whoever has served the model until now."""
        yield from self.remarks
        kept = KEPT | {BATCHING} if chain.max_batch > 1 else KEPT
        left = [field.name for field, _ in self.config.ListFields() if field.name not in kept]
        if left:
            yield f"Not taken over from {self.name}'s configuration: {', '.join(left)}."
        if self.version != 1:
            yield (
                f"Clients and ensembles that ask for version {self.version} by its number are to ask for 1, or for "
                "none."
            )
        if self.others:
            named = ", ".join(map(str, self.others))
            yield (
                f"{self.name} is served in other versions too, which are not taken over: {named}. Version 1 is now the"
                f" chain, of version {self.version}'s network."
            )
        policies = [name for name in POLICIES if _is_set(self.config.dynamic_batching, name)]
        if policies and BATCHING not in left:
            yield (
                f"Not taken over from {self.name}'s dynamic_batching: {', '.join(policies)}; with these, what waits "
                "for a model's only instance may wait for half a second a batch (docs/LIMITS.md). Requests' priorities "
                "and timeouts have no effect, then, and the queue has no limit."
            )
        if self.max_batch is None and self.config.input:
            yield (
                f"Clients that read shapes and max_batch_size in {self.name}'s configuration find the batch in "
                f"max_batch_size, {chain.max_batch} in place of 0, and no longer in the shapes."
            )
        if self.max_batch is None or chain.max_batch < self.max_batch:
            yield f"Requests of more than {chain.max_batch} rows are refused (--max-batch)."


def read_deployed(folder: Path, config_name: str | None = None) -> Deployed:
    """Reads a model's folder: its configuration, if there is one, and the newest version that Triton serves of it.

    Args:
        folder: The model's.
        config_name: As tritonserver's --model-config-name has it; None where it is not given.

    Raises:
        BackboneError: If it is no such folder, or a chain can't take the model's place.
    """
    folder = Path(os.path.abspath(folder))  # "." has a name too
    config, remarks = model_folder.read_config(folder, config_name)
    versions = model_folder.versions(folder, config)
    if not versions:
        raise BackboneError(model_folder.no_model(folder))
    backend = str(config.backend or PLATFORMS.get(config.platform, config.platform))
    _check_kind(folder, config, backend)
    *others, version = versions
    path = model_folder.network(folder, version, config, backend)
    if config.cc_model_filenames:
        files = ", ".join(f"{config.cc_model_filenames[key]} ({key})" for key in sorted(config.cc_model_filenames))
        remarks.append(
            f"Not taken over: the files for GPUs of a compute capability, {files}; the chain is of {path.name}."
        )
    labels = dict(model_folder.labels(folder, config))
    return Deployed(folder.name, version, path, config, labels, tuple(others), tuple(remarks))


def _check_kind(folder: Path, config: ModelConfig, backend: str) -> None:
    if config.HasField("ensemble_scheduling"):
        steps = ", ".join(step.model_name for step in config.ensemble_scheduling.step)
        raise BackboneError(f"{folder.name} is an ensemble; export the model in it that takes the time, of {steps}.")
    if chain_path(folder.parent, folder.name).exists():
        raise BackboneError(f"{folder.name} is a chain already; export the network that it was made of.")
    if backend and backend not in model_folder.FILES:
        raise BackboneError(f"{folder.name} is run by Triton's backend {backend!r}; export its network as ONNX.")
    why = next((REFUSED[name] for name in REFUSED if _is_set(config, name)), None)
    if why is None and config.model_transaction_policy.decoupled:
        why = "may give several answers to a request (decoupled)"
    if why is not None:
        raise BackboneError(f"{folder.name} {why}, which a chain does not.")
    for tensor in config.input:
        odd = next((name for name in REFUSED_INPUTS if getattr(tensor, name, False)), None)
        if odd is not None:
            raise BackboneError(f"{folder.name}'s input {tensor.name!r} has {odd}, which a chain does not take.")


def _is_set(config: Any, name: str) -> bool:
    return any(known.name == name for known, _ in config.ListFields())
