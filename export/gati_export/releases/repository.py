# protobuf makes its classes at run time, where a type checker does not see them
# pyright: reportAttributeAccessIssue=false
"""Writes a chain's model repository (configurations by Triton's own protobuf), for the server to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from gati.errors import RepositoryError, first_line
from gati.inference.head import HIT, SCORE
from gati.inference.session import CPU, INTRA_OP, SPIN, Device
from gati.repository.chain import Chain, Segment, Tensor, chain_path
from gati.serving.wire import EXIT, RELEASE
from gati.system.files import replace
from gati_export.releases.accelerator import Accelerator
from gati_export.staging import out_of_reach

HEAD_VERSIONS = 2
"""Versions of a head that BLS mode keeps loaded: requests in flight finish on the release they began with."""
PART = re.compile(r"(.+)-(?:segment|head)-\d+")
TUNABLE = ("instance_group", "dynamic_batching", "version_policy", "metric_tags")
"""Fields of a configuration that change nothing but how a model is run."""


def write_repository(repository: Path, chain: Chain, accelerator: Accelerator | None = None) -> None:
    """Writes the chain's manifest, and the configuration of every model of it. Segments are in place already.

    Args:
        repository: Where to.
        chain: The chain.
        accelerator: How TensorRT runs the segments; None for ONNX Runtime on the processor.
    """
    for config in configs(chain, accelerator):
        write_config(repository, config)
    path = chain_path(repository, chain.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, chain.to_json())


def configs(chain: Chain, accelerator: Accelerator | None = None) -> list[ModelConfig]:
    """The configuration of every model of a chain but its heads: theirs come with their first versions."""
    found = [_segment_config(chain, segment, accelerator) for segment in chain.segments]
    return [*found, chain_config(chain)]


def check_config(path: Path, expected: ModelConfig) -> None:
    """Holds a configuration that came from elsewhere against the one that gati writes: Triton does what it says.

    Raises:
        RepositoryError: If it differs in more than what an operator may tune.
    """
    try:
        found = text_format.Parse(path.read_bytes(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{expected.name}/{path.name} can't be read ({first_line(error)}).") from error
    if _untuned(found) != _untuned(expected):
        raise RepositoryError(
            f"{expected.name}/{path.name} is not as gati writes it; only {', '.join(TUNABLE)} may differ."
        )


def _untuned(config: ModelConfig) -> ModelConfig:
    """A configuration without what an operator may tune, and what only tells clients the order of an image's axes."""
    plain = ModelConfig.FromString(config.SerializeToString())
    for field in TUNABLE:
        plain.ClearField(field)
    for tensor in plain.input:
        tensor.ClearField("format")
    return plain


def _segment_config(chain: Chain, segment: Segment, accelerator: Accelerator | None) -> ModelConfig:
    known = {t.name: t for t in (*chain.inputs, *(s.output for s in chain.segments))}
    inputs = [known[name] for name in segment.inputs]
    config = onnx_config(chain.segment_model(segment.index), inputs, [segment.output], chain.max_batch)
    config.parameters[SPIN].string_value = "0"  # many small models on the same cores
    if accelerator is not None:
        use = accelerator.use_plan if segment.plan else accelerator.accelerate
        use(config, accelerator.takes_zeros[segment.index])
    return config


def write_plain(repository: Path, chain: Chain, backbone: Path, accelerator: Accelerator | None = None) -> None:
    """Puts the unmodified backbone beside its chain, as a model of its own to compare with, run like its segments."""
    name = plain_name(chain.model)
    folder = repository / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.load(backbone), folder / "model.onnx")  # weights that lay beside the file come into it
    config = onnx_config(name, chain.inputs, chain.served, chain.max_batch)
    if accelerator is not None:
        accelerator.accelerate(config, accelerator.whole)
    write_config(repository, config)


def plain_name(model: str) -> str:
    """Name of the unmodified backbone of a chain."""
    return f"{model}-plain"


def chain_config(chain: Chain) -> ModelConfig:
    """The chain's own configuration: the backbone's inputs and outputs, and where each row was answered."""
    config = _config(chain.model, "gati", chain.max_batch)
    for tensor in chain.inputs:
        _add(config.input, tensor)
    for tensor in (*chain.served, Tensor(EXIT, "INT32", (1,)), Tensor(RELEASE, "INT64", (1,))):
        _add(config.output, tensor)
    for place in chain.labelled:
        config.output[place].label_filename = chain.labels_path(Path(), place).name
    return config


def onnx_config(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], max_batch: int) -> ModelConfig:
    """The configuration of an ONNX model."""
    config = _config(model, "onnxruntime", max_batch)
    for tensor in inputs:
        _add(config.input, tensor)
    for tensor in outputs:
        _add(config.output, tensor)
    return config


def head_config(chain: Chain, index: int) -> ModelConfig:
    """A head's configuration. The batch is one of its dimensions: `score` and `hit` have no other.

    It runs on the processor even where segments have a GPU: in BLS mode, hidden state comes to the host between models.
    """
    config = _config(chain.head_model(index), "onnxruntime", 0)
    config.parameters[INTRA_OP].string_value = "1"  # microseconds of work
    config.version_policy.latest.num_versions = HEAD_VERSIONS
    cut = chain.segments[index].output
    _add(config.input, _with_batch(cut))
    for tensor in (chain.output, Tensor(SCORE, "FP32", ()), Tensor(HIT, "BOOL", ())):
        _add(config.output, _with_batch(tensor))
    return config


def _with_batch(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, (-1, *tensor.shape))


def _config(model: str, backend: str, max_batch: int) -> ModelConfig:
    config = ModelConfig(name=model, backend=backend, max_batch_size=max_batch)
    if max_batch > 1:
        config.dynamic_batching.SetInParent()  # of requests that wait anyway: nobody waits for others to come
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    return config


def _add(tensors: Any, tensor: Tensor) -> None:
    added = tensors.add(name=tensor.name, data_type=DataType.Value(f"TYPE_{tensor.dtype}"), dims=tensor.dims)
    if not tensor.shape:
        added.reshape.SetInParent()


def copy_config(source: Path, repository: Path, name: str) -> None:
    """Gives a model the configuration that another one has, in the folder `source`."""
    config = read_config(source.parent, source.name)
    config.name = name
    write_config(repository, config)


def move(repository: Path, name: str, device: Device) -> None:
    """Has an ONNX model that is configured for the processor run on a device; one with a GPU of its own stays there."""
    if device == CPU:
        return
    config = read_config(repository, name)
    if config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU:
        config.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
        config.instance_group[0].gpus.append(device.index)
        write_config(repository, config)


def read_config(repository: Path, name: str) -> ModelConfig:
    """Reads a configuration that gati wrote."""
    return text_format.Parse((repository / name / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def write_config(repository: Path, config: ModelConfig) -> None:
    """Writes a model's config.pbtxt, making its folder where needed."""
    folder = repository / config.name
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "config.pbtxt", text_format.MessageToString(config))


def chain_of(name: str) -> str | None:
    """The chain that a model of this name would be a segment or a head of; None if it would be neither."""
    part = PART.fullmatch(name)
    return part and part[1]


def models_of(repository: Path, name: str) -> list[Path]:
    """Folders of a chain's models: itself, its segments, its heads."""
    return [folder for folder in sorted(repository.glob(f"{name}*")) if name in (folder.name, chain_of(folder.name))]


def check_room(staging: Path, repository: Path, name: str, plain: bool) -> None:
    """Checks that a chain can be moved from a staging folder into a repository, before much work goes into it.

    Raises:
        RepositoryError: If a model of one of its names is there already, or the two are on different file systems.
    """
    taken = models_of(repository, name) + [p for p in [repository / plain_name(name)] if plain and p.exists()]
    if taken:
        raise RepositoryError(f"{repository} holds {taken[0].name!r} already; choose another --name, or remove it.")
    whole = chain_of(name)
    if whole and chain_path(repository, whole).exists():  # the part may not be there yet, as a head without a version
        raise RepositoryError(f"{name!r} is a name for a part of {whole!r} in {repository}; choose another --name.")
    if repository.exists() and (reason := out_of_reach(staging, repository)) is not None:
        raise RepositoryError(reason)


def install(staged: Path, repository: Path, name: str) -> None:
    """Moves a chain that was written to a staging folder into the repository, all of it or nothing, replacing none.

    Raises:
        RepositoryError: If a model of one of its names is there already, or it can't be moved.
    """
    repository.mkdir(parents=True, exist_ok=True)
    check_room(staged, repository, name, (staged / plain_name(name)).exists())
    move_in(staged, repository, name)


def move_in(staged: Path, repository: Path, name: str) -> None:
    """Moves a staged chain's models into a repository that holds none of them, all or nothing.

    Raises:
        RepositoryError: If it can't be moved.
    """
    moved: list[str] = []
    try:
        # The chain itself last: a server that starts meanwhile sees it complete or not at all.
        for folder in sorted(staged.iterdir(), key=lambda folder: folder.name == name):
            folder.rename(repository / folder.name)
            moved.append(folder.name)
    except OSError as error:
        for folder_name in moved:
            (repository / folder_name).rename(staged / folder_name)
        raise RepositoryError(f"{repository} could not take {name!r} ({error.strerror}); nothing changed.") from error
