"""Steps: a stage and the head behind it, as graphs that can be joined.

A request of one row is not worth what calls from Python cost: on a processor, all steps are joined for it
(gati.cascade). On a GPU, each stage is joined with its head, for batches too (gati.ladder).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, defs

from gati.fuse import prefixed
from gati.head import HeadSpec
from gati.state import HeadState


class UnjoinableError(Exception):
    """Stages and heads that can't be one graph."""


@dataclass(frozen=True)
class Step:
    """A stage as it is run, and the head behind it.

    Attributes:
        last: Index of the stage's last segment.
        stage: The stage, which gives the cut tensor, or at the end the chain's output.
        head: The head, which reads the cut tensor; None at the end.
        spec: What the head takes and gives.
    """

    last: int
    stage: ModelProto
    head: ModelProto | None = None
    spec: HeadSpec = field(default_factory=lambda: HeadSpec({}, ()))


Leave = Callable[[np.ndarray, np.ndarray, int], None]
"""Told of rows that are answered: which of the batch (indices), with what, [rows, classes], and the index of the
segment after which they were. Called as soon as that is known, perhaps on another thread."""


class Missed(NamedTuple):
    """What a head that remembers would remember rows by that it missed.

    Attributes:
        cut: Its cut point.
        rows: Which of the batch, indices.
        keys: FP32 [rows, dim].
    """

    cut: int
    rows: np.ndarray
    keys: np.ndarray


class Joined(Protocol):
    """A chain and the heads of a release, joined.

    Attributes:
        rows: How many rows it takes at once.
    """

    rows: int

    def run(self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState], leave: Leave) -> Sequence[Missed]:
        """Runs rows to their exits.

        Args:
            inputs: The model's inputs, [rows, ...] each.
            state: Of the release's heads, by cut point.
            leave: Told of each row once.

        Returns:
            What heads would remember; perhaps of those behind a row's exit, too.

        Raises:
            Exception: ONNX Runtime's own, if a row can't be run; some may have left.
        """
        ...


def apart(step: Step) -> GraphProto:
    """A step's head, with names of its own, all but that of the cut tensor, which it reads."""
    assert step.head is not None
    head = prefixed(step.head.graph, of_head(step.last, ""))
    (cut,) = {value.name for value in step.head.graph.input} - {*step.spec.state}
    for node in head.node:
        node.input[:] = [cut if name == of_head(step.last, cut) else name for name in node.input]
    return head


def common_versions(steps: Sequence[Step]) -> dict[str, int]:
    """Versions of operators, by domain, at which all stages and heads mean the same as at their own.

    Raises:
        UnjoinableError: If there are none.
    """
    models = [model for step in steps for model in (step.stage, step.head) if model is not None]
    versions: dict[str, int] = {}
    for model in models:
        for opset in model.opset_import:
            versions[opset.domain] = max(versions.get(opset.domain, 0), opset.version)
    for model in models:
        own = {opset.domain: opset.version for opset in model.opset_import}
        for node in model.graph.node:
            if own[node.domain] != versions[node.domain] and not _as_before(node, own[node.domain], versions):
                raise UnjoinableError(
                    f"{node.op_type} of version {own[node.domain]} is another of version {versions[node.domain]}"
                )
    return versions


def _as_before(node: NodeProto, version: int, versions: Mapping[str, int]) -> bool:
    """Whether an operator has kept its inputs, attributes and their defaults from a version on."""
    try:
        old, new = (defs.get_schema(node.op_type, at, node.domain) for at in (version, versions[node.domain]))
    except defs.SchemaError:  # one of ONNX Runtime's own
        return False
    kept = all(
        name in new.attributes and new.attributes[name].default_value == attribute.default_value
        for name, attribute in old.attributes.items()
    )
    asked = any(attribute.required for name, attribute in new.attributes.items() if name not in old.attributes)
    return (
        kept and not asked and [one.name for one in old.inputs] == [one.name for one in new.inputs][: len(old.inputs)]
    )


def of_head(index: int, name: str) -> str:
    """What a tensor of a head is called where it is joined with others."""
    return f"head {index}/{name}"
