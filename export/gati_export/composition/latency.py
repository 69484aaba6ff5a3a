"""Latency of segments, of the cuts between them, and of heads, on this machine, at batch 1.

A request that comes alone goes through a cascade (gati.inference.cascade), which calls no graph but itself: of what a
cut and a lookup take by themselves, the call is left out. On a GPU it climbs a ladder, whose rungs are measured
(gati_export.composition.gpu_latency).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from gati.inference.device import DeviceRunner, usable
from gati.inference.fuse import fuse, stage_ranges
from gati.inference.inline import cut_as_run
from gati.inference.layout import open_on_substitute
from gati.inference.session import CPU, DEVICE, Device, open_session, parse_device, run_chain
from gati.inference.shortcuts import LARGEST_JOINED
from gati.inference.substitute import Substitute
from gati.repository.chain import Chain
from gati_export.composition.gpu_latency import GpuLatency
from gati_export.composition.replay import state_of
from gati_export.samples.activations import first_segment
from gati_export.samples.ragged import few

WARM_UP = 5
ROUNDS, SECONDS = 100, 0.3
"""So often, and for so long, are models run at least."""
LOW = 0.1
"""Share of the rounds that may take less than what is told: other programs make most of them take longer, at times, and
parts unlike. The least of them, on the other hand, may be one that no other comes up to."""
TURNS, PAUSE, DISTURBED = 4, 1.0, 0.25
"""So often is a cut measured at most, with so many seconds between, while it seems to add such a share of the whole."""
BUDGET, CUT_BUDGET = 10.0, 2.0
"""Seconds after which no further round begins, and the same for each cut; three rounds are always run."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Times:
    """What a chain's parts cost.

    Attributes:
        segments: Seconds of each segment as a part of the whole, [cut points + 1].
        cuts: Seconds that are added by ending a stage at each cut point, [cut points].
    """

    segments: np.ndarray
    cuts: np.ndarray

    @property
    def plain(self) -> float:
        """Seconds of the backbone."""
        return float(self.segments.sum())

    def until_exits(self, heads: Sequence[tuple[int, float]]) -> np.ndarray:
        """Seconds until a request is answered at each exit, cuts and lookups on the way included, [cut points + 1].

        Args:
            heads: Cut point of each head in use, and seconds of a lookup in it.
        """
        added = np.zeros(len(self.segments))
        for cut, seconds in heads:
            added[cut] = self.cuts[cut] + seconds
        return np.cumsum(self.segments + added)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured before: times of a chain's parts, and seconds of a lookup by cut point and name of the head.

    A head's time depends on its shape and not on its weights. Beside a busy server, on some of the cores, all that
    could be measured now is how busy it is.
    """

    times: Times
    heads: Mapping[tuple[int, str], float]


def measure(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feeds],
    rounds: int = ROUNDS,
    budget: float = BUDGET,
) -> list[float]:
    """Time of each model, in seconds, where nothing else holds it up: the `LOW` quantile.

    Models take turns, so that whatever slows the machine down for a while slows all of them down.

    Args:
        sessions: The models.
        feeds: What to run each on.
        rounds: How often each is run at least, if that takes no longer than `budget`.
        budget: Seconds.
    """
    taken: list[list[float]] = []
    begun = time.perf_counter()
    for turn in count():
        row = []
        for session, feed in zip(sessions, feeds, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            row.append(time.perf_counter() - start)
        taken.append(row)
        passed = time.perf_counter() - begun
        if turn >= WARM_UP + 2 and (passed > budget or (turn >= WARM_UP + rounds and passed > min(SECONDS, budget))):
            break
    return np.quantile(taken[WARM_UP:], LOW, axis=0).tolist()


def measured_on(chain: Chain) -> Device:
    """Where segments are measured: on `GATI_DEVICE`; without it, on a GPU if TensorRT is to run them and there is one.

    By ONNX Runtime's CUDA provider even then: TensorRT would have to build an engine of each segment first.
    """
    if asked := os.environ.get(DEVICE):
        return parse_device(asked)
    wanted = Device("cuda") if chain.engine == "tensorrt" else CPU
    return wanted if usable(wanted) else CPU


def measure_segments(chain: Chain, paths: Sequence[Path], samples: Feeds) -> Times:
    """Measures a chain's segments as they will be served: fused wherever there is no head between them.

    Args:
        chain: The chain.
        paths: Its segments' files.
        samples: Model inputs by name; a typical one is run. Zeros are run in the place of features.
    """
    device, inputs, call = measured_on(chain), _one(chain, samples), _call(chain, paths)
    models = [path.read_bytes() for path in paths]
    if (gpu := _gpu_latency(chain, models, inputs)) is not None:
        with suppress(Exception):  # a ladder that can't be built or run: measure stage by stage
            return Times(*gpu.segments())
    if chain.mode == "bls" or len(stage_ranges(len(models), (), [len(model) for model in models])) > 1:
        parts = _cut(chain, models, chain.heads, inputs)
        return Times(np.array(measure(parts.sessions, parts.feeds)), np.zeros(len(chain.heads)))
    whole = open_session(fuse(models), device)
    seconds = measure([whole], [_read(whole, inputs)])[0]

    def measured(index: int) -> _Halves:
        parts = _cut(chain, models, [index], inputs)
        turns = [whole, *parts.sessions, *call], [_read(whole, inputs), *parts.feeds, *({} for _ in call)]
        taken = np.array(measure(*turns, budget=CUT_BUDGET))
        before, after, *spared = taken[1:] / taken[0]  # of the same rounds: the machine may be slower by now
        return _Halves(before, after, sum(spared))

    found = _undisturbed(chain.heads, measured)
    until = [0.0, *(seconds * min(halves.before, 1.0) for halves in found), seconds]
    return Times(np.diff(np.maximum.accumulate(until)), seconds * np.array([halves.added for halves in found]))


class _Halves(NamedTuple):
    """What a network takes that is cut in two, as shares of what it takes as a whole.

    Attributes:
        before: The first half.
        after: The second half.
        spared: What a call takes, where a cascade spares it.
    """

    before: float
    after: float
    spared: float

    @property
    def added(self) -> float:
        """What the cut adds."""
        return max(0.0, self.before + self.after - 1 - self.spared)


def _undisturbed(cuts: Iterable[int], measured: Callable[[int], _Halves]) -> list[_Halves]:
    """Measures cuts; those that seem to add much to the whole, again and later: the least counts.

    Something else ran for a while on the machine, most likely: what was before the cut then seems to be later than it
    is, and all that comes behind it, too.
    """
    found: dict[int, _Halves] = {}
    for turn in range(TURNS):
        odd = [index for index in cuts if index not in found or found[index].added > DISTURBED]
        if turn and odd:
            time.sleep(PAUSE)
        for index in odd:
            taken = measured(index)
            found[index] = min(found.get(index, taken), taken, key=lambda halves: halves.before + halves.after)
    return [found[index] for index in cuts]


def measure_heads(
    chain: Chain, paths: Sequence[Path], heads: Sequence[tuple[int, bytes]], samples: Feeds
) -> list[float]:
    """Seconds of a lookup in each head, right behind its segment, with the caches as it will find them.

    Args:
        chain: The chain.
        paths: Its segments' files.
        heads: Cut points and files.
        samples: Model inputs by name; a typical one is run. Zeros are run in the place of features.
    """
    device, inputs, call = measured_on(chain), _one(chain, samples), _call(chain, paths)
    models = [path.read_bytes() for path in paths]
    if (gpu := _gpu_latency(chain, models, inputs)) is not None:
        with suppress(Exception):  # a ladder that can't be built or run: measure stage by stage
            return gpu.heads(heads)
    parts = _cut(chain, models, chain.heads, inputs)
    turns: list[tuple[ort.InferenceSession, Feeds]] = []
    places: dict[int, int] = {}
    for index in chain.heads:
        turns.append((parts.sessions[index], parts.feeds[index]))
        cut = chain.segments[index].output
        for head, (at, model) in enumerate(heads):
            if at == index:
                substitute = parts.substitutes.get(cut.name)
                session = open_on_substitute(model, cut, substitute)[0] if substitute else open_session(model, device)
                shapes = state_of(ModelProto.FromString(model))
                state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
                places[head] = len(turns)
                turns.append((session, {cut.name: parts.feeds[index + 1][cut.name], **state}))
    for session in call:
        turns += [(parts.sessions[0], parts.feeds[0]), (session, {})]
    seconds = measure([session for session, _ in turns], [row for _, row in turns])
    spared = seconds[-1] if call else 0.0
    alone = [seconds[places[head]] for head in range(len(heads))]
    return [max(one / 4, one - spared) for one in alone]  # a quarter at least: it is not for nothing


def _gpu_latency(chain: Chain, models: Sequence[bytes], inputs: Feeds) -> GpuLatency | None:
    """What measures a chain that climbs a ladder on a GPU; None where it is served otherwise."""
    device = measured_on(chain)
    if chain.mode == "bls" or device == CPU or sum(map(len, models)) > LARGEST_JOINED:
        return None
    try:
        return GpuLatency(chain, models, inputs, DeviceRunner(device))
    except Exception:  # ONNX Runtime's own: what can't be captured goes stage by stage
        return None


def _call(chain: Chain, paths: Sequence[Path]) -> list[ort.InferenceSession]:
    """A model that does nothing, to measure what a call takes, where a cascade spares it; else none."""
    large = sum(path.stat().st_size for path in paths) > LARGEST_JOINED
    if chain.mode == "bls" or large or measured_on(chain) != CPU:
        return []
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["nothing"], value_float=0.0)],
        "nothing",
        [],
        [helper.make_tensor_value_info("nothing", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return [open_session(model.SerializeToString())]


@dataclass(frozen=True, eq=False)
class _Parts:
    """A chain cut at some of its cut points: sessions, inputs for one sample; see `gati.inference.layout.CutGraph`."""

    sessions: Sequence[ort.InferenceSession]
    feeds: Sequence[Feeds]
    substitutes: Mapping[str, Substitute]


def _cut(chain: Chain, models: Sequence[bytes], cuts: Sequence[int], inputs: Feeds) -> _Parts:
    """Cuts a chain as it will be served."""
    ranges = stage_ranges(len(models), cuts, [len(model) for model in models])
    device = measured_on(chain)
    if chain.mode == "inline" and device == CPU:
        with suppress(Exception):  # as gati.inference.inline does
            found = cut_as_run(chain, models, ranges, inputs)
            return _Parts(
                found.sessions, [_read(session, found.values) for session in found.sessions], found.substitutes
            )
    sessions = [open_session(fuse([models[index] for index in part]), device) for part in ranges]
    values = run_chain(sessions, inputs)
    return _Parts(sessions, [_read(session, values) for session in sessions], {})


def _one(chain: Chain, samples: Feeds) -> dict[str, np.ndarray]:
    """The model's inputs for a typical sample; zeros where only features are known."""
    one = {} if first_segment(chain, samples) else few(samples, 1)
    return {tensor.name: one[tensor.name] if one else tensor.zeros() for tensor in chain.inputs}


def _read(session: ort.InferenceSession, values: Feeds) -> Feeds:
    return {node.name: values[node.name] for node in session.get_inputs()}
