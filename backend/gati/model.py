"""Triton's backend `gati`: one instance serves one chain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from gati.errors import GatiError, printable
from gati.repository.configuration import check_configuration
from gati.service import Service
from gati.serving.wire import Wire

SWITCH_SECONDS = 0.0002
"""How long a thread may keep Python's lock (the GIL) while another waits. The default, 5 ms, is a whole request."""


class TritonPythonModel:
    """What Triton's Python backend calls; see its own documentation for the methods.

    A request goes from `execute` through gati.serving.wire to gati.service, which says what runs on which thread.
    """

    def initialize(self, args: dict[str, str]) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        folder = Path(args["model_repository"])
        try:
            check_configuration(args["model_config"])
            self._service = Service(folder.parent, args["model_name"], pb_utils)
        except GatiError as error:
            # Triton prints a traceback for any exception but its own.
            raise pb_utils.TritonModelException(printable(str(error))) from None
        self._wire = Wire(self._service.chain, self._service.live_release, pb_utils, self._service.tail)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answers each request as soon as its answer is known, and returns what is answered last.

        Triton takes a response sooner if it is returned than if it is sent. What is returned waits for the whole batch;
        that is one flight, since Triton's batcher puts only inputs of one shape together.
        """
        trace = self._service.trace_of(requests)
        if self._service.serves_at_once or trace is not None:
            returned: list[Any] = [None] * len(requests)
            returners = [self._wire.returner(request, returned, place) for place, request in enumerate(requests)]
            self._submit([self._wire.read(*each) for each in zip(requests, returners, strict=True)], trace)
            return returned
        self._submit([self._wire.read(request, self._wire.sender(request)) for request in requests])
        return None

    def _submit(self, read: list[Any], trace: Any = None) -> None:
        self._service.submit([request for request in read if request is not None], trace)

    def finalize(self) -> None:
        self._service.close()
