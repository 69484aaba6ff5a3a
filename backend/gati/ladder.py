"""Ladder: a chain and the heads of a release on a GPU, for a request of one row, which climbs until a head hits.

A network of one row keeps a GPU busy with starting kernels rather than running them, and a head is dozens of the
smallest. So a rung of the ladder, which is a stage and the head behind it, is captured as a CUDA graph, and started as
one. What goes from rung to rung lies where both expect it; to the host comes whether a rung hits, and an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from gati.chain import Chain
from gati.device import DeviceRunner
from gati.head import HIT, KEY
from gati.session import Device, open_session
from gati.state import MEMORY_KEYS, HeadState
from gati.steps import Passage, Step, UnjoinableError, apart, common_versions, of_head

CAPTURED = 3
"""Runs after which ONNX Runtime has captured a graph: it lets one or two pass, in which memory is taken."""


@dataclass(frozen=True)
class Rung:
    """A stage and its head, bound to where they read and write.

    Attributes:
        last: Index of the stage's last segment.
        session: What runs them.
        binding: Of the session.
        answer: The head's, or at the end the backbone's, [1, classes].
        hit: Whether the head hits, [1]; None at the end.
        key: What the head would remember the row by, [1, dim]; None where it remembers nothing.
        state: What the head reads besides, by name.
        fed: What that was made to be last.
    """

    last: int
    session: ort.InferenceSession
    binding: ort.IOBinding
    answer: ort.OrtValue
    hit: ort.OrtValue | None
    key: ort.OrtValue | None
    state: Mapping[str, ort.OrtValue]
    fed: dict[str, np.ndarray] = field(default_factory=dict)

    def feed(self, state: HeadState) -> None:
        """Brings state to where it is read, if it is another than the last time."""
        for name, values in state.feeds().items():
            if self.fed.get(name) is not values:  # an update makes new ones
                self.state[name].update_inplace(values)
                self.fed[name] = values


class Ladder:
    """A chain and its heads, a graph a rung; see `gati.steps.Joined`.

    ONNX Runtime keeps captured graphs with the thread that captured them, which therefore is the ladder's own.

    Args:
        steps: Stages as they lie on disk, and their heads.
        chain: The chain.
        runner: Of the device.
        captured: Whether rungs are to be CUDA graphs; nothing but kernels can be in these.

    Raises:
        UnjoinableError: If what passes between steps has no fixed size, or they can't be joined.
        Exception: ONNX Runtime's own, if they can't be run.
    """

    def __init__(self, steps: Sequence[Step], chain: Chain, runner: DeviceRunner, *, captured: bool) -> None:
        between = [*chain.inputs, *(chain.segments[step.last].output for step in steps)]
        if any(size < 0 for tensor in between for size in tensor.shape):
            raise UnjoinableError("what passes through it has no fixed size")
        self._runner, self._captured = runner, captured
        self._inputs = {tensor.name: _room(tensor.zeros(1), runner.device) for tensor in chain.inputs}
        self._shapes = {tensor.name: tensor.zeros(1).shape for tensor in chain.inputs}
        self._thread = ThreadPoolExecutor(1, "gati-ladder")
        lies = dict(self._inputs)
        self._rungs = [self._open(step, chain, lies) for step in steps]
        self._thread.submit(self._capture).result()

    def run(self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState]) -> Passage:
        """See `gati.steps.Joined`."""
        return self._thread.submit(self._climb, inputs, state).result()

    def _climb(self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState]) -> Passage:
        with self._runner.beside_others():
            for name, room in self._inputs.items():
                if inputs[name].shape != self._shapes[name]:
                    raise ValueError(f"{name!r} has another shape than this graph's")
                room.update_inplace(np.ascontiguousarray(inputs[name]))
            keys: list[tuple[int, np.ndarray]] = []
            rung = self._rise(state, keys)
            return Passage(rung.answer.numpy(), rung.last, keys)

    def _rise(self, state: Mapping[int, HeadState], keys: list[tuple[int, np.ndarray]]) -> Rung:
        """Runs rungs up to the first that answers; adds to `keys` what those before it would remember."""
        for rung in self._rungs[:-1]:
            if rung.state:
                rung.feed(state[rung.last])
            rung.session.run_with_iobinding(rung.binding)
            if rung.hit is not None and rung.hit.numpy()[0]:
                return rung
            if rung.key is not None:
                keys.append((rung.last, rung.key.numpy()))
        self._rungs[-1].session.run_with_iobinding(self._rungs[-1].binding)
        return self._rungs[-1]

    def _capture(self) -> None:
        """Runs every rung until it is captured: as others hold still, since what they do would break it off."""
        for rung in self._rungs:
            with self._runner.alone():
                for _ in range(CAPTURED):
                    rung.session.run_with_iobinding(rung.binding)

    def _open(self, step: Step, chain: Chain, lies: dict[str, ort.OrtValue]) -> Rung:
        """Opens a step where what it reads lies; adds where that lies what it gives."""
        cut, gives = chain.segments[step.last].output, _gives(step, chain)
        session = open_session(_join(step, gives).SerializeToString(), self._runner.device, captured=self._captured)
        device = self._runner.device
        rooms = {name: _room(zeros, device) for name, zeros in gives.items()}
        state = {name: _room(np.zeros(shape, np.float32), device) for name, shape in step.spec.state.items()}
        binding = session.io_binding()
        reads = lies | {of_head(step.last, name): room for name, room in state.items()}
        for node in session.get_inputs():
            binding.bind_ortvalue_input(node.name, reads[node.name])
        for name, room in rooms.items():
            binding.bind_ortvalue_output(name, room)
        lies[cut.name] = rooms[cut.name]
        said = {name: rooms.get(of_head(step.last, name)) for name in (chain.output.name, HIT, KEY)}
        return Rung(
            step.last, session, binding, said[chain.output.name] or rooms[cut.name], said[HIT], said[KEY], state
        )


def _gives(step: Step, chain: Chain) -> dict[str, np.ndarray]:
    """Zeros of what a step gives, by name: its stage's output, and what its head says."""
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
    whole.graph.output.extend(_value(name, zeros) for name, zeros in gives.items())
    if step.head is not None:
        head = apart(step)
        whole.graph.node.extend(head.node)
        whole.graph.initializer.extend(head.initializer)
        whole.graph.input.extend(
            helper.make_tensor_value_info(of_head(step.last, name), TensorProto.FLOAT, shape)
            for name, shape in step.spec.state.items()
        )
    whole.opset_import.extend(helper.make_opsetid(*pair) for pair in common_versions([step]).items())
    return whole


def _value(name: str, zeros: np.ndarray) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(zeros.dtype), None)


def _room(zeros: np.ndarray, device: Device) -> ort.OrtValue:
    """Memory of a device for a tensor."""
    return ort.OrtValue.ortvalue_from_numpy(zeros, device.kind, device.index)
