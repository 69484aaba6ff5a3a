# protobuf makes its classes at run time, where a type checker does not see them
# pyright: reportAttributeAccessIssue=false
"""A model's folder in a Triton repository: what Triton reads of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from gati.errors import BackboneError
from gati_export.backbones.pbtxt import read_pbtxt

FILES = {"onnxruntime": "model.onnx", "pytorch": "model.pt"}
"""Backends whose networks can be cut, and what Triton calls their files if it is not told."""
CONFIGS = "configs"
"""The folder of configurations that tritonserver's --model-config-name chooses from."""
VERSION = re.compile(r"0|[1-9][0-9]*")


def no_model(folder: Path) -> str:
    """Why a folder without versions is not exported, and what may have been meant."""
    why = f"{folder} is no model of a Triton repository: no version of it is served, such as 1/."
    if VERSION.fullmatch(folder.name):
        return f"{why} It seems to be a version of one; give {folder.parent}."
    models = sorted({path.parent.name for path in folder.glob("*/config.pbtxt")})
    return f"{why} It seems to be a repository; give one of its models, of {', '.join(models)}." if models else why


def network(folder: Path, version: int, config: ModelConfig, backend: str) -> Path:
    """The file that Triton reads of a version.

    Raises:
        BackboneError: If it is not there.
    """
    there = [name for name in FILES.values() if (folder / str(version) / name).exists()]
    name = config.default_model_filename or FILES.get(backend) or [*there, "model.onnx"][0]
    path = folder / str(version) / name
    if path.is_dir():  # as Triton has it, of ONNX networks whose weights lie beside them
        path = path / FILES["onnxruntime"]
    if path.is_file():
        return path
    missing = f"There is no {path.relative_to(folder.parent)}; gati takes ONNX and TorchScript networks"
    if config.cc_model_filenames:
        for_gpus = ", ".join(sorted(set(config.cc_model_filenames.values())))
        missing += f", and one of cc_model_filenames by its own path ({for_gpus})"
    raise BackboneError(f"{missing}.")


def read_config(folder: Path, name: str | None) -> tuple[ModelConfig, list[str]]:
    """A model's configuration, as a tritonserver reads it that was given a name or none, and what to know of it.

    Raises:
        BackboneError: If it can't be read, or is another model's.
    """
    path, remarks = folder / "config.pbtxt", list[str]()
    named = sorted((folder / CONFIGS).glob("*.pbtxt"))
    if name is not None:
        own = folder / CONFIGS / f"{name}.pbtxt"
        path = own if own.is_file() else path
        missing = "" if path == own else f": {CONFIGS}/{own.name} is not there"
        remarks.append(f"Configured by {path.relative_to(folder.parent)}{missing}.")
    elif named:
        names = ", ".join(file.stem for file in named)
        remarks.append(f"Configured by {folder.name}/config.pbtxt; --model-config-name would take another, of {names}.")
    if not path.is_file():
        return ModelConfig(), remarks
    config, unknown = read_pbtxt(path)
    if unknown:
        remarks.append(
            f"Not understood in {path.relative_to(folder.parent)}, perhaps of a newer Triton, and not taken over: "
            f"{', '.join(unknown)}."
        )
    if config.name not in ("", folder.name):
        raise BackboneError(f"{path} is of a model {config.name!r}: its folder was renamed or copied.")
    return config, remarks


def versions(folder: Path, config: ModelConfig) -> list[int]:
    """Versions that Triton serves, the newest last."""
    found = sorted(int(path.name) for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.is_dir())
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "specific":
            return [version for version in found if version in policy.specific.versions]
        case "all":
            return found
        case _:
            newest = policy.latest.num_versions if policy.HasField("latest") else 1
            return found[-newest:] if newest else []


def labels(folder: Path, config: ModelConfig) -> Iterable[tuple[str, Path]]:
    """Outputs whose classes have names, and the files of these.

    Raises:
        BackboneError: If one is not there.
    """
    for tensor in config.output:
        if tensor.label_filename:
            path = folder / tensor.label_filename
            if not path.is_file():
                raise BackboneError(f"There is no {path}, which names the classes of output {tensor.name!r}.")
            yield tensor.name, path
