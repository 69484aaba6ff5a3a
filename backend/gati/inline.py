"""Inline mode: segments and heads as ONNX Runtime sessions in the orchestrator's own process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from gati.chain import Chain
from gati.errors import RepositoryError, RequestError
from gati.head import HIT, KEY, HeadSpec, Prediction, first_line, open_head
from gati.release import Release, head_path
from gati.session import open_session, run


class InlineEngine:
    """Holds one session a segment, all on one thread pool.

    Raises:
        RepositoryError: If a segment is missing, damaged, or not the one that chain.json names.
    """

    def __init__(self, repository: Path, chain: Chain) -> None:
        self._repository = repository
        self._chain = chain
        self._sessions = [self._open(index) for index in range(len(chain.segments))]
        self._outputs = [[segment.output.name] for segment in chain.segments]

    def _open(self, index: int) -> ort.InferenceSession:
        self._chain.check_segment(self._repository, index)
        path = self._chain.segment_path(self._repository, index)
        try:
            return open_session(path)
        except Exception as error:
            raise RepositoryError(f"{path} can't be run by ONNX Runtime: {first_line(error)}") from error

    def run_segment(self, index: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Runs one segment; see gati.engine."""
        try:
            return run(self._sessions[index], self._outputs[index], feeds)[0]
        except InvalidArgument as error:
            raise RequestError(f"the model can't take these inputs: {first_line(error)}") from error

    def load_heads(self, release: Release) -> tuple[InlineHeads, dict[int, HeadSpec]]:
        """Loads and warms a release's heads; see gati.engine."""
        opened = {
            head.index: open_head(
                head_path(self._repository, self._chain, head.index, release.number).read_bytes(),
                self._chain,
                head.index,
            )
            for head in release.heads
        }
        return InlineHeads(self._chain, opened), {index: spec for index, (_, spec) in opened.items()}


class InlineHeads:
    """The heads of one release as sessions."""

    def __init__(self, chain: Chain, opened: dict[int, tuple[ort.InferenceSession, HeadSpec]]) -> None:
        self._sessions = {index: session for index, (session, _) in opened.items()}
        self._cuts = {index: chain.segments[index].output.name for index in opened}
        self._names = {
            index: [chain.output.name, HIT] + [KEY] * (KEY in spec.outputs) for index, (_, spec) in opened.items()
        }

    def predict(self, index: int, hidden: np.ndarray, state: dict[str, np.ndarray]) -> Prediction | None:
        """Looks a batch up; see gati.head."""
        values = run(self._sessions[index], self._names[index], {self._cuts[index]: hidden, **state})
        return Prediction(values[0], values[1], values[2] if len(values) > 2 else None)
