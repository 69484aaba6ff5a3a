"""Hidden state that stays where it was computed: on a GPU, a chain's activations never come to the host.

A stage's output is bound to the device's memory and passed on as it lies there, and rows that leave early are dropped
there, too. Only the chain's last output and the heads' outputs come to the host: Python decides which rows go on, so
that it has to wait for `hit` at every exit, and the head's few answers come in the same wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from gati.errors import UnavailableError
from gati.inference.session import CPU, Device, open_session, run

VALUES, ROWS, TAKEN = "values", "rows", "taken"


class Hidden(Protocol):
    """Rows on their way through a chain: an `np.ndarray`, or a `DeviceArray`."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Some of the rows, by a mask or by indices, on the same device."""
        ...

    def __array__(self) -> np.ndarray: ...


class Runner:
    """Runs sessions on the processor, where hidden state is NumPy's."""

    device = CPU

    def keep(self, session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Runs a session; its outputs stay on the device, as `Hidden`."""
        return run(session, outputs, feeds)

    def fetch(
        self, session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[np.ndarray]:
        """Runs a session; its outputs come to the host."""
        return run(session, outputs, feeds)


class DeviceRunner(Runner):
    """Runs sessions on a device, and binds their inputs and outputs to its memory.

    ONNX Runtime waits for the device at the end of each run, so that another session, on a stream of its own, may read
    what this one wrote. Several threads may run sessions; `_turn` counts them, for `alone`.

    Raises:
        UnavailableError: If the device can't be used.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._turn = threading.Condition()
        self._running = 0
        _gather(TensorProto.FLOAT, device)  # fails now rather than on a request

    def keep(self, session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """See Runner; the outputs are `DeviceArray`s."""
        with self.beside_others():
            return [DeviceArray(value, session, self) for value in _run(session, outputs, feeds, self.device)]

    def fetch(
        self, session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[np.ndarray]:
        """See Runner."""
        with self.beside_others():
            return [value.numpy() for value in _run(session, outputs, feeds, CPU)]

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Uses the device, perhaps beside other threads; waits while one has it alone."""
        with self._turn:
            self._running += 1
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Uses the device alone: a capture fails in CUDA when another thread allocates memory, say."""
        with self._turn:
            self._turn.wait_for(lambda: not self._running)
            yield  # with the lock held: others wait in `beside_others`


def runner_on(device: Device) -> Runner:
    """The runner for a device.

    Raises:
        UnavailableError: If the device can't be used.
    """
    return Runner() if device == CPU else DeviceRunner(device)


def usable(device: Device) -> bool:
    """Whether ONNX Runtime can run on a device."""
    try:
        runner_on(device)
    except UnavailableError:
        return False
    return True


class DeviceArray:
    """Rows in a device's memory: as much of an array as a chain needs.

    Args:
        value: The tensor, [rows, ...].
        session: The session that it is an output of, kept alive here: the memory goes with it.
        runner: Runs sessions on the device.
    """

    def __init__(self, value: ort.OrtValue, session: ort.InferenceSession, runner: DeviceRunner) -> None:
        self.value = value
        self._session = session
        self._runner = runner

    def __getitem__(self, rows: np.ndarray) -> DeviceArray:
        """Gathers rows, by a mask or by indices, on the device."""
        indices = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        session = _gather(self.value.element_type(), self._runner.device)
        return self._runner.keep(session, [TAKEN], {VALUES: self, ROWS: indices})[0]

    def __array__(self) -> np.ndarray:
        with self._runner.beside_others():
            return self.value.numpy()


def _run(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any], to: Device
) -> list[ort.OrtValue]:
    binding = session.io_binding()
    for name, rows in feeds.items():
        if isinstance(rows, DeviceArray):
            binding.bind_ortvalue_input(name, rows.value)
        else:
            binding.bind_cpu_input(name, np.ascontiguousarray(rows))
    for name in outputs:
        binding.bind_output(name, to.kind, to.index)
    try:
        session.run_with_iobinding(binding)
    except RuntimeError:  # with a binding, an error has lost the class that tells whose fault it is
        run(session, outputs, {name: np.asarray(rows) for name, rows in feeds.items()})
        raise
    return binding.get_outputs()


def gather(value: ort.OrtValue, rows: np.ndarray, into: ort.OrtValue, device: Device) -> None:
    """Copies rows (indices) of a tensor on a device into another one there."""
    session = _gather(value.element_type(), device)
    binding = session.io_binding()
    binding.bind_ortvalue_input(VALUES, value)
    binding.bind_cpu_input(ROWS, rows)
    binding.bind_ortvalue_output(TAKEN, into)
    session.run_with_iobinding(binding)


@cache
def _gather(element: int, device: Device) -> ort.InferenceSession:
    """A session that picks rows of tensors; `element` is their type, one of `onnx.TensorProto.DataType`."""
    graph = helper.make_graph(
        [helper.make_node("Gather", [VALUES, ROWS], [TAKEN], axis=0)],
        "gather",
        [
            helper.make_tensor_value_info(VALUES, element, None),
            helper.make_tensor_value_info(ROWS, TensorProto.INT64, ["rows"]),
        ],
        [helper.make_tensor_value_info(TAKEN, element, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return open_session(model.SerializeToString(), device)
