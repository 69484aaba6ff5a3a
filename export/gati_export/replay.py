"""Replay: what heads with state say to samples in the order of traffic, one by one, as the orchestrator would ask them.

A head's file is cut in two: what does not depend on state, which is run on whole batches once, and what does, which
is run row by row with the state that the rows before have left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.utils import Extractor

from gati.head import KEY, SCORE
from gati.session import open_session, run
from gati.state import STATE_INPUTS, HeadState

AHEAD = 32
"""Rows that are asked about at once, at most, as long as the state stays as it is: a run costs much more than a row."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A head with state, in two.

    Attributes:
        front: What does not depend on state, as an ONNX file; from the cut tensor to `boundary`.
        back: The rest; from `boundary` and the state to the answer and the score.
        boundary: Names of what the back reads of the front.
        key: The name, among these, of the row's key; None if the head has none.
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
    """What is computed from initializers alone: both parts can do that for themselves."""
    known = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if set(node.input) <= known:
            known.update(node.output)
    return known


class Rows:
    """A head with state, ready to be asked about n samples in order.

    Args:
        parts: The head.
        boundary: What its front gave for the samples, [n, ...] each, by name.
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
        """Forgets everything."""
        self.state = HeadState(self._shapes)

    def ask(self, row: int) -> tuple[np.ndarray, float]:
        """The answer [classes] and score of a row, with the state as it is now."""
        now = self.state.feeds()
        if now is not self._then:
            self._then = now
            self._look(range(row, row + 1))
        elif row not in self._ahead:
            self._look(range(row, row + min(2 * len(self._ahead), AHEAD)))
        place = row - self._ahead.start
        return self._answers[place], float(self._scores[place])

    def _look(self, ahead: range) -> None:
        """Asks about rows, as if none of them changed the state."""
        self._ahead = ahead
        feeds = {name: self._boundary[name][ahead.start : ahead.stop] for name in self._reads}
        self._answers, scores = run(self._session, self._outputs, {**feeds, **self._then})
        self._scores = finite_scores(scores)

    @property
    def remembers(self) -> bool:
        """Whether it learns from what is answered behind it, and so from nothing that a head before it answers."""
        return self._keys is not None

    def key(self, row: int) -> np.ndarray | None:
        """What a row is remembered by, [1, dim]."""
        return None if self._keys is None else self._keys[row : row + 1]


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """Scores with -1, which reaches no threshold either, for NaN, which can't be sorted."""
    return np.nan_to_num(scores, nan=-1)


@dataclass(frozen=True, eq=False)
class Said:
    """What a head says to n samples.

    Attributes:
        scores: Float32 [n]; of a head with state, when it was asked alone.
        answers: [n, classes], likewise.
        rows: To ask it again in the course of a replay; None for a head without state.
    """

    scores: np.ndarray
    answers: np.ndarray
    rows: Rows | None = None


def rehearse(rows: Rows, outputs: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Asks a head with state about all rows in order, as if it were the chain's only one.

    Args:
        rows: The head.
        outputs: The backbone's, [n, classes].
        threshold: A guess of where it will hit: a miss is remembered.

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
        said: Of each head in use, in the order of the chain.
        thresholds: Of each.
        outputs: The backbone's, [n, classes].

    Returns:
        The exit of each row, int64 [n]: the head's place in `said`, or their number for the backbone; and what was
        served, [n, classes].
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
