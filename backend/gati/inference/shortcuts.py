"""Shortcuts: faster ways through a release's stages and heads, loaded while it already serves stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np
from onnx import ModelProto

from gati.errors import first_line
from gati.inference.cascade import Cascade, assemble
from gati.inference.costs import Costs
from gati.inference.device import DeviceRunner, Hidden, Runner
from gati.inference.engine import Shortcuts, Stage
from gati.inference.fuse import join
from gati.inference.head import Prediction
from gati.inference.ladder import Ladder, channels_last_pays, sizes_up_to
from gati.inference.layout import CutGraph, nearly_equal, probe
from gati.inference.loaded import LoadedStages, OpenHead, stage_of
from gati.inference.session import CPU
from gati.inference.state import HeadState
from gati.inference.steps import Joined, Step, UnjoinableError
from gati.repository.chain import Chain

LARGEST_JOINED = 256 << 20
"""Largest network, in bytes, that has shortcuts: each may take as much memory as the network once more, and a larger
network would gain too little by them."""
T = TypeVar("T")
Predict = Callable[[int, Hidden, Mapping[str, np.ndarray]], Prediction]


class ShortcutLoader:
    """Loads the shortcuts of one release.

    Args:
        chain: The chain.
        loaded: Its stages.
        heads: The release's heads, by cut point.
        runner: Runs them.
        predict: Asks a head about a batch, as `gati.inference.engine.Heads.predict`.
        warn: Called with what makes the chain slower than it could be.
    """

    def __init__(
        self,
        chain: Chain,
        loaded: LoadedStages,
        heads: Mapping[int, OpenHead],
        runner: Runner,
        predict: Predict,
        warn: Callable[[str], None],
    ) -> None:
        self._chain = chain
        self._loaded = loaded
        self._heads = heads
        self._runner = runner
        self._predict = predict
        self._warn = warn

    def load(self, *, joins: bool = True) -> Shortcuts:
        """Loads them. For one that can't be loaded there is a warning, and requests go on as before.

        Args:
            joins: Whether stages may be joined, with each other and with heads.
        """
        joined = whole = None
        if joins:
            joined = self._try("the fast path is off, requests run stage by stage", self._joined)
            whole = self._try("requests that no head is asked about take longer than they need to", self._whole)
        if self._runner.device != CPU:  # there, heads never cost enough to go past them
            return Shortcuts(joined)
        return Shortcuts(joined, whole, self._costs(joined, whole))

    def _try(self, otherwise: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except Exception as error:  # ONNX Runtime's own, too; stage by stage, the answers are the same
            self._warn(f"{otherwise}: {first_line(error)}")
            return None

    def _joined(self) -> Joined | None:
        if self._loaded.bytes > LARGEST_JOINED:
            return None
        joined = self._join(self._loaded.cut_graph) if self._loaded.cut_graph else self._climb()
        if joined is not None:
            self._check_against_stages(joined)
        return joined

    def _join(self, found: CutGraph) -> Cascade:
        """On a processor: joins the stages as they are run; shares their weights."""
        steps, weights = self._steps(found.pieces), found.weights.fork()
        whole = assemble(steps, self._chain.inputs, self._chain.output)
        weights.take(whole)
        return Cascade(weights.open(whole), steps)

    def _climb(self) -> Ladder | None:
        """On a GPU: joins the segments as they lie on disk; their weights are held a second time."""
        if not isinstance(self._runner, DeviceRunner):
            return None
        joined = (
            join([file.read_bytes() for file in files], prefix=f"stage {place}/")
            for place, files in enumerate(self._loaded.files)
        )
        steps = self._steps([*joined])
        raised = partial(Ladder, steps, self._chain, self._runner)
        try:
            captured = partial(
                raised, captured=True, channels_last=channels_last_pays(steps, self._chain, self._runner)
            )
        except UnjoinableError:
            raise
        except Exception as error:  # a node that the GPU can't run, say
            self._warn(f"stages and heads can't be CUDA graphs, and start slower: {first_line(error)}")
            return raised(captured=False)
        try:
            return captured(sizes=sizes_up_to(self._chain.max_batch))
        except Exception as error:  # no room for as many rows, say
            self._warn(f"batches can't be CUDA graphs, and start slower: {first_line(error)}")
            return captured()

    def _steps(self, stages: Sequence[ModelProto]) -> list[Step]:
        *before, last = (stage.last for stage in self._loaded.stages)
        heads = [self._heads[index] for index in before]
        pieces = zip(before, stages, heads, strict=False)
        return [
            *(Step(index, piece, head.model, head.spec) for index, piece, head in pieces),
            Step(last, stages[-1]),
        ]

    def _whole(self) -> Stage | None:
        """The backbone in one session, for rows that no head is asked about; shares the weights of the stages."""
        graph = self._loaded.cut_graph
        if graph is None or self._loaded.bytes > LARGEST_JOINED:
            return None
        if self._loaded.whole is not None:
            return self._loaded.whole
        session = graph.weights.open(graph.whole)
        whole = stage_of(session, self._chain, self._chain.backbone_exit, self._runner)
        for row in self._rows():
            output, _ = self._walk(row, asking=False)
            if not nearly_equal(np.asarray(_alone(whole, row)), output):
                raise UnjoinableError("as one, stages answer otherwise than one by one")
        self._loaded.whole = whole
        return whole

    def _check_against_stages(self, joined: Joined) -> None:
        """Tries out what was joined, on one row and on as many as it takes.

        Raises:
            UnjoinableError: If it answers otherwise than stages and heads one by one.
        """
        for row in self._rows():
            output, exit_ = self._walk(row)
            for size in sorted({1, joined.rows}):
                rows = {name: np.repeat(values, size, 0) for name, values in row.items()}
                for said, where in self._leaving(joined, rows):
                    if where != exit_ or not nearly_equal(said, np.repeat(output, len(said), 0)):
                        raise UnjoinableError("joined, stages and heads answer otherwise than one by one")

    def _rows(self) -> list[dict[str, np.ndarray]]:
        """Two rows to try stages on: a random one, and zeros."""
        tensors = self._chain.inputs
        return [{t.name: probe(t) for t in tensors}, {t.name: t.zeros() for t in tensors}]

    def _leaving(self, joined: Joined, rows: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, int]]:
        """Answers to rows, and the exits that they leave at, in the order in which they leave."""
        left: list[tuple[np.ndarray, int]] = []
        state = {index: HeadState(head.spec.state) for index, head in self._heads.items()}
        joined.run(rows, state, lambda _, *what: left.append(what))
        return left

    def _walk(
        self, row: Mapping[str, np.ndarray], *, asking: bool = True, leaving: bool = True
    ) -> tuple[np.ndarray, int]:
        """The answer to a row, and its exit, as stages and heads give it one by one.

        Args:
            row: The row.
            asking: Whether heads are asked.
            leaving: Whether a hit ends the walk.
        """
        values: dict[str, Hidden] = dict(row)
        for stage in self._loaded.stages:
            name = self._chain.segments[stage.last].output.name
            values[name] = stage.run({read: values[read] for read in stage.inputs})
            if asking and stage.last in self._heads:
                state = HeadState(self._heads[stage.last].spec.state)
                said = self._predict(stage.last, values[name], state.feeds())
                if said.hit[0] and leaving:
                    return said.answer, stage.last
        return np.asarray(values[self._chain.output.name]), self._chain.backbone_exit

    def _costs(self, joined: Joined | None, whole: Stage | None) -> Costs:
        """Measures lookups joined, as requests go, with NaN, which hits nothing; else, as for integers, one by one."""
        shares = {i: self._chain.segments[i].share for i in sorted(self._heads)} | {self._chain.backbone_exit: 1.0}
        tensors = self._chain.inputs
        if joined is not None and whole is not None and all(t.zeros().dtype.kind == "f" for t in tensors):
            row = {tensor.name: np.full_like(tensor.zeros(), np.nan) for tensor in tensors}
            with suppress(Exception):  # a network may use numbers of floating point as indices
                self._leaving(joined, row)
                return Costs(shares, partial(_alone, whole, row), partial(self._leaving, joined, row))
        row, _ = self._rows()
        return Costs(shares, partial(self._walk, row, asking=False), partial(self._walk, row, leaving=False))


def _alone(whole: Stage, row: Mapping[str, np.ndarray]) -> Hidden:
    return whole.run({name: row[name] for name in whole.inputs})
