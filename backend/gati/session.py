"""ONNX Runtime sessions, opened alike wherever gati runs a graph: orchestrator, stand-in backend, exporter.

All sessions of a process share one thread pool. With a pool each, the segments of a chain fight over the cores:
four of them took 22 ms where the backbone takes 4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort

THREADS = "GATI_THREADS"
"""Environment variable: threads that work on one graph at a time; by default, one a core."""

SPIN = "session.intra_op.allow_spinning"
"""ONNX Runtime's name for whether threads wait busily; also a parameter of the stand-in backend's models."""
INTRA_OP = "intra_op_thread_count"
"""Parameter of models of Triton's ONNX Runtime backend, and of its stand-in."""


def open_session(model: str | Path | bytes, optimised: Path | None = None) -> ort.InferenceSession:
    """Opens an ONNX model, given as a file or as its bytes, on the process's shared thread pool.

    Args:
        model: The model.
        optimised: Where to write the graph that is run in the end, which is for this machine alone.

    Raises:
        Exception: ONNX Runtime's own, if the model can't be read or run.
    """
    _share_threads()
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def open_alone(model: Path, intra_op_threads: int, spin: bool) -> ort.InferenceSession:
    """Opens an ONNX model on a thread pool of its own, for a process that runs nothing else.

    Args:
        model: The file.
        intra_op_threads: Threads that work on it.
        spin: Whether they wait busily between two pieces of work: faster alone, ruinous beside others.

    Raises:
        Exception: ONNX Runtime's own, if the model can't be read or run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.log_severity_level = 4
    options.add_session_config_entry(SPIN, str(int(spin)))
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Runs a session whose outputs are all dense tensors."""
    return cast(list[np.ndarray], session.run(outputs, feeds))


@cache
def _share_threads() -> None:
    """Sizes the shared pool, once a process: afterwards ONNX Runtime would refuse."""
    ort.set_global_thread_pool_sizes(threads(), 1)


def threads() -> int:
    """How many threads work on one graph."""
    return int(os.environ.get(THREADS, "0")) or len(os.sched_getaffinity(0))
