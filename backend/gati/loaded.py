"""A chain's stages, and the heads behind them, as they are loaded in one process (gati.inline)."""

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

from gati.chain import Chain
from gati.device import Hidden, Runner
from gati.engine import Stage
from gati.errors import RequestError, first_line
from gati.head import HeadSpec
from gati.layout import Split
from gati.passed import Passed

MACHINE = re.compile("alloc|memory|cuda|cudnn|cublas", re.IGNORECASE)
"""What ONNX Runtime speaks of where it is not for a request's sake that it can't be run: it has no class for that."""


@dataclass(eq=False)
class LoadedStages:
    """A chain's stages for some cut points.

    Attributes:
        stages: The stages.
        split: What they are made of; None where they are segments as these lie on disk.
        files: Those segments' files, by stage; none where there is a split.
        whole: The backbone as one stage, None until it is loaded: releases of the same cut points share it.
    """

    stages: tuple[Stage, ...]
    split: Split | None = None
    files: Sequence[Sequence[Path]] = ()
    whole: Stage | None = None

    @property
    def bytes(self) -> int:
        """How much the network takes."""
        return self.split.weights.bytes if self.split else sum(f.stat().st_size for files in self.files for f in files)

    def passed(self, name: str) -> Passed | None:
        """What passes in place of a cut tensor; None where it passes itself."""
        return self.split.passed.get(name) if self.split else None


@dataclass(frozen=True)
class OpenHead:
    """A head as it is run: its session, what that takes and gives, and its graph."""

    session: ort.InferenceSession
    spec: HeadSpec
    model: ModelProto


def stage_of(session: ort.InferenceSession, chain: Chain, last: int, runner: Runner) -> Stage:
    """A stage that a session runs.

    Args:
        session: The session.
        chain: Whose stage it is.
        last: Index of its last segment.
        runner: Runs it, and keeps what it gives where hidden state is kept; the chain's own output comes to the host.
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
