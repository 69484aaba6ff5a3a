"""TensorRT plans: segments compiled for the GPU of this machine, by the `tensorrt` package. Never run so far.

A plan fits the model of GPU and the version of TensorRT that it was made with, those of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gati.errors import BackboneError
from gati.repository.chain import Chain
from gati_export.releases.accelerator import Accelerator, Profile
from gati_export.staging import write_part


def why_no_plans() -> str | None:
    """Why no plans can be made on this machine, or None."""
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        return f"the Python package tensorrt can't be imported ({error})"
    try:
        tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    except Exception as error:  # without a GPU it gets a null pointer for a builder
        return f"TensorRT {tensorrt.__version__} finds no GPU ({error})"
    return None


def compiled(repository: Path, chain: Chain, accelerator: Accelerator) -> tuple[Chain, str]:
    """Makes plans of a chain's segments, if that can be done here; returns the chain, and what became of it.

    Raises:
        BackboneError: If TensorRT can't compile a segment.
    """
    reason = why_no_plans()
    if reason is None:
        how = "Segments are TensorRT plans, for this machine's model of GPU and version of TensorRT alone."
        return _with_plans(repository, chain, accelerator), how
    return chain, (
        f"Segments are run by TensorRT inside of ONNX Runtime, since here {reason}: a server with a GPU builds engines "
        f"when it loads them, and keeps them in {accelerator.engines}; one without a GPU does as without TensorRT."
    )


def _with_plans(repository: Path, chain: Chain, accelerator: Accelerator) -> Chain:
    """Puts a plan beside each segment's ONNX file, from which offline jobs go on to learn."""
    shapes = {tensor.name: tensor.shape for tensor in (*chain.inputs, *(s.output for s in chain.segments))}
    segments = []
    for segment in chain.segments:
        inputs = {name: shapes[name] for name in segment.inputs}
        plan = make_plan(chain.segment_path(repository, segment.index), accelerator.profiles(inputs, chain.max_batch))
        digest = write_part(chain.plan_path(repository, segment.index), plan)
        segments.append(replace(segment, plan=digest))
    return replace(chain, segments=tuple(segments))


def make_plan(model: Path, profiles: Mapping[str, Profile]) -> bytes:
    """Compiles an ONNX model in the types that it has: what is float32 is not rounded to TensorFloat-32.

    Args:
        model: The file.
        profiles: Shapes of its inputs, by name.

    Raises:
        BackboneError: If TensorRT can't.
    """
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        raise BackboneError(f"TensorRT can't read {model}: {parser.get_error(0)}; leave --engine out.")
    plan = builder.build_serialized_network(network, _settings(tensorrt, builder, profiles))
    if plan is None:
        raise BackboneError(f"TensorRT can't make a plan of {model}, its log says why; leave --engine out.")
    return bytes(plan)


def _settings(tensorrt: Any, builder: Any, profiles: Mapping[str, Profile]) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    for name, (smallest, best, largest) in profiles.items():
        shapes.set_shape(name, smallest, best, largest)
    config.add_optimization_profile(shapes)
    return config
