"""Ladder: a chain and the heads of a release on a GPU, as CUDA graphs, which rows climb until a head hits.

For a few rows a GPU spends its time on launching kernels rather than on running them, and a head is dozens of the
smallest. So each rung of the ladder, a stage and the head behind it, is captured as a CUDA graph, which is launched as
one. A CUDA graph is for batches of one size. So there is one for each of several sizes; a batch is padded to the next
larger size, and the rows that are left of it go on in a smaller size as soon as they fit. Tensors go from rung to rung
in fixed places of the device's memory. Only which rows hit, and their answers, come to the host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from gati.inference.device import DeviceRunner, gather
from gati.inference.head import HIT, KEY
from gati.inference.session import Device, open_session
from gati.inference.state import MEMORY_KEYS, HeadState
from gati.inference.steps import Leave, MissedRows, Step, UnjoinableError, common_versions, of_head, prefixed_head
from gati.inference.tensorinfo import kind_of, tensor_info
from gati.repository.chain import Chain

CAPTURED = 3
"""Runs after which ONNX Runtime has captured a graph: in the first one or two it allocates memory."""
TRIED = 30
"""Runs that each memory layout is timed by."""
GRAPH = "gpu_graph_id"
"""ONNX Runtime's option for which of a session's CUDA graphs a run captures, or launches again."""


def sizes_up_to(rows: int) -> tuple[int, ...]:
    """Sizes of batches that a ladder is captured for: powers of two, and the largest."""
    return (*(1 << power for power in range(rows.bit_length()) if 1 << power < rows), rows)


def channels_last_pays(steps: Sequence[Step], chain: Chain, runner: DeviceRunner) -> bool:
    """Whether a ladder is faster if rungs keep the channels of images last, [batch, height, width, channels].

    Tensors between rungs stay as they are. It spared an H200 a third of ResNet-18's time; a GPU without tensor cores
    gains nothing. So both are timed, in turns.

    Raises:
        Exception: As `Ladder` does.
    """
    inputs = {tensor.name: tensor.zeros(1) for tensor in chain.inputs}
    ways = [Ladder(steps, chain, runner, captured=True, channels_last=way) for way in (False, True)]
    taken = [[sum(ladder.pace(inputs)) for ladder in ways] for _ in range(TRIED)]
    planes, last = np.median(taken, axis=0)
    return bool(last < planes)


class Ladder:
    """A chain and its heads, one graph for each rung; see `gati.inference.steps.Joined`.

    ONNX Runtime ties captured graphs to the thread that captured them. So the ladder has a thread of its own, which
    also sees to it that the fixed places in memory belong to one batch at a time.

    Args:
        steps: Stages as they lie on disk, and their heads.
        chain: The chain.
        runner: Of the device.
        captured: Whether rungs are to be CUDA graphs, which can hold nothing but the GPU's kernels.
        sizes: Sizes of batches to capture, ascending.
        channels_last: See `channels_last_pays`.

    Raises:
        UnjoinableError: If tensors between steps have no fixed size, or the steps can't be joined.
        Exception: ONNX Runtime's own, if they can't be run.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        chain: Chain,
        runner: DeviceRunner,
        *,
        captured: bool,
        sizes: Sequence[int] = (1,),
        channels_last: bool = False,
    ) -> None:
        between = [*chain.inputs, *(chain.segments[step.last].output for step in steps)]
        if any(size < 0 for tensor in between for size in tensor.shape):
            raise UnjoinableError("what passes through it has no fixed size")
        self.rows = sizes[-1]
        self._runner = runner
        self._shapes = {tensor.name: tensor.zeros(1).shape[1:] for tensor in chain.inputs}
        self._thread = ThreadPoolExecutor(1, "gati-ladder")
        rungs = [_Rung(step, chain, runner.device, captured, channels_last) for step in steps]
        self._sizes = [_SizedRungs(size, rungs, chain, runner.device, captured) for size in sizes]
        self._rungs, self._read_later = rungs, list[set[str]]()
        there = set(self._shapes)
        for place, rung in enumerate(rungs):
            there.add(chain.segments[rung.last].output.name)
            self._read_later.append(there & {name for later in rungs[place + 1 :] for name in later.reads})
        self._thread.submit(self._capture).result()

    def run(self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState], leave: Leave) -> list[MissedRows]:
        """See `gati.inference.steps.Joined`."""
        return self._thread.submit(self._climb, inputs, state, leave).result()

    def pace(self, inputs: Mapping[str, np.ndarray]) -> list[float]:
        """Seconds of each rung for such inputs, until it is known which rows hit. All rows go on, whatever hits."""
        return self._thread.submit(self._time, inputs).result()

    def _time(self, inputs: Mapping[str, np.ndarray]) -> list[float]:
        sized, seconds = self._rungs_for(len(next(iter(inputs.values())))), list[float]()
        with self._runner.beside_others():
            sized.take(inputs)
            for place in range(len(self._rungs)):
                started = time.perf_counter()
                hit = sized.run(place).hit
                if hit is not None:
                    hit.numpy()
                seconds.append(time.perf_counter() - started)
        return seconds

    def _climb(
        self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState], leave: Leave
    ) -> list[MissedRows]:
        for name, shape in self._shapes.items():
            if inputs[name].shape[1:] != shape:
                raise ValueError(f"{name!r} has another shape than this graph's")
        rows = at = np.arange(len(next(iter(inputs.values()))))  # indices in the batch, and in the rungs' memory
        sized, missed = self._rungs_for(len(rows)), list[MissedRows]()
        *before, last = enumerate(self._rungs)
        with self._runner.beside_others():
            sized.take(inputs)
            for place, rung in before:
                rung.feed(state)
                said = sized.run(place)
                if said.hit is None:
                    continue
                hit = said.hit.numpy()[at]
                if hit.any():
                    leave(rows[hit], said.answer.numpy()[at[hit]], rung.last)
                rows, at = rows[~hit], at[~hit]
                if not len(rows):
                    return missed
                if said.key is not None:
                    missed.append(MissedRows(rung.last, rows, said.key.numpy()[at]))
                narrow = self._rungs_for(len(rows))
                if narrow is not sized:
                    self._pass_on(place, sized, at, narrow)
                    sized, at = narrow, np.arange(len(rows))
            place, rung = last
            leave(rows, sized.run(place).answer.numpy()[at], rung.last)
            return missed

    def _rungs_for(self, rows: int) -> _SizedRungs:
        for sized in self._sizes:
            if sized.size >= rows:
                return sized
        raise ValueError(f"{rows} rows are more than this graph takes")

    def _pass_on(self, place: int, wide: _SizedRungs, at: np.ndarray, narrow: _SizedRungs) -> None:
        """Copies the rows that are left to where the rungs of a smaller size read them."""
        filled = _filled(at, narrow.size)
        for name in self._read_later[place]:
            gather(wide.lies[name], filled, narrow.lies[name], self._runner.device)

    def _capture(self) -> None:
        """Runs every rung until it is captured, which fails if another thread uses the device meanwhile."""
        for sized in self._sizes:
            for place in range(len(self._rungs)):
                with self._runner.beside_others():
                    sized.run(place)  # the first run plans convolutions, and takes longest
                with self._runner.alone():
                    for _ in range(CAPTURED - 1):
                        sized.run(place)


class _Rung:
    """A stage and its head as one graph, and the head's state where it reads it.

    Attributes:
        last: Index of the stage's last segment.
        session: Runs them.
        reads: Names of the tensors that the stage reads.
        gives: Zeros like their outputs for one row, by name: the cut tensor, and the head's outputs.
        state: The head's state in the device's memory, by name.
    """

    def __init__(self, step: Step, chain: Chain, device: Device, captured: bool, channels_last: bool) -> None:
        self.last = step.last
        self.gives = _gives(step, chain)
        whole = _join(step, self.gives).SerializeToString()
        self.session = _open(whole, device, captured, channels_last)
        self.state = {name: _room(np.zeros(shape, np.float32), device) for name, shape in step.spec.state.items()}
        fed = {of_head(step.last, name) for name in self.state}
        self.reads = [node.name for node in self.session.get_inputs() if node.name not in fed]
        self._fed: dict[str, np.ndarray] = {}

    def feed(self, state: Mapping[int, HeadState]) -> None:
        """Copies state to the device, if it has changed since the last time."""
        if not self.state:
            return
        for name, values in state[self.last].feeds().items():
            if self._fed.get(name) is not values:  # an update makes new ones
                self.state[name].update_inplace(values)
                self._fed[name] = values


@dataclass(frozen=True)
class _Said:
    """Where a rung's outputs lie in the device's memory.

    Attributes:
        answer: The head's answer, or without a head the stage's output, [size, classes].
        hit: Whether the head hits, [size]; None without a head.
        key: The key to remember each row by, [size, dim]; None without a memory.
    """

    answer: ort.OrtValue
    hit: ort.OrtValue | None
    key: ort.OrtValue | None


class _SizedRungs:
    """All rungs, bound to memory for batches of one size.

    Attributes:
        size: That size.
        lies: Where the model's inputs and the stages' outputs lie, by name, [size, ...] each.
    """

    def __init__(self, size: int, rungs: Sequence[_Rung], chain: Chain, device: Device, captured: bool) -> None:
        self.size, self._inputs = size, [tensor.name for tensor in chain.inputs]
        self.lies = {tensor.name: _room(tensor.zeros(size), device) for tensor in chain.inputs}
        self._said: list[_Said] = []
        self._bindings: list[tuple[ort.InferenceSession, ort.IOBinding]] = []
        self._options = ort.RunOptions()
        if captured:
            self._options.add_run_config_entry(GRAPH, str(size))
        for rung in rungs:
            cut = chain.segments[rung.last].output.name
            rooms = {name: _room(np.repeat(zeros, size, 0), device) for name, zeros in rung.gives.items()}
            binding = rung.session.io_binding()
            for name in rung.reads:
                binding.bind_ortvalue_input(name, self.lies[name])
            for name, room in rung.state.items():
                binding.bind_ortvalue_input(of_head(rung.last, name), room)
            for name, room in rooms.items():
                binding.bind_ortvalue_output(name, room)
            self.lies[cut] = rooms[cut]
            answer, hit, key = (rooms.get(of_head(rung.last, name)) for name in (chain.output.name, HIT, KEY))
            self._said.append(_Said(answer or rooms[cut], hit, key))
            self._bindings.append((rung.session, binding))

    def take(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Copies inputs to the device; repeats the last row up to the size."""
        for name in self._inputs:
            rows = inputs[name]
            if len(rows) < self.size:
                rows = rows[_filled(np.arange(len(rows)), self.size)]
            self.lies[name].update_inplace(np.ascontiguousarray(rows))

    def run(self, place: int) -> _Said:
        """Runs a rung; its outputs stay valid until it is run again."""
        session, binding = self._bindings[place]
        session.run_with_iobinding(binding, self._options)
        return self._said[place]


def _open(model: bytes, device: Device, captured: bool, channels_last: bool) -> ort.InferenceSession:
    if channels_last:
        with suppress(Exception):  # ONNX Runtime leaves nodes of some networks to the processor then
            return open_session(model, device, captured=captured, channels_last=True)
    return open_session(model, device, captured=captured)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Row indices padded to a size, by repeating the last one."""
    return np.pad(rows, (0, size - len(rows)), "edge")


def _gives(step: Step, chain: Chain) -> dict[str, np.ndarray]:
    """Zeros like a step's outputs for one row, by name: those of its stage and of its head."""
    cut = chain.segments[step.last].output
    if step.head is None:
        return {cut.name: cut.zeros(1)}
    says = {chain.output.name: chain.output.zeros(1), HIT: np.zeros(1, np.bool_)}
    if KEY in step.spec.outputs and MEMORY_KEYS in step.spec.state:
        says[KEY] = np.zeros((1, step.spec.state[MEMORY_KEYS][1]), np.float32)
    return {cut.name: cut.zeros(1)} | {of_head(step.last, name): zeros for name, zeros in says.items()}


def _join(step: Step, gives: Mapping[str, np.ndarray]) -> ModelProto:
    """A stage and its head as one graph."""
    whole = ModelProto(ir_version=step.stage.ir_version)
    whole.graph.CopyFrom(step.stage.graph)
    del whole.graph.output[:]
    whole.graph.output.extend(tensor_info(name, kind_of(zeros.dtype)) for name, zeros in gives.items())
    if step.head is not None:
        head = prefixed_head(step)
        whole.graph.node.extend(head.node)
        whole.graph.initializer.extend(head.initializer)
        whole.graph.input.extend(
            tensor_info(of_head(step.last, name), TensorProto.FLOAT, shape) for name, shape in step.spec.state.items()
        )
    whole.opset_import.extend(helper.make_opsetid(*pair) for pair in common_versions([step]).items())
    return whole


def _room(zeros: np.ndarray, device: Device) -> ort.OrtValue:
    """Memory on a device for a tensor, filled with zeros."""
    return ort.OrtValue.ortvalue_from_numpy(zeros, device.kind, device.index)
