"""A chain's stages, and the heads behind them, as they are loaded in one process (gati.inference.inline)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnx import ModelProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from gati.errors import RequestError, first_line
from gati.inference.device import Hidden, Runner
from gati.inference.engine import Stage
from gati.inference.head import HeadSpec
from gati.inference.layout import CutGraph
from gati.inference.substitute import Substitute
from gati.repository.chain import Chain

MACHINE = re.compile("alloc|memory|cuda|cudnn|cublas", re.IGNORECASE)
"""Words in ONNX Runtime's errors that blame the machine and not the request; it has no error class for that."""


@dataclass(eq=False)
class LoadedStages:
    """A chain's stages for some cut points.

    Attributes:
        stages: The stages.
        cut_graph: The optimised graph that they are pieces of; None where they are segments as these lie on disk.
        files: Those segments' files, by stage; none where there is a cut graph.
        whole: The backbone as one stage, None until it is loaded. Releases with the same cut points share it.
    """

    stages: tuple[Stage, ...]
    cut_graph: CutGraph | None = None
    files: Sequence[Sequence[Path]] = ()
    whole: Stage | None = None

    @property
    def bytes(self) -> int:
        """Size of the network's weights."""
        if self.cut_graph:
            return self.cut_graph.weights.bytes
        return sum(file.stat().st_size for files in self.files for file in files)

    def substitute(self, name: str) -> Substitute | None:
        """What crosses a cut in place of the cut tensor; None where that crosses it itself."""
        return self.cut_graph.substitutes.get(name) if self.cut_graph else None


@dataclass(frozen=True)
class OpenHead:
    """A head as it is run: its session, the session's inputs and outputs, and its graph."""

    session: ort.InferenceSession
    spec: HeadSpec
    model: ModelProto


def stage_of(session: ort.InferenceSession, chain: Chain, last: int, runner: Runner) -> Stage:
    """A stage that a session runs.

    Args:
        session: The session.
        chain: Whose stage it is.
        last: Index of its last segment.
        runner: Runs it, and leaves its output where hidden state is kept; the chain's own output comes to the host.
    """
    run = runner.fetch if last + 1 == len(chain.segments) else runner.keep
    inputs = tuple(node.name for node in session.get_inputs())
    return Stage(last, inputs, partial(_run, run, session, [chain.segments[last].output.name]))


def _run(
    run: Callable[..., list[Any]], session: ort.InferenceSession, outputs: list[str], feeds: Mapping[str, Hidden]
) -> Hidden:
    try:
        return run(session, outputs, feeds)[0]
    except (InvalidArgument, Fail, RuntimeException) as error:
        reason = first_line(error)
        if MACHINE.search(reason):
            raise
        raise RequestError(f"the model can't take these inputs: {reason}") from error
