"""Triton's backend `gati`: one instance serves one chain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from gati.configuration import check_configuration
from gati.errors import GatiError, printable
from gati.service import Service
from gati.wire import Wire

SWITCH_SECONDS = 0.0002
"""How long a thread may keep Python's lock while another waits; the default, 5 ms, is a request's whole time."""


class TritonPythonModel:
    """What Triton's Python backend calls; see its own documentation for the methods."""

    def initialize(self, args: dict[str, str]) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        folder = Path(args["model_repository"])
        try:
            check_configuration(args["model_config"])
            self._service = Service(folder.parent, args["model_name"], pb_utils)
        except GatiError as error:
            # Triton prints the whole stack of an exception, unless it is its own.
            raise pb_utils.TritonModelException(printable(str(error))) from None
        self._wire = Wire(self._service.chain, self._service.live_release, pb_utils, self._service.tail)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answers each request when its answer is known: the last ones by what this returns.

        Triton takes what is returned sooner than what is sent. What is returned waits for the whole batch, which is one
        flight: Triton's batcher puts only inputs of one shape together.
        """
        trace = self._service.trace_of(requests)
        if self._service.serves_at_once or trace is not None:
            held: list[Any] = [None] * len(requests)
            holders = [self._wire.holder(request, held, place) for place, request in enumerate(requests)]
            self._submit([self._wire.read(*each) for each in zip(requests, holders, strict=True)], trace)
            return held
        self._submit([self._wire.read(request, self._wire.sender(request)) for request in requests])
        return None

    def _submit(self, taken: list[Any], trace: Any = None) -> None:
        self._service.submit([request for request in taken if request is not None], trace)

    def finalize(self) -> None:
        self._service.close()
