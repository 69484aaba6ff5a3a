"""Steps: a stage and the head behind it, as graphs that can be joined.

For a request of one row, calls from Python cost much beside the network itself. So on a processor all steps are joined
into one graph for it (gati.inference.cascade). On a GPU each stage is joined with its head, for batches too
(gati.inference.ladder).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, defs

from gati.inference.fuse import prefixed
from gati.inference.head import HeadSpec
from gati.inference.state import HeadState


class UnjoinableError(Exception):
    """Stages and heads can't be joined into one graph."""


@dataclass(frozen=True)
class Step:
    """A stage and the head behind it, as they are run.

    Attributes:
        last: Index of the stage's last segment.
        stage: The stage, which computes the cut tensor; the last one, the chain's output.
        head: The head, which reads the cut tensor; None behind the last stage.
        spec: The head's inputs and outputs.
    """

    last: int
    stage: ModelProto
    head: ModelProto | None = None
    spec: HeadSpec = field(default_factory=lambda: HeadSpec({}, ()))


Leave = Callable[[np.ndarray, np.ndarray, int], None]
"""Called with rows that are answered, as soon as they are, perhaps on another thread: their indices in the batch, their
answers, [rows, classes], and the exit at which they leave."""


class MissedRows(NamedTuple):
    """Rows that a head with a memory missed, and the keys under which it is to remember their answers.

    Attributes:
        cut: The head's cut point.
        rows: Indices in the batch.
        keys: FP32 [rows, dim].
    """

    cut: int
    rows: np.ndarray
    keys: np.ndarray


class Joined(Protocol):
    """A chain and the heads of a release, joined.

    Attributes:
        rows: The most rows that it takes at once.
    """

    rows: int

    def run(
        self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState], leave: Leave
    ) -> Sequence[MissedRows]:
        """Runs rows to their exits.

        Args:
            inputs: The model's inputs, [rows, ...] each.
            state: The state of the release's heads, by cut point.
            leave: Called with each row once.

        Returns:
            What each head with a memory missed; perhaps also rows that had left before that head.

        Raises:
            Exception: ONNX Runtime's own, if a row can't be run; other rows may have left by then.
        """
        ...


def prefixed_head(step: Step) -> GraphProto:
    """A step's head with a prefix before all its names but that of the cut tensor, which it reads from the stage."""
    assert step.head is not None
    head = prefixed(step.head.graph, of_head(step.last, ""))
    (cut,) = {value.name for value in step.head.graph.input} - {*step.spec.state}
    for node in head.node:
        node.input[:] = [cut if name == of_head(step.last, cut) else name for name in node.input]
    return head


def common_versions(steps: Sequence[Step]) -> dict[str, int]:
    """Versions of the operator sets, by domain, that all stages and heads can be run at without a change of meaning.

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
            if own[node.domain] != versions[node.domain] and not _unchanged(node, own[node.domain], versions):
                raise UnjoinableError(
                    f"{node.op_type} of version {own[node.domain]} differs from version {versions[node.domain]}"
                )
    return versions


def _unchanged(node: NodeProto, version: int, versions: Mapping[str, int]) -> bool:
    """Whether an operator has kept its inputs, attributes and their defaults since a version."""
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
    """Name of a head's tensor in a joined graph."""
    return f"head {index}/{name}"
