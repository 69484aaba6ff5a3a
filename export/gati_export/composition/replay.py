"""Replay: asks heads with state about samples one by one, in the order of traffic, as the orchestrator would.

A head's file is cut in two. The part that does not depend on state is run once, on whole batches; the part that does is
run row by row, with the state that the rows before have left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.utils import Extractor

from gati.inference.head import KEY, SCORE
from gati.inference.session import open_session, run
from gati.inference.state import STATE_INPUTS, HeadState

AHEAD = 32
"""Most rows that are asked about ahead, on the guess that the state stays as it is: a run costs much more than a
row."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A head with state, cut in two.

    Attributes:
        front: What does not depend on state, as an ONNX file; from the cut tensor to `boundary`.
        back: The rest; from `boundary` and the state to the answer and the score.
        boundary: Names of the tensors that the back reads from the front.
        key: Which of these is the row's key; None if the head has no key.
        state: Shapes of the state, by name.
    """

    front: bytes
    back: bytes
    boundary: tuple[str, ...]
    key: str | None
    state: dict[str, tuple[int, ...]]


def has_state(model: bytes) -> bool:
    """Whether a head's file asks for state."""
    return bool(state_of(onnx.ModelProto.FromString(model)))


def state_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the state that a head asks for, by input name."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name in STATE_INPUTS
    }


def part(model: bytes, output: str) -> Parts:
    """Cuts a head's file where state comes in; `output` is the name of its answer."""
    proto = onnx.ModelProto.FromString(model)
    graph = proto.graph
    state = state_of(proto)
    constant = {tensor.name for tensor in graph.initializer}
    dependent = set(state)
    boundary: dict[str, None] = {}
    for node in graph.node:  # in the order of computation
        if dependent.intersection(node.input):
            dependent.update(node.output)
            boundary |= dict.fromkeys(name for name in node.input if name)
    key = KEY if any(value.name == KEY for value in graph.output) else None
    wanted = [name for name in boundary if name not in dependent and name not in constant]
    if key and key not in wanted and key not in dependent:
        wanted.append(key)
    cut = next(value.name for value in graph.input if value.name not in state)
    constants = _constants(graph)
    wanted = [name for name in wanted if name not in constants]
    extract = Extractor(proto).extract_model
    front = extract([cut], wanted)
    back = extract([*[name for name in wanted if name != key or name in boundary], *state], [output, SCORE])
    return Parts(front.SerializeToString(), back.SerializeToString(), tuple(wanted), key, state)


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that are computed from initialisers alone, which both parts can do."""
    known = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if set(node.input) <= known:
            known.update(node.output)
    return known


class Rows:
    """A head with state, ready to be asked about n samples in order.

    Args:
        parts: The head.
        boundary: Outputs of its front for the samples, [n, ...] each, by name.
        output: The name of its answer.
    """

    def __init__(self, parts: Parts, boundary: Mapping[str, np.ndarray], output: str) -> None:
        self._session = open_session(parts.back)
        self._reads = [node.name for node in self._session.get_inputs() if node.name not in parts.state]
        self._boundary = boundary
        self._outputs = [output, SCORE]
        self._keys = None if parts.key is None else boundary[parts.key]
        self._shapes = parts.state
        self.state = HeadState(parts.state)
        self._then: Mapping[str, np.ndarray] = {}
        self._ahead = range(0)
        self._answers = self._scores = np.empty(0)

    def restart(self) -> None:
        """Starts again with an empty state."""
        self.state = HeadState(self._shapes)

    def ask(self, row: int) -> tuple[np.ndarray, float]:
        """The answer, [classes], and score for a row, with the state as it is now."""
        now = self.state.feeds()
        if now is not self._then:
            self._then = now
            self._look(range(row, row + 1))
        elif row not in self._ahead:
            self._look(range(row, row + min(2 * len(self._ahead), AHEAD)))
        place = row - self._ahead.start
        return self._answers[place], float(self._scores[place])

    def _look(self, ahead: range) -> None:
        """Asks about rows ahead, as if none of them changed the state."""
        self._ahead = ahead
        feeds = {name: self._boundary[name][ahead.start : ahead.stop] for name in self._reads}
        self._answers, scores = run(self._session, self._outputs, {**feeds, **self._then})
        self._scores = finite_scores(scores)

    @property
    def remembers(self) -> bool:
        """Whether it has a memory: it then learns from rows that get past it, and not from those that leave before."""
        return self._keys is not None

    def key(self, row: int) -> np.ndarray | None:
        """The key of a row, [1, dim]; None without a memory."""
        return None if self._keys is None else self._keys[row : row + 1]


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """Scores with -1 in place of NaN, which can't be sorted; neither reaches a threshold."""
    # of a single score, to look first takes a sixth of the time, and replays ask for one after another
    return scores if np.isfinite(scores).all() else np.nan_to_num(scores, nan=-1)


@dataclass(frozen=True, eq=False)
class Said:
    """Scores and answers of a head for n samples.

    Attributes:
        scores: Float32 [n]; for a head with state, as if it were the only head.
        answers: [n, classes], likewise.
        rows: Asks a head with state again during a replay; None for a head without state.
    """

    scores: np.ndarray
    answers: np.ndarray
    rows: Rows | None = None


def rehearse(rows: Rows, outputs: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Asks a head with state about all rows in order, as if it were the chain's only head.

    Args:
        rows: The head.
        outputs: The backbone's outputs, [n, classes].
        threshold: A guess of its threshold, since it remembers rows that it misses.

    Returns:
        Scores, float32 [n], and answers, [n, classes].
    """
    rows.restart()
    scores, answers = np.empty(len(outputs), np.float32), np.empty_like(outputs)
    for row, output in enumerate(outputs):
        answers[row], scores[row] = rows.ask(row)
        hit = scores[row] >= threshold
        _learn(rows, row, answers[row] if hit else output, not hit)
    return scores, answers


def replay(said: Sequence[Said], thresholds: Sequence[float], outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs a chain's heads over all rows in order, as the orchestrator does with one request after another.

    Args:
        said: Scores and answers of the heads in use, in the order of the chain.
        thresholds: Their thresholds.
        outputs: The backbone's outputs, [n, classes].

    Returns:
        The exit of each row, int64 [n]: the head's place in `said`, or `len(said)` for the backbone; and the answers
        that were served, [n, classes].
    """
    exits = np.full(len(outputs), len(said))
    served = outputs.copy()
    live = [(place, head.rows) for place, head in enumerate(said) if head.rows is not None]
    if not live:
        for place in reversed(range(len(said))):
            hit = said[place].scores >= np.float32(thresholds[place])
            exits[hit] = place
            served[hit] = said[place].answers[hit]
        return exits, served
    for _, rows in live:
        rows.restart()
    limits = [np.float32(threshold) for threshold in thresholds]
    for row in range(len(outputs)):
        for place, head in enumerate(said):
            answer, score = head.rows.ask(row) if head.rows else (head.answers[row], head.scores[row])
            if score >= limits[place]:
                exits[row], served[row] = place, answer
                break
        for place, rows in live:
            _learn(rows, row, served[row], exits[row] > place)
    return exits, served


def _learn(rows: Rows, row: int, answer: np.ndarray, missed: bool) -> None:
    rows.state.count(answer[None])
    key = rows.key(row)
    if missed and key is not None:
        rows.state.remember(key, answer[None])
