"""ONNX Runtime sessions, opened alike wherever gati runs a graph: orchestrator, stand-in backend, exporter.

Each session has threads of its own, which spin (wait busily) only for a moment. By default they spin for some 40 ms,
and then those of a chain's sessions fight over the cores: four segments took 22 ms where the backbone takes 4. In a
pool that sessions share they do not fight, but spin that long after each request, whatever `STOP_SPINNING` says.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from gati.errors import RepositoryError, UnavailableError
from gati.system.resources import cores

DEVICE = "GATI_DEVICE"
"""Environment variable: where inline chains run, and what is measured at export; see `parse_device`."""
CUDA = "CUDAExecutionProvider"
LENT = "_gati_lent"
"""Attribute of a session that keeps the tensors alive that were lent to it: ONNX Runtime itself does not."""

THREADS = "GATI_THREADS"
"""Environment variable: threads that work on one graph at a time; by default one for each core, at most
`MOST_THREADS`."""

SPIN = "session.intra_op.allow_spinning"
"""ONNX Runtime's option for whether threads spin; also a parameter of the stand-in backend's models."""
STOP_SPINNING = "session.force_spinning_stop"
"""Its option for that threads stop spinning when a run ends, since the server and its clients want the cores then. On
two cores, a request to a plain ResNet-18 took a sixth less with it, and one to its chain a quarter."""
WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"
"""Its option for a file for the tensors of a graph that it writes: that saves 0.1 s for ResNet-18."""
INTRA_OP = "intra_op_thread_count"
"""Parameter of models of Triton's ONNX Runtime backend, and of its stand-in."""
SPIN_DURATION = "session.intra_op.spin_duration_us"
"""ONNX Runtime's option for how long, in µs, idle worker threads spin before they sleep; versions without it fall back
to `STOP_SPINNING`."""
SPIN_MICROSECONDS = 20
"""How long a chain's threads spin. Without, a lone request takes a tenth longer; with 150, or until a run ends,
requests beside audits take up to twice as long (tried by hand: docs/TRIED.md)."""
MOST_THREADS = 32
"""Threads on one graph by default: a chain has a dozen sessions and more."""


@dataclass(frozen=True)
class Device:
    """Where graphs run: "cpu", or "cuda" and the number of a GPU."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self == CPU else f"{self.kind}:{self.index}"


CPU = Device()


def parse_device(text: str) -> Device:
    """Reads `cpu`, `cuda` or `cuda:1`.

    Raises:
        RepositoryError: If it is none of these.
    """
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", text)
    if found is None:
        raise RepositoryError(f"{text!r} is no device to run on: cpu is one, cuda, and cuda:N for the GPU number N.")
    return Device(text.partition(":")[0], int(found[1] or 0))


def open_session(
    model: str | Path | bytes,
    device: Device = CPU,
    optimised: Path | None = None,
    lent: Mapping[str, ort.OrtValue] | None = None,
    captured: bool = False,
    channels_last: bool = False,
    as_written: bool = False,
) -> ort.InferenceSession:
    """Opens an ONNX model, given as a file or as its bytes.

    Args:
        model: The model.
        device: Where to run it.
        optimised: Where to write the optimised graph, which is for this machine only, with its large tensors in a file
            beside it.
        lent: Tensors to read where they lie, in place of those of the same names in the model; see
            gati.inference.weights.
        captured: Whether a GPU is to run it as one CUDA graph; see gati.inference.ladder.
        channels_last: Whether a GPU is to keep the channels of images last inside, as its tensor cores want them.
        as_written: Whether to run the graph without optimisations, which may round otherwise.

    Raises:
        UnavailableError: If the device can't be used.
        Exception: ONNX Runtime's own, if the model can't be read or run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 4
    options.add_session_config_entry(STOP_SPINNING, "1")
    options.add_session_config_entry(SPIN_DURATION, str(SPIN_MICROSECONDS))
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(WEIGHTS_FILE, f"{optimised.name}.weights")
    for name, tensor in (lent or {}).items():
        options.add_initializer(name, tensor)
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=_providers(device, captured, channels_last))
    if lent:
        setattr(session, LENT, lent)
    if device != CPU and CUDA not in session.get_providers():  # it has silently taken the processor
        raise UnavailableError(
            f"ONNX Runtime can't use {device}: it lacks CUDA, cuDNN or a driver, or there is no GPU."
        )
    return session


def _providers(device: Device, captured: bool, channels_last: bool) -> list[Any]:
    """A session's execution providers. Nodes that none of them can run go to the processor."""
    if device == CPU:
        return ["CPUExecutionProvider"]
    if CUDA not in ort.get_available_providers():
        raise UnavailableError(
            f"ONNX Runtime {ort.__version__} can't use {device} as it is: install onnxruntime-gpu in its place."
        )
    _load_cuda()
    # The default, an exhaustive search for kernels, takes 0.3 s on the first request of each batch size, and finds no
    # faster ones. TensorFloat-32 stays on, as where ONNX Runtime serves the backbone (off: NVIDIA_TF32_OVERRIDE=0).
    options = {"cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": str(int(captured))}
    return [(CUDA, {"device_id": str(device.index), "prefer_nhwc": str(int(channels_last)), **options})]


def open_alone(model: Path, intra_op_threads: int, spin: bool) -> ort.InferenceSession:
    """Opens an ONNX model on a thread pool of its own, for a process that runs nothing else.

    Args:
        model: The file.
        intra_op_threads: Threads that work on it.
        spin: Whether they spin between two pieces of work: faster alone, ruinous beside other sessions.

    Raises:
        Exception: ONNX Runtime's own, if the model can't be read or run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.log_severity_level = 4
    options.add_session_config_entry(SPIN, str(int(spin)))
    options.add_session_config_entry(STOP_SPINNING, "1")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Runs a session whose outputs are all dense tensors."""
    return cast(list[np.ndarray], session.run(outputs, feeds))


def run_chain(sessions: Iterable[ort.InferenceSession], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs sessions one after another. Each reads from the feeds and from the outputs of those before it.

    Returns:
        The feeds and all outputs, by name.
    """
    values = dict(feeds)
    for session in sessions:
        names = [node.name for node in session.get_outputs()]
        read = {node.name: values[node.name] for node in session.get_inputs()}
        values |= zip(names, run(session, names, read), strict=True)
    return values


@cache
def _load_cuda() -> None:
    """Loads CUDA and cuDNN from where pip puts them (onnxruntime-gpu[cuda,cudnn]): the loader does not look there."""
    ort.set_default_logger_severity(3)  # it would log a pointless warning for each session
    with redirect_stdout(sys.stderr):
        ort.preload_dlls(msvc=False)


def threads() -> int:
    """How many threads work on one graph."""
    return int(os.environ.get(THREADS, "0")) or min(cores(), MOST_THREADS)
