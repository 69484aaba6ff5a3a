"""Inline mode: segments and heads as ONNX Runtime sessions in the orchestrator's own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from gati.chain import Chain
from gati.device import Hidden, Runner
from gati.engine import Stage
from gati.errors import RepositoryError, RequestError
from gati.fuse import fuse, stages
from gati.head import HIT, KEY, HeadSpec, Prediction, first_line, open_head
from gati.release import Release, head_path
from gati.session import open_session


class InlineEngine:
    """Holds a session for each stage in use, all on one thread pool, or on one GPU.

    Args:
        repository: Where the segments and heads lie.
        chain: The chain to run.
        runner: Where to run it, and where hidden state is kept.
    """

    def __init__(self, repository: Path, chain: Chain, runner: Runner | None = None) -> None:
        self._repository = repository
        self._chain = chain
        self._runner = runner or Runner()
        self._sessions: WeakValueDictionary[range, ort.InferenceSession] = WeakValueDictionary()

    def load_stages(self, cuts: Sequence[int]) -> tuple[Stage, ...]:
        """Fuses segments with no head between them; stages that are live already are shared. See gati.engine."""
        try:
            sizes = [self._path(segment.index).stat().st_size for segment in self._chain.segments]
            return tuple(self._load(part) for part in stages(len(sizes), cuts, sizes))
        except OSError as error:
            raise RepositoryError(f"{error.filename} can't be read ({error.strerror}).") from error

    def _load(self, part: range) -> Stage:
        session = self._sessions.get(part)
        if session is None:
            session = self._sessions[part] = self._open(part)
        inputs = tuple(node.name for node in session.get_inputs())
        whole = part[-1] + 1 == len(self._chain.segments)
        run = self._runner.fetch if whole else self._runner.keep
        return Stage(part[-1], inputs, partial(_run, run, session, [self._chain.segments[part[-1]].output.name]))

    def _open(self, part: range) -> ort.InferenceSession:
        for index in part:
            self._chain.check_segment(self._repository, index)
        models = [self._path(index).read_bytes() for index in part]
        try:
            session = open_session(fuse(models), self._runner.device)
        except Exception as error:
            which = " and ".join(str(self._path(index)) for index in sorted({part[0], part[-1]}))
            raise RepositoryError(f"{which} can't be run by ONNX Runtime: {first_line(error)}") from error
        self._warm(session, part[0])
        return session

    def _warm(self, session: ort.InferenceSession, first: int) -> None:
        """The first run of a session is a slow one."""
        tensors = [*self._chain.inputs, *(segment.output for segment in self._chain.segments[:first])]
        feeds = {tensor.name: tensor.zeros(1) for tensor in tensors}
        with suppress(Exception):  # zeros need not be what a network takes
            session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})

    def _path(self, index: int) -> Path:
        return self._chain.segment_path(self._repository, index)

    def load_heads(self, release: Release) -> tuple[InlineHeads, dict[int, HeadSpec]]:
        """Loads and warms a release's heads; see gati.engine."""
        opened = {
            head.index: open_head(
                head_path(self._repository, self._chain, head.index, release.number).read_bytes(),
                self._chain,
                head.index,
                self._runner.device,
            )
            for head in release.heads
        }
        return InlineHeads(self._chain, opened, self._runner), {index: spec for index, (_, spec) in opened.items()}


class InlineHeads:
    """The heads of one release as sessions."""

    def __init__(self, chain: Chain, opened: dict[int, tuple[ort.InferenceSession, HeadSpec]], runner: Runner) -> None:
        self._runner = runner
        self._sessions = {index: session for index, (session, _) in opened.items()}
        self._cuts = {index: chain.segments[index].output.name for index in opened}
        self._names = {
            index: [chain.output.name, HIT] + [KEY] * (KEY in spec.outputs) for index, (_, spec) in opened.items()
        }

    def predict(self, index: int, hidden: Hidden, state: dict[str, np.ndarray]) -> Prediction | None:
        """Looks a batch up; see gati.head."""
        feeds = {self._cuts[index]: hidden, **state}
        values = self._runner.fetch(self._sessions[index], self._names[index], feeds)
        return Prediction(values[0], values[1], values[2] if len(values) > 2 else None)


def _run(
    run: Callable[..., list[Any]], session: ort.InferenceSession, outputs: list[str], feeds: Mapping[str, Hidden]
) -> Hidden:
    try:
        return run(session, outputs, feeds)[0]
    except InvalidArgument as error:
        raise RequestError(f"the model can't take these inputs: {first_line(error)}") from error
