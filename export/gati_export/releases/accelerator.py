# protobuf makes its classes at run time, where a type checker does not see them
# pyright: reportAttributeAccessIssue=false
"""TensorRT inside Triton's ONNX Runtime backend: which engines to build for a segment, when, and where to keep them.

Parameters are those of github.com/triton-inference-server/onnxruntime_backend, README.md, "ONNX Runtime with TensorRT
optimization". The backend refuses those that it doesn't know, and knows `trt_profile_*` since 24.04.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from gati.inference.session import run
from gati.repository.chain import Chain
from gati_export.samples.activations import open_segments, run_segments
from gati_export.samples.ragged import few

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]
"""The smallest shapes that an engine is built for, those that it is fastest at, and the largest; batch first."""

FEW = 4
"""An engine is fastest at a batch this many times smaller than the largest: what misses goes on in smaller ones."""


@dataclass(frozen=True)
class Accelerator:
    """How a chain's segments are run by TensorRT.

    Attributes:
        engines: Where the server keeps the engines that it builds. Of this chain alone: they are named after a graph's
            tensors, not after its weights.
        shapes: Of each tensor, as the samples have it, without the batch.
        whole: Whether the backbone takes zeros, in one piece; what does not can't be warmed up with them.
        takes_zeros: The same of each segment.
    """

    engines: Path
    shapes: Mapping[str, Shape]
    whole: bool
    takes_zeros: Sequence[bool]

    @classmethod
    def of(cls, chain: Chain, paths: Sequence[Path], samples: Mapping[str, np.ndarray], folder: Path) -> Accelerator:
        """Looks at a chain's segments as they run.

        Args:
            chain: The chain.
            paths: Its segments' files.
            samples: Model inputs by name; a typical one is run.
            folder: A folder on the serving machine for a folder of engines.

        Raises:
            BackboneError: If a segment can't be read.
        """
        sessions = open_segments(paths)
        values = few(samples, 1)
        for segment, session in zip(chain.segments, sessions, strict=True):
            name = segment.output.name
            values[name] = run(session, [name], {read: values[read] for read in segment.inputs})[0]
        zeros = {name: np.zeros_like(value) for name, value in values.items()}
        known = hashlib.sha256("".join(chain.digests()).encode()).hexdigest()[:12]
        return cls(
            folder / f"engines-{chain.model}-{known}",
            {name: value.shape[1:] for name, value in values.items()},
            _runs(sessions, zeros),
            [_runs([session], zeros) for session in sessions],
        )

    def accelerate(self, config: ModelConfig, warm: bool) -> None:
        """Has an ONNX model run by TensorRT, on a server with a GPU; on another it runs as without.

        Args:
            config: The model's configuration.
            warm: Whether it takes zeros, and so can be run once before it is said to be ready.
        """
        config.instance_group[0].kind = ModelInstanceGroup.KIND_AUTO
        half = any(t.data_type == DataType.Value("TYPE_FP16") for t in (*config.input, *config.output))
        parameters = {
            "precision_mode": "FP16" if half else "FP32",  # the network's own: heads were learned on its answers
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(self.engines),
        }
        profiles = self.profiles(
            {t.name: tuple(t.reshape.shape if t.HasField("reshape") else t.dims) for t in config.input},
            config.max_batch_size,
        )
        if not varies(config) and not any(set(name) & set(",:") for name in profiles):  # which would end a name
            for place, which in enumerate(("min", "opt", "max")):
                shapes = (f"{name}:{'x'.join(map(str, profiles[name][place]))}" for name in profiles)
                parameters[f"trt_profile_{which}_shapes"] = ",".join(shapes)
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        accelerators.add(name="tensorrt").parameters.update(parameters)
        if warm:
            self._warm_up(config)

    def use_plan(self, config: ModelConfig, warm: bool) -> None:
        """Has a model's plan run, by Triton's own TensorRT backend; that needs a GPU."""
        config.backend = "tensorrt"
        config.parameters.clear()  # ONNX Runtime's
        config.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
        if warm:
            self._warm_up(config)

    def profiles(self, inputs: Mapping[str, Shape], max_batch: int) -> dict[str, Profile]:
        """Shapes to build an engine for, of inputs whose dimensions are these, without the batch."""
        return {name: profile(dims, self.shapes[name], max_batch) for name, dims in inputs.items()}

    def _warm_up(self, config: ModelConfig) -> None:
        """Has a model run on zeros when it is loaded, in batches of one and of the largest size.

        Engines are built then, and not on a request: one for all batches where there is a profile, and where there is
        none because a shape varies, one that these two widen. A model that fails on them is not loaded.
        """
        for batch in sorted({1, config.max_batch_size}):
            sample = config.model_warmup.add(name=f"batch-{batch}", batch_size=batch)
            for tensor in config.input:
                zeros = sample.inputs[tensor.name]
                zeros.data_type, zeros.zero_data = tensor.data_type, True
                zeros.dims.extend(self.shapes[tensor.name] or (1,))


def varies(config: ModelConfig) -> bool:
    """Whether an input has dimensions, besides the batch, that may be any."""
    return any(dim < 0 for tensor in config.input for dim in tensor.dims)


def profile(dims: Shape, seen: Shape, max_batch: int) -> Profile:
    """What shapes to build an engine for.

    Args:
        dims: The tensor's dimensions without the batch; negative where they may vary.
        seen: Those that it had.
        max_batch: The largest batch.
    """
    smallest = tuple(1 if dim < 0 else dim for dim in dims)
    return (1, *smallest), (-(-max_batch // FEW), *seen), (max_batch, *seen)


def _runs(sessions: Sequence, values: Mapping[str, np.ndarray]) -> bool:
    try:
        run_segments(sessions, values)
    except Exception:  # ONNX Runtime's own errors share no base
        return False
    return True
