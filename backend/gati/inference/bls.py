"""BLS mode: segments and heads as Triton models, called through business logic scripting.

A release's version is pinned on every call, so that no request is answered by heads of two releases; a head whose
version is not (or no longer) ready is a miss.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gati.errors import GatiError, NotLoadedError, RequestError, UnavailableError, first_line
from gati.inference.device import Hidden
from gati.inference.engine import Shortcuts, Stage
from gati.inference.head import HIT, KEY, HeadSpec, Prediction, open_head
from gati.repository.chain import Chain, as_sent
from gati.repository.release import Release, head_path

CHAIN_VERSION = SEGMENT_VERSION = 1
INVALID = "onnx runtime error 2:"
"""How Triton's ONNX Runtime backend says, without a code of its own, that a model can't take these inputs."""
AWAY = (
    "is not ready",
    "is not at ready state",
    "Request for unknown model",
    "stopped accepting new",
    "Server not ready",
)
"""What Triton says of a model that it has not loaded, or is unloading: what BLS itself finds has no code of its own."""

STAYS_SECONDS = 0.25
"""How long it holds that a chain is not being unloaded. Triton's Python backend waits a second from when a model is no
longer ready until it answers none of its calls: they would wait for ever, and crash the server as it frees them."""


class BlsEngine:
    """Calls segments and heads on the server that runs this process.

    Args:
        repository: Where the heads' files lie, to be held against their contract before use.
        chain: The chain to run.
        pb_utils: Triton's `triton_python_backend_utils`, which exists inside the server only.

    Raises:
        RepositoryError: If a segment's ONNX file, or its plan, is not the one that chain.json names.
    """

    def __init__(self, repository: Path, chain: Chain, pb_utils: Any) -> None:
        self._repository = repository
        self._chain = chain
        self._calls = BlsCalls(pb_utils)
        self._stays_until = 0.0
        self._ended = False
        for segment in chain.segments:
            if chain.segment_path(repository, segment.index).exists():  # else the server runs it in another format
                chain.check_segment(repository, segment.index)
            chain.check_plan(repository, segment.index)

    def load_stages(self, cuts: Sequence[int]) -> tuple[Stage, ...]:
        """Each segment is a model of its own, and a stage; see gati.inference.engine."""
        return tuple(Stage(s.index, s.inputs, partial(self._run_segment, s.index)) for s in self._chain.segments)

    def _run_segment(self, index: int, feeds: Mapping[str, Hidden]) -> np.ndarray:
        name, output = self._chain.segment_model(index), self._chain.segments[index].output.name
        sent = {read: as_sent(np.asarray(value)) for read, value in feeds.items()}
        try:
            return self._calls.run(name, SEGMENT_VERSION, sent, [output])[0]
        except NotLoadedError:
            raise
        except GatiError:  # Triton may have run it with rows of others, of which some can't be
            return self._calls.run(name, SEGMENT_VERSION, sent, [output])[0]

    def detached(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Stages that may run after the answers have left, when no request keeps the chain loaded.

        They raise an UnavailableError once it is being unloaded.
        """
        return tuple(replace(stage, run=partial(self._run_while_loaded, stage.run)) for stage in stages)

    def _run_while_loaded(self, run: Callable[[Mapping[str, Hidden]], Hidden], feeds: Mapping[str, Hidden]) -> Hidden:
        if not self.stays:
            raise UnavailableError(f"{self._chain.model} is being unloaded.")
        return run(feeds)

    @property
    def stays(self) -> bool:
        """Whether the chain is loaded, and will be for some time."""
        if self._ended:
            return False
        now = time.monotonic()
        if now >= self._stays_until:
            with suppress(Exception):  # the whole server is ending
                if self._calls.ready(self._chain.model, CHAIN_VERSION):
                    self._stays_until = now + STAYS_SECONDS
        return now < self._stays_until

    def end(self) -> None:
        """Takes in that the chain is being unloaded."""
        self._ended = True

    def traced(self, trace: Any) -> AbstractContextManager[None]:
        """Has what this thread calls meanwhile belong to a request's trace; see `BlsCalls.traced`."""
        return self._calls.traced(trace)

    def load_heads(self, release: Release) -> tuple[BlsHeads, dict[int, HeadSpec]]:
        """Checks that the server has loaded a release's heads, and calls each once; see gati.inference.engine."""
        specs = {}
        for head in release.heads:
            path = head_path(self._repository, self._chain, head.index, release.number)
            _, specs[head.index] = open_head(path.read_bytes(), self._chain, head.index)
            name = self._chain.head_model(head.index)
            if not self._calls.ready(name, release.number):  # asked last: what is refused is not waited for
                raise NotLoadedError(f"version {release.number} of {name!r} is not loaded on the server.")
        return BlsHeads(self._chain, release.number, specs, self._calls), specs


class BlsHeads:
    """The heads of one release as Triton models of one version."""

    def __init__(self, chain: Chain, number: int, specs: dict[int, HeadSpec], calls: BlsCalls) -> None:
        self._chain = chain
        self._number = number
        self._calls = calls
        self._names = {index: [chain.output.name, HIT] + [KEY] * (KEY in spec.outputs) for index, spec in specs.items()}

    def predict(self, index: int, hidden: Hidden, state: Mapping[str, np.ndarray]) -> Prediction | None:
        """See gati.inference.engine. A head that is not ready is a miss, and one that fails is told of."""
        feeds = {self._chain.segments[index].output.name: hidden, **state}
        try:
            values = self._calls.run(self._chain.head_model(index), self._number, feeds, self._names[index])
        except NotLoadedError:
            return None
        return Prediction(values[0], values[1], values[2] if len(values) > 2 else None)

    def load_shortcuts(self) -> Shortcuts:
        """Between models apart there are none; see gati.inference.engine."""
        return Shortcuts()


class BlsCalls:
    """Calls other models on this server, NumPy in and out."""

    def __init__(self, pb_utils: Any) -> None:
        self._pb = pb_utils
        self._memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        self._caller = threading.local()

    @contextmanager
    def traced(self, trace: Any) -> Iterator[None]:
        """Has what this thread calls meanwhile belong to a request's trace.

        That has to end before `execute` returns: Triton then frees the trace, and a call that names it would crash it.
        """
        self._caller.trace = {"trace": trace}
        try:
            yield
        finally:
            del self._caller.trace

    def ready(self, model: str, version: int) -> bool:
        """Whether a version of a model can be called."""
        return self._pb.is_model_ready(model_name=model, model_version=str(version))

    def run(self, model: str, version: int, feeds: Mapping[str, Hidden], outputs: list[str]) -> list[np.ndarray]:
        """Runs a version of a model.

        Raises:
            NotLoadedError: If it is not ready.
            RequestError: If it can't take these inputs.
            UnavailableError: If it fails on them.
        """
        request = self._pb.InferenceRequest(
            model_name=model,
            model_version=version,
            requested_output_names=outputs,
            inputs=[self._pb.Tensor(name, np.ascontiguousarray(value)) for name, value in feeds.items()],
            preferred_memory=self._memory,
            **getattr(self._caller, "trace", {}),
        )
        response = request.exec()
        if response.has_error():
            error = response.error()
            raise self._kind(error)(f"{model} (version {version}) did not answer: {first_line(error.message())}")
        # Copies: the arrays lie in shared memory that goes with the response.
        by_name = {tensor.name(): tensor.as_numpy().copy() for tensor in response.output_tensors()}
        return [by_name[name] for name in outputs]

    def _kind(self, error: Any) -> type[GatiError]:
        codes = self._pb.TritonError
        if error.code() == codes.INVALID_ARG or INVALID in error.message():
            return RequestError
        if error.code() in (codes.NOT_FOUND, codes.UNAVAILABLE) or any(said in error.message() for said in AWAY):
            return NotLoadedError
        return UnavailableError
