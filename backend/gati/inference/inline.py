"""Inline mode: segments and heads as ONNX Runtime sessions in the orchestrator's own process.

Stages and heads are loaded here, one release after another. How they are then run for a request is in
gati.serving.orchestrator (stage by stage), gati.inference.cascade and gati.inference.ladder (joined).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from gati.errors import RepositoryError, first_line
from gati.inference.device import Hidden, Runner
from gati.inference.engine import Shortcuts, Stage
from gati.inference.fuse import LARGEST, fuse, join, stage_ranges
from gati.inference.head import HIT, KEY, HeadSpec, Prediction, open_head
from gati.inference.layout import CutGraph, InseparableError, cut_optimised, open_on_substitute, probe
from gati.inference.loaded import LoadedStages, OpenHead, stage_of
from gati.inference.session import CPU, open_session
from gati.inference.shortcuts import ShortcutLoader
from gati.inference.state import HeadState
from gati.inference.weights import Weights
from gati.repository.chain import Chain
from gati.repository.release import Release, head_path


class InlineEngine:
    """Holds a session for each stage and head in use, all on the processor or on one GPU.

    Not thread-safe: it loads before the first request, and after that on the thread that looks for releases alone.

    Args:
        repository: Where the segments and heads lie.
        chain: The chain to run.
        runner: Where to run it, and where hidden state is kept.
        recorded: Cut points whose hidden state is recorded. Stages then end there, compute exactly the tensors that the
            segments on disk do, since others read these as well, and are not joined.
        warn: Called with what makes the chain slower than it could be.
    """

    def __init__(
        self,
        repository: Path,
        chain: Chain,
        runner: Runner | None = None,
        *,
        recorded: Sequence[int] = (),
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._chain = chain
        self._runner = runner or Runner()
        self._recorded = tuple(recorded)
        self._as_run = not recorded and self._runner.device == CPU
        self._warn = warn
        # a release's heads keep their stages alive; those that no release needs any more go by themselves
        self._loaded: WeakValueDictionary[tuple[int, ...], LoadedStages] = WeakValueDictionary()

    def load_stages(self, cuts: Sequence[int]) -> tuple[Stage, ...]:
        """Fuses segments with no head between them; shares stages that are loaded already. See gati.inference.engine.

        Tensors between stages need not be the cut tensors (gati.inference.substitute): only these stages, and heads
        that were loaded for the same cut points, can read them.
        """
        return self._stages_for(cuts).stages

    def _stages_for(self, cuts: Sequence[int]) -> LoadedStages:
        key = tuple(sorted({*cuts}))
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._loaded[key] = self._load(key, as_run=self._as_run)
        return loaded

    def _load(self, cuts: Sequence[int], as_run: bool) -> LoadedStages:
        models = [self._chain.read_segment(self._repository, segment.index) for segment in self._chain.segments]
        parts = stage_ranges(len(models), cuts, [len(model) for model in models])
        if as_run and len(parts) > 1:
            try:
                return self._cut_as_run(models, parts)
            except Exception as error:  # ONNX Runtime's own, too; segments can still be run as they lie on disk
                self._warn(f"cut points cost more than they need to: {first_line(error)}")
        opened = tuple(self._stage(part, self._open(models, part)) for part in parts)
        return LoadedStages(opened, files=[[self._path(index) for index in part] for part in parts])

    def _cut_as_run(self, models: Sequence[bytes], parts: Sequence[range]) -> LoadedStages:
        feeds = {tensor.name: probe(tensor) for tensor in self._chain.inputs}
        found = cut_as_run(self._chain, models, parts, feeds)
        opened = zip(parts, found.sessions, strict=True)
        return LoadedStages(tuple(self._stage(part, session) for part, session in opened), found)

    def _stage(self, part: range, session: ort.InferenceSession) -> Stage:
        return stage_of(session, self._chain, part[-1], self._runner)

    def _open(self, models: Sequence[bytes], part: range) -> ort.InferenceSession:
        try:
            session = open_session(fuse(models[part[0] : part[-1] + 1]), self._runner.device)
        except Exception as error:
            which = " and ".join(str(self._path(index)) for index in sorted({part[0], part[-1]}))
            raise RepositoryError(f"{which} can't be run by ONNX Runtime: {first_line(error)}") from error
        self._warm(session, part[0])
        return session

    def _warm(self, session: ort.InferenceSession, first: int) -> None:
        """Runs a session once: its first run is slow."""
        tensors = [*self._chain.inputs, *(segment.output for segment in self._chain.segments[:first])]
        feeds = {tensor.name: tensor.zeros(1) for tensor in tensors}
        with suppress(Exception):  # not every network takes zeros
            session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})

    def _path(self, index: int) -> Path:
        return self._chain.segment_path(self._repository, index)

    def load_heads(self, release: Release) -> tuple[InlineHeads, dict[int, HeadSpec]]:
        """Loads and warms a release's heads; see gati.inference.engine."""
        cuts = tuple(sorted(head.index for head in release.heads))
        with ThreadPoolExecutor(1, "gati-load") as pool:  # ONNX Runtime lets others run while it opens a graph
            opened = {index: pool.submit(self._open_head, index, release.number) for index in cuts}
            loaded = self._stages_for([*cuts, *self._recorded])
            separate = {index: head.result() for index, head in opened.items()}
        try:
            heads = self._on_substitutes(loaded, separate)
        except InseparableError as error:
            self._warn(f"cut points cost more than they need to: a head can't be opened as they run: {error}")
            loaded = self._loaded[cuts] = self._load(cuts, as_run=False)
            heads = separate
        specs = {index: head.spec for index, head in heads.items()}
        return InlineHeads(self._chain, loaded, heads, self._runner, self._warn, joins=not self._recorded), specs

    def _open_head(self, index: int, number: int) -> OpenHead:
        file = head_path(self._repository, self._chain, index, number).read_bytes()
        session, spec = open_head(file, self._chain, index, self._runner.device)
        return OpenHead(session, spec, ModelProto.FromString(file))

    def _on_substitutes(self, loaded: LoadedStages, heads: Mapping[int, OpenHead]) -> dict[int, OpenHead]:
        """Opens heads anew where something else than the cut tensor crosses their cut, such that they read that."""
        found = dict(heads)
        for index, head in heads.items():
            cut = self._chain.segments[index].output
            substitute = loaded.substitute(cut.name)
            if loaded.cut_graph is not None and substitute is not None:
                session, model = open_on_substitute(head.model.SerializeToString(), cut, substitute)
                rows = np.repeat(loaded.cut_graph.values[cut.name], max(1, self._chain.max_batch), axis=0)
                session.run(None, {cut.name: rows, **HeadState(head.spec.state).feeds()})
                found[index] = OpenHead(session, head.spec, model)
        return found


class InlineHeads:
    """The heads of one release as sessions."""

    def __init__(
        self,
        chain: Chain,
        loaded: LoadedStages,
        heads: dict[int, OpenHead],
        runner: Runner,
        warn: Callable[[str], None],
        *,
        joins: bool = True,
    ) -> None:
        self._chain = chain
        self._loaded = loaded  # which the engine itself does not keep alive
        self._heads = heads
        self._runner = runner
        self._warn = warn
        self._joins = joins
        self._names = {
            index: [chain.output.name, HIT] + [KEY] * (KEY in head.spec.outputs) for index, head in heads.items()
        }

    def predict(self, index: int, hidden: Hidden, state: Mapping[str, np.ndarray]) -> Prediction:
        """Asks a head about a batch; see gati.inference.engine."""
        feeds = {self._chain.segments[index].output.name: hidden, **state}
        values = self._runner.fetch(self._heads[index].session, self._names[index], feeds)
        return Prediction(values[0], values[1], values[2] if len(values) > 2 else None)

    def load_shortcuts(self) -> Shortcuts:
        """Loads faster ways through the same stages and heads; see gati.inference.engine."""
        loader = ShortcutLoader(self._chain, self._loaded, self._heads, self._runner, self.predict, self._warn)
        return loader.load(joins=self._joins)


def cut_as_run(
    chain: Chain, models: Sequence[bytes], parts: Sequence[range], feeds: Mapping[str, np.ndarray]
) -> CutGraph:
    """Joins a chain's segments, optimises the whole, and cuts that into stages.

    Args:
        chain: The chain.
        models: Its segments' files.
        parts: Which of them make a stage; see gati.inference.fuse.
        feeds: Inputs to try the stages on.

    Raises:
        Exception: See gati.inference.layout; InseparableError also if they are too large to be one graph.
    """
    if sum(map(len, models)) > LARGEST:
        raise InseparableError("the network is too large to be optimised as a whole")
    cuts = [chain.segments[part[-1]].output for part in parts[:-1]]
    outside = {tensor.name for tensor in (*chain.inputs, *cuts)}
    reads = [{name for index in part for name in chain.segments[index].inputs} & outside for part in parts]
    weights = Weights()
    return cut_optimised(join(models, weights=weights), cuts, reads, feeds, weights)
