"""Builds small ONNX graphs node by node, for what no exporter would write on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """An ONNX graph under construction; its weights are random but fixed."""

    def __init__(self, seed: int = 0, opset: int = 18):
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []

    def input(self, name: str, shape: list[Any] | None, dtype: Any = np.float32) -> str:
        """Declares an input; strings are dimensions that may vary."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Adds an initialiser."""
        array = np.asarray(value, dtype)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        """Adds a random float32 initialiser."""
        return self.constant(self.rng.normal(size=shape) / np.sqrt(shape[0]), np.float32)

    def node(self, op: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output, and gives that output's name."""
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], domain=domain, **attributes))
        return name

    def linear(self, x: str, inner: int, outer: int, name: str | None = None) -> str:
        """Adds a matrix product with a weight [inner, outer]."""
        return self.node("MatMul", x, self.weight(inner, outer), name=name)

    def branch(self, name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        """A subgraph without inputs that ends in the last node's output."""
        output = onnx.ValueInfoProto(name=nodes[-1].output[0])
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        return helper.make_graph(nodes, name, [], [output])

    def model(
        self, *outputs: str, shape: list[Any] | None = None, dtype: int = onnx.TensorProto.FLOAT
    ) -> onnx.ModelProto:
        """The finished model."""
        infos = [helper.make_tensor_value_info(name, dtype, shape) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, infos, self.weights)
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def save(self, path: Path, *outputs: str, **declared: Any) -> Path:
        """Writes the finished model."""
        onnx.save(self.model(*outputs, **declared), path)
        return path
