"""Inline mode: segments and heads as ONNX Runtime sessions in the orchestrator's own process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort
from onnx import ModelProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from gati.cascade import Cascade, assemble
from gati.chain import Chain
from gati.device import DeviceRunner, Hidden, Runner
from gati.engine import Stage
from gati.errors import RepositoryError, RequestError, first_line
from gati.fuse import LARGEST, fuse, join, stages
from gati.head import HIT, KEY, HeadSpec, Prediction, open_head
from gati.ladder import Ladder, channels_last_pays, sizes_up_to
from gati.layout import InseparableError, Passed, Split, close, open_on_passed, probe, split
from gati.release import Release, head_path
from gati.session import CPU, open_session
from gati.state import HeadState
from gati.steps import Joined, Step, UnjoinableError
from gati.weights import Weights

LARGEST_JOINED = 256 << 20
"""Bytes of a network up to which requests of one row have a graph of their own: that of a larger one may take as much
memory again, and saves it nothing that one would notice."""

MACHINE = re.compile("alloc|memory|cuda|cudnn|cublas", re.IGNORECASE)
"""What ONNX Runtime speaks of where it is not for a request's sake that it can't be run: it has no class for that."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """A chain's stages for some cut points.

    Attributes:
        stages: The stages.
        split: What they are made of; None where they are segments as these lie on disk.
        files: Those segments' files, by stage; none where there is a split.
    """

    stages: tuple[Stage, ...]
    split: Split | None = None
    files: Sequence[Sequence[Path]] = ()

    @property
    def bytes(self) -> int:
        """How much the network takes."""
        return self.split.weights.bytes if self.split else sum(f.stat().st_size for files in self.files for f in files)

    def passed(self, name: str) -> Passed | None:
        """What passes in place of a cut tensor; None where it passes itself. See gati.layout."""
        return self.split.passed.get(name) if self.split else None


@dataclass(frozen=True)
class _Head:
    """A head as it is run: its session, what that takes and gives, and its graph."""

    session: ort.InferenceSession
    spec: HeadSpec
    model: ModelProto


class InlineEngine:
    """Holds a session for each stage and head in use, all on one processor, or on one GPU.

    Args:
        repository: Where the segments and heads lie.
        chain: The chain to run.
        runner: Where to run it, and where hidden state is kept.
        recorded: Cut points whose hidden state is recorded: stages end there, give what segments give as they lie on
            disk, because others read it as well, and are not joined.
        say: Told what makes the chain slower than it could be.
    """

    def __init__(
        self,
        repository: Path,
        chain: Chain,
        runner: Runner | None = None,
        *,
        recorded: Sequence[int] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._chain = chain
        self._runner = runner or Runner()
        self._recorded = tuple(recorded)
        self._as_run = not recorded and self._runner.device == CPU
        self._say = say
        self._plans: WeakValueDictionary[tuple[int, ...], _Plan] = WeakValueDictionary()

    def load_stages(self, cuts: Sequence[int]) -> tuple[Stage, ...]:
        """Fuses segments with no head between them; stages that are live already are shared. See gati.engine.

        What passes between stages is for them and the heads of the same cut points alone.
        """
        return self._plan(cuts).stages

    def _plan(self, cuts: Sequence[int]) -> _Plan:
        key = tuple(sorted({*cuts}))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._load(key, as_run=self._as_run)
        return plan

    def _load(self, cuts: Sequence[int], as_run: bool) -> _Plan:
        models = [self._chain.read_segment(self._repository, segment.index) for segment in self._chain.segments]
        parts = stages(len(models), cuts, [len(model) for model in models])
        if as_run and len(parts) > 1:
            try:
                return self._cut_as_run(models, parts)
            except Exception as error:  # ONNX Runtime's own, too; what can't be cut as it runs is cut as it lies there
                self._say(f"cut points cost more than they need to: {first_line(error)}")
        opened = tuple(self._stage(part, self._open(models, part)) for part in parts)
        return _Plan(opened, files=[[self._path(index) for index in part] for part in parts])

    def _cut_as_run(self, models: Sequence[bytes], parts: Sequence[range]) -> _Plan:
        feeds = {tensor.name: probe(tensor) for tensor in self._chain.inputs}
        found = cut_as_run(self._chain, models, parts, feeds)
        opened = zip(parts, found.sessions, strict=True)
        return _Plan(tuple(self._stage(part, session) for part, session in opened), found)

    def _stage(self, part: range, session: ort.InferenceSession) -> Stage:
        inputs = tuple(node.name for node in session.get_inputs())
        whole = part[-1] + 1 == len(self._chain.segments)
        run = self._runner.fetch if whole else self._runner.keep
        return Stage(part[-1], inputs, partial(_run, run, session, [self._chain.segments[part[-1]].output.name]))

    def _open(self, models: Sequence[bytes], part: range) -> ort.InferenceSession:
        try:
            session = open_session(fuse(models[part[0] : part[-1] + 1]), self._runner.device)
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
        cuts = tuple(sorted(head.index for head in release.heads))
        with ThreadPoolExecutor(1, "gati-load") as pool:  # ONNX Runtime lets others run while it opens a graph
            opened = {index: pool.submit(self._open_head, index, release.number) for index in cuts}
            plan = self._plan([*cuts, *self._recorded])
            apart = {index: head.result() for index, head in opened.items()}
        try:
            heads = self._as_passed(plan, apart)
        except InseparableError as error:
            self._say(f"cut points cost more than they need to: a head can't be opened as they run: {error}")
            plan = self._plans[cuts] = self._load(cuts, as_run=False)
            heads = apart
        specs = {index: head.spec for index, head in heads.items()}
        return InlineHeads(self._chain, plan, heads, self._runner, self._say, joins=not self._recorded), specs

    def _open_head(self, index: int, number: int) -> _Head:
        file = head_path(self._repository, self._chain, index, number).read_bytes()
        session, spec = open_head(file, self._chain, index, self._runner.device)
        return _Head(session, spec, ModelProto.FromString(file))

    def _as_passed(self, plan: _Plan, heads: Mapping[int, _Head]) -> dict[int, _Head]:
        """Heads such that they read what passes at their cut points."""
        found = dict(heads)
        for index, head in heads.items():
            cut = self._chain.segments[index].output
            passed = plan.passed(cut.name)
            if plan.split is not None and passed is not None:
                session, model = open_on_passed(head.model.SerializeToString(), cut, passed)
                rows = np.repeat(plan.split.values[cut.name], max(1, self._chain.max_batch), axis=0)
                session.run(None, {cut.name: rows, **HeadState(head.spec.state).feeds()})
                found[index] = _Head(session, head.spec, model)
        return found


class InlineHeads:
    """The heads of one release as sessions."""

    def __init__(
        self,
        chain: Chain,
        plan: _Plan,
        heads: dict[int, _Head],
        runner: Runner,
        say: Callable[[str], None],
        *,
        joins: bool = True,
    ) -> None:
        self._chain = chain
        self._plan = plan  # lives as long as its heads
        self._heads = heads
        self._runner = runner
        self._say = say
        self._joins = joins
        self._names = {
            index: [chain.output.name, HIT] + [KEY] * (KEY in head.spec.outputs) for index, head in heads.items()
        }

    def predict(self, index: int, hidden: Hidden, state: Mapping[str, np.ndarray]) -> Prediction:
        """Looks a batch up; see gati.head."""
        feeds = {self._chain.segments[index].output.name: hidden, **state}
        values = self._runner.fetch(self._heads[index].session, self._names[index], feeds)
        return Prediction(values[0], values[1], values[2] if len(values) > 2 else None)

    def load_joined(self) -> Joined | None:
        """Joins the stages and these heads; see gati.head."""
        try:
            if not self._joins or self._plan.bytes > LARGEST_JOINED:
                return None
            joined = self._join(self._plan.split) if self._plan.split else self._climb()
            if joined is not None:
                self._hold_against_stages(joined)
        except Exception as error:  # ONNX Runtime's own, too; stage by stage, the answers are the same
            self._say(f"single requests take longer than they need to: {first_line(error)}")
            return None
        return joined

    def _join(self, found: Split) -> Cascade:
        """On a processor, of the stages as they are run, and with their weights."""
        steps, weights = self._steps(found.pieces), found.weights.fork()
        whole = assemble(steps, self._chain.inputs, self._chain.output)
        weights.take(whole)
        return Cascade(weights.open(whole), steps)

    def _climb(self) -> Ladder | None:
        """On a GPU, of the segments as they lie on disk; it takes their weights a second time."""
        if not isinstance(self._runner, DeviceRunner):
            return None
        joined = (
            join([file.read_bytes() for file in files], prefix=f"stage {place}/")
            for place, files in enumerate(self._plan.files)
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
            self._say(f"stages and heads can't be CUDA graphs, and start slower: {first_line(error)}")
            return raised(captured=False)
        try:
            return captured(sizes=sizes_up_to(self._chain.max_batch))
        except Exception as error:  # no room for as many rows, say
            self._say(f"batches can't be CUDA graphs, and start slower: {first_line(error)}")
            return captured()

    def _steps(self, stages: Sequence[ModelProto]) -> list[Step]:
        *before, last = (stage.last for stage in self._plan.stages)
        heads = [self._heads[index] for index in before]
        pieces = zip(before, stages, heads, strict=False)
        return [
            *(Step(index, piece, head.model, head.spec) for index, piece, head in pieces),
            Step(last, stages[-1]),
        ]

    def _hold_against_stages(self, joined: Joined) -> None:
        """Tries out what was joined, alone and with as many rows as it takes.

        Raises:
            UnjoinableError: If it does something else than the stages and heads apart.
        """
        tensors = self._chain.inputs
        for row in ({t.name: probe(t) for t in tensors}, {t.name: t.zeros() for t in tensors}):
            output, exit_ = self._walk(row)
            for size in sorted({1, joined.rows}):
                left: list[tuple[np.ndarray, int]] = []
                state = {index: HeadState(head.spec.state) for index, head in self._heads.items()}
                rows = {name: np.repeat(values, size, 0) for name, values in row.items()}
                joined.run(rows, state, lambda _, *what, told=left: told.append(what))
                if any(where != exit_ or not close(said, np.repeat(output, len(said), 0)) for said, where in left):
                    raise UnjoinableError("joined, stages and heads do something else than apart")

    def _walk(self, row: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        """What stages and heads apart answer to a row, and where."""
        values: dict[str, Hidden] = dict(row)
        for stage in self._plan.stages:
            name = self._chain.segments[stage.last].output.name
            values[name] = stage.run({read: values[read] for read in stage.inputs})
            if stage.last in self._heads:
                state = HeadState(self._heads[stage.last].spec.state)
                said = self.predict(stage.last, values[name], state.feeds())
                if said.hit[0]:
                    return said.answer, stage.last
        return np.asarray(values[self._chain.output.name]), len(self._chain.segments) - 1


def cut_as_run(chain: Chain, models: Sequence[bytes], parts: Sequence[range], feeds: Mapping[str, np.ndarray]) -> Split:
    """Cuts a chain's segments into stages, once they are optimised as a whole.

    Args:
        chain: The chain.
        models: Its segments.
        parts: Which of them run together; see gati.fuse.
        feeds: An input.

    Raises:
        Exception: See gati.layout; InseparableError too, if they are more than can be one graph.
    """
    if sum(map(len, models)) > LARGEST:
        raise InseparableError("the network is too large to be optimised as a whole")
    cuts = [chain.segments[part[-1]].output for part in parts[:-1]]
    outside = {tensor.name for tensor in (*chain.inputs, *cuts)}
    reads = [{name for index in part for name in chain.segments[index].inputs} & outside for part in parts]
    weights = Weights()
    return split(join(models, weights=weights), cuts, reads, feeds, weights)


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
