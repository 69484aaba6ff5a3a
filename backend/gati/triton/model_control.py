"""Triton's model control over HTTP: loads and unloads models of a server on this machine."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Collection
from http.client import HTTPException
from typing import Any

from gati.triton.ports import HOST

HEADER = "gati"
"""Key of the header that carries the token; on gRPC it is `triton-grpc-protocol-gati`."""
LOADED = {"LOADING", "READY", "UNLOADING"}
EXIT_SECONDS = 15
"""How long a server may take to unload its models, or to end."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks a server itself, and not the proxy that the environment may name, which would be told the token."""
NOT_ANSWERED = OSError, HTTPException, ValueError
"""What comes of asking a server that is not up yet, or ends meanwhile."""


class ModelControl:
    """The model control of one server on loopback; its methods raise what is in `NOT_ANSWERED`.

    Args:
        http_port: Where it listens.
        token: What it wants in the header.
    """

    def __init__(self, http_port: int, token: str) -> None:
        self._url = f"http://{HOST}:{http_port}/v2/repository"
        self._token = token

    def load(self, model: str, seconds: float) -> None:
        """Has a model loaded, within so many seconds."""
        self._call(f"models/{model}/load", seconds)

    def unload(self, model: str) -> None:
        """Has a model unloaded; does not wait until it is."""
        self._call(f"models/{model}/unload")

    def unload_all(self, models: Collection[str], deadline: float) -> bool:
        """Has models unloaded, and waits until they are; returns whether they were by a time of `time.monotonic`."""
        for model in models:
            self.unload(model)
        while any(model.get("state") in LOADED for model in self._call("index") if model["name"] in models):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _call(self, path: str, seconds: float = EXIT_SECONDS) -> Any:
        request = urllib.request.Request(f"{self._url}/{path}", b"{}", {HEADER: self._token})
        with DIRECT.open(request, timeout=seconds) as response:
            return json.loads(response.read() or b"null")


def is_ready(http_port: int) -> bool:
    """Whether a server on loopback says that it is ready: its models were loaded when it began to listen."""
    try:
        with DIRECT.open(f"http://{HOST}:{http_port}/v2/health/ready", timeout=1) as response:
            return response.status == 200
    except NOT_ANSWERED:
        return False
