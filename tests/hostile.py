"""Heads made to harm: they keep the contract of a head's inputs and outputs, and would do more than answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HUGE = 1 << 40


@dataclass(frozen=True)
class Harm:
    """What is put into a head, and what is said of it.

    Attributes:
        name: Of the test.
        spoil: Changes the graph of a marked head (tests/drafts.py).
        reason: Pattern of what it is refused with.
    """

    name: str
    spoil: Callable[[onnx.ModelProto], None]
    reason: str

    def __call__(self, model: bytes) -> bytes:
        """The head with the harm in it."""
        proto = onnx.ModelProto.FromString(model)
        self.spoil(proto)
        return proto.SerializeToString()


def _constant(proto: onnx.ModelProto, name: str, value: object) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _before_the_score(proto: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Puts nodes that make `more` of `flat` [batch, n] behind the first, and has the score depend on it."""
    score = next(node for node in proto.graph.node if "score" in node.output)
    score.output[0] = "mean"
    place = list(proto.graph.node).index(score) + 1
    _constant(proto, "all", np.array([], np.int64))
    ends = [
        helper.make_node("ReduceMax", ["more"], ["most"], keepdims=0),
        helper.make_node("Add", ["mean", "most"], ["score"]),
    ]
    rest = list(proto.graph.node)[place:]
    del proto.graph.node[place:]
    proto.graph.node.extend([*nodes, *ends, *rest])


def _elsewhere(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "said")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../secret")


def _elsewhere_in_a_constant(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    _before_the_score(proto, helper.make_node("Constant", [], ["more"], value=tensor))


def _elsewhere_in_a_sparse_constant(proto: onnx.ModelProto) -> None:
    values = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    values.external_data.add(key="location", value="../../../etc/passwd")
    places = numpy_helper.from_array(np.array([0]), "places")
    sparse = onnx.SparseTensorProto(values=values, indices=places, dims=[1])
    node = helper.make_node("Constant", [], ["more"])
    node.attribute.append(helper.make_attribute("sparse_value", sparse))
    _before_the_score(proto, node)


def _endless(proto: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Identity", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    true = _constant(proto, "true", np.array(True))
    _before_the_score(proto, helper.make_node("Loop", ["", true, "flat"], ["more"], body=body))


def _allocating(proto: onnx.ModelProto) -> None:
    shape = _constant(proto, "huge", np.array([HUGE]))
    _before_the_score(proto, helper.make_node("ConstantOfShape", [shape], ["more"]))


def _allocating_as_told(proto: onnx.ModelProto) -> None:
    """Zeros do no harm: the size is the largest of the activations."""
    _before_the_score(
        proto,
        helper.make_node("ReduceMax", ["flat"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["size"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["size", _constant(proto, "one", np.array([1]))], ["sizes"]),
        helper.make_node("Expand", ["score_less", "sizes"], ["more"]),
    )
    _constant(proto, "score_less", np.float32(0))


def _claiming(proto: onnx.ModelProto) -> None:
    """As above, with a shape claimed for what has none."""
    _allocating_as_told(proto)
    proto.graph.value_info.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _growing(proto: onnx.ModelProto) -> None:
    """Each step is innocent; forty of them double the data each."""
    nodes = [
        helper.make_node("Concat", ["flat" if i == 0 else f"twice{i}"] * 2, [f"twice{i + 1}"], axis=1)
        for i in range(40)
    ]
    nodes[-1].output[0] = "more"
    _before_the_score(proto, *nodes)


def _toiling(proto: onnx.ModelProto) -> None:
    """No tensor is too large; to multiply them takes minutes."""
    _constant(proto, "sides", np.array([8192, 8192]))
    _constant(proto, "nought", np.float32(0))
    _before_the_score(
        proto,
        helper.make_node("Expand", ["nought", "sides"], ["square"]),
        helper.make_node("MatMul", ["square", "square"], ["more"]),
    )


def _calling(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    _before_the_score(proto, helper.make_node("Shell", ["flat"], ["more"], domain="com.example"))


def _hiding(proto: onnx.ModelProto) -> None:
    """An operator of its own, as a function of the file."""
    opsets = [helper.make_opsetid("", 18)]
    abs_ = helper.make_node("Abs", ["x"], ["y"])
    proto.functions.append(helper.make_function("own", "Twist", ["x"], ["y"], [abs_], opsets))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    _before_the_score(proto, helper.make_node("Twist", ["flat"], ["more"], domain="own"))


def _boasting(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(name="more", data_type=TensorProto.FLOAT, dims=[HUGE], raw_data=b"1234")
    proto.graph.initializer.append(tensor)
    _before_the_score(proto)


def _many(proto: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Abs", ["flat"], [f"abs{i}"]) for i in range(3000)]
    nodes[-1].output[0] = "more"
    _before_the_score(proto, *nodes)


HARMS = [
    Harm("data elsewhere", _elsewhere, "keeps 'said' in another file"),
    Harm("data elsewhere in a constant", _elsewhere_in_a_constant, "keeps 'secret' in another file"),
    Harm("data elsewhere in a sparse constant", _elsewhere_in_a_sparse_constant, "uses the operator 'Constant'"),
    Harm("a graph that never ends", _endless, "uses the operator 'Loop'"),
    Harm("a terabyte at once", _allocating, "would hold .* numbers at once"),
    Harm("memory as its input asks", _allocating_as_told, "whose size depends on what it is asked"),
    Harm("memory under a false shape", _claiming, "whose size depends on what it is asked"),
    Harm("memory that doubles", _growing, "would hold .* numbers at once"),
    Harm("work without end", _toiling, "takes .* operations"),
    Harm("an operator from elsewhere", _calling, r"uses the operator 'com\.example\.Shell'"),
    Harm("an operator of its own", _hiding, "holds functions"),
    Harm("a weight that is not there", _boasting, "says that 'more' has shape"),
    Harm("too many nodes", _many, "has .* nodes"),
]
