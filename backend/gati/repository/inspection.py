"""What a head's file may hold, seen before anything of it is run: no code, and no work or memory without bound.

A session runs parts of a graph as it opens it, so that trying a head out would come too late. A graph of plain
operators without control flow, all of whose sizes are known from the shape of its input, ends, and needs no more than
can be added up here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from gati.errors import ReleaseRefused, first_line
from gati.repository.chain import Chain
from gati.repository.release import LARGEST_FILE

Shape = tuple[int, ...]

NODES = 2000
ROW_ELEMENTS = 1 << 22
"""Numbers at work on one row, beside weights; on top of that, `PER_CUT` for each of the cut tensor's."""
PER_CUT = 16
ROW_WORK = 1 << 32
"""Multiply-adds for one row: as many as ResNet-50 takes."""
FREE = 512
"""Assumed size of a dimension that may vary. A head whose memory grows with the cube of it is too large then."""
SMALL = 64
"""Elements of a weight that may be a shape; what others hold tells nothing of sizes."""

ROUNDS = 8
"""Of inferring shapes and working out sizes from them; two are enough for what PyTorch's exporter writes."""

NAMES = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant
ConstantOfShape Conv Cos CumSum DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand Flatten Floor
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not OneHot Or Pad Pow PRelu QuantizeLinear Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(NAMES.split())
"""What our families use, and what is as harmless: nothing that loops, draws lots, or reads anything but its inputs."""


def inspect(model: bytes, chain: Chain, index: int) -> None:
    """Holds a head's file against what a head may be.

    Raises:
        ReleaseRefused: If it is too large, reads other files, uses anything but plain operators, or its work or
            memory is not bounded by what a head may take.
    """
    name = f"head {index} of {chain.model!r}"
    try:
        proto = onnx.ModelProto.FromString(model)
    except DecodeError as error:
        raise ReleaseRefused(f"{name} is not an ONNX model that can be run: {error}.") from error
    fault = _foreign(proto) or _elsewhere(proto.graph, len(model))
    if fault:
        raise ReleaseRefused(f"{name} {fault}.")
    try:
        shapes = _shapes(proto, chain, index)
    except Exception as error:  # whatever the inference raises: what it can't follow is not run
        raise ReleaseRefused(f"{name} is not an ONNX model that can be run: {first_line(error)}.") from error
    fault = _boundless(proto.graph, shapes, chain, index)
    if fault:
        raise ReleaseRefused(f"{name} {fault}.")


def _foreign(proto: onnx.ModelProto) -> str | None:
    """What of a model is more than a graph of plain operators, or None."""
    if proto.functions or proto.training_info or proto.graph.sparse_initializer:
        return "holds functions, training or sparse weights, which no head may"
    if len(proto.graph.node) > NODES:
        return f"has {len(proto.graph.node)} nodes, more than {NODES}"
    for node in proto.graph.node:
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if kind not in OPERATORS or any(map(_is_more, node.attribute)):
            return f"uses the operator {kind!r}, which no head may"
    return None


def _is_more(attribute: onnx.AttributeProto) -> bool:
    """Whether an attribute is more than numbers, text or one dense tensor."""
    return (
        attribute.HasField("g")
        or attribute.HasField("sparse_tensor")
        or any((attribute.graphs, attribute.tensors, attribute.sparse_tensors, attribute.type_protos))
    )


def _elsewhere(graph: onnx.GraphProto, size: int) -> str | None:
    """Which weight is not in the file as it should be, or None."""
    held = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*graph.initializer, *held):
        if tensor.external_data or tensor.data_location:
            return f"keeps {tensor.name!r} in another file, which no head may"
        if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > 2 * size:
            return f"says that {tensor.name!r} has shape {list(tensor.dims)}, which its file does not hold"
    return None


def _shapes(proto: onnx.ModelProto, chain: Chain, index: int) -> dict[str, Shape | None]:
    """Shapes of all tensors for the largest batch, None where they can't be told from the file."""
    graph = proto.graph
    cut, batch = chain.segments[index].output, chain.max_batch
    del graph.value_info[:]  # nothing is believed that can be inferred
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for tensor in graph.input:
        if tensor.name == cut.name:
            dims = [batch, *(FREE if size < 0 else size for size in cut.shape)]
            tensor.type.tensor_type.shape.CopyFrom(helper.make_tensor_type_proto(1, dims).tensor_type.shape)
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > SMALL]
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= SMALL]
    named = {tensor.name for tensor in graph.input}
    graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large if t.name not in named)
    del graph.initializer[:]
    graph.initializer.extend(small)
    shapes = _inferred(proto)
    for _ in range(ROUNDS):
        if None not in shapes.values() or not _fold(graph, shapes):
            break
        shapes = _inferred(proto)
    return shapes


def _inferred(proto: onnx.ModelProto) -> dict[str, Shape | None]:
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    used = (name for node in inferred.node for name in (*node.input, *node.output))
    shapes: dict[str, Shape | None] = {name: None for name in used if name}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        if kind.HasField("shape") and kind.elem_type != TensorProto.STRING and min(dims, default=0) >= 0:
            shapes[value.name] = tuple(dims)
    return shapes


def _fold(graph: onnx.GraphProto, shapes: dict[str, Shape | None]) -> bool:
    """Replaces sizes that can be worked out by what they are; inference alone does not. Returns whether it found any.

    Only the few ways are followed in which exporters write sizes, and each only where it can mean but one thing.
    """
    numbers = (t for t in graph.initializer if t.data_type == TensorProto.INT64 and len(t.dims) < 2)
    known = {t.name: numpy_helper.to_array(t) for t in numbers}
    found: dict[str, np.ndarray] = {}
    for node in graph.node:
        value = _size(node, known, shapes)
        if value is not None and value.size <= SMALL:
            found[node.output[0]] = known[node.output[0]] = value
    kept = [node for node in graph.node if node.output[0] not in found]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())
    return bool(found)


def _size(node: onnx.NodeProto, known: dict[str, np.ndarray], shapes: dict[str, Shape | None]) -> np.ndarray | None:
    """What a node computes of known sizes, as int64, a number or a vector; None where that is not plain."""
    fields = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Constant":
        return _constant(fields)
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        return None if shape is None else np.array(shape[fields.get("start", 0) : fields.get("end")], np.int64)
    values = [known[name] for name in node.input if name in known]
    return _computed(node.op_type, values, fields) if 0 < len(values) == len(node.input) else None


def _computed(operator: str, values: list[np.ndarray], fields: dict[str, Any]) -> np.ndarray | None:
    result = None
    match operator, values:
        case "Cast", [value] if fields["to"] == TensorProto.INT64:
            result = value
        case "Squeeze", [value, *_] if value.size == 1:
            result = value.reshape(())
        case "Unsqueeze", [value, axis] if value.ndim == 0 and axis.tolist() == [0]:
            result = value.reshape(1)
        case "Reshape", [value, shape] if shape.tolist() == [-1]:
            result = value.reshape(-1)
        case "Concat", [*_] if all(value.ndim == 1 for value in values):
            result = np.concatenate(values)
        case "Mul", [one, other] if one.ndim == other.ndim == 0:
            result = np.asarray(one * other)
    return result


def _constant(fields: dict[str, Any]) -> np.ndarray | None:
    if "value" in fields and fields["value"].data_type == TensorProto.INT64 and len(fields["value"].dims) < 2:
        return numpy_helper.to_array(fields["value"])
    return np.array(fields["value_ints"], np.int64) if "value_ints" in fields else None


def _boundless(graph: onnx.GraphProto, shapes: dict[str, Shape | None], chain: Chain, index: int) -> str | None:
    """What of a graph is of unknown size, or too much, or None."""
    unknown = next((name for name, shape in shapes.items() if shape is None), None)
    if unknown is not None:
        return f"has a tensor {unknown!r} whose size depends on what it is asked"
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    sizes = [math.prod(shape) for shape in known.values()]
    sizes += [_columns(node, known) for node in graph.node if node.op_type == "Conv"]
    cut = math.prod(FREE if size < 0 else size for size in chain.segments[index].output.shape)
    weights = LARGEST_FILE // 4
    room = weights + chain.max_batch * (ROW_ELEMENTS + PER_CUT * cut)
    if sum(sizes) > room:
        return f"would hold {sum(sizes):,} numbers at once for {chain.max_batch} rows, more than {room:,}"
    work = sum(_work(graph, known))
    if work > chain.max_batch * ROW_WORK:
        return f"takes {work:,} operations for {chain.max_batch} rows, more than {chain.max_batch * ROW_WORK:,}"
    return None


def _columns(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Elements that a convolution may copy of one image, to multiply them as a matrix."""
    return math.prod(shapes[node.output[0]][2:]) * math.prod(shapes[node.input[1]][1:])


def _work(graph: onnx.GraphProto, shapes: dict[str, Shape]) -> Iterator[int]:
    """Multiply-adds of each node, or more."""
    for node in graph.node:
        read = [shapes[name] for name in node.input if name]
        given = sum(math.prod(shapes[name]) for name in node.output if name)
        if node.op_type in ("MatMul", "Gemm"):
            yield given * max(read[0], default=1)
        elif node.op_type == "Conv":
            yield given * math.prod(read[1][1:])
        elif node.op_type in ("AveragePool", "MaxPool"):
            yield given * math.prod(read[0][2:])
        else:
            yield given + sum(map(math.prod, read))
