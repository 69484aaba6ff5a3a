"""The client, blocking and asyncio: NumPy in, NumPy out."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from gati_client import codec
from gati_client.answer import Answer
from gati_client.errors import ClientClosed, ModelNotFound, ServerUnavailable, translated
from gati_client.metadata import Metadata
from gati_client.transport import Address, open_transport

TIMEOUT = 60.0
"""Seconds that a request gets, if nothing else is said."""
LEAST = 1e-3
"""Seconds that are left to a request at least, where the model's metadata took all of them."""
MOST = 7 * 24 * 3600.0
"""Seconds that a request gets at most, a week: each protocol's library fails in its own way with far more."""


class _Requests:
    """What both clients share: everything but waiting."""

    def __init__(self, url: str, model: str, *, timeout: float = TIMEOUT) -> None:
        self.url = url
        self.model = model
        self.timeout = timeout
        self._address = Address.from_url(url)
        self._known: Metadata | None = None
        self._transport: Any = None
        self._closed = False
        self._opening = threading.Lock()

    def _open(self, asynchronous: bool) -> Any:
        """The transport, made on first use: asyncio's must be made in the event loop."""
        with self._opening:
            if self._closed:
                raise ClientClosed(f"This client of {self.url} was closed; make another.")
            if self._transport is None:
                self._transport = open_transport(self._address, asynchronous)
            return self._transport

    def _shut(self) -> Any:
        """Marks the client as closed; returns the transport that is left to close, if any."""
        with self._opening:
            transport, self._transport, self._closed = self._transport, None, True
            return transport

    def _seconds(self, timeout: float | None) -> float:
        """How long a call may take that names a timeout, or none."""
        return min(self.timeout if timeout is None else timeout, MOST)

    def _translated(self, transport: Any, timeout: float) -> AbstractContextManager[None]:
        return translated(self.model, self.url, timeout, transport.failures)

    def _infer_arguments(
        self, transport: Any, metadata: Metadata, inputs: Any, named: Mapping[str, Any], exact: bool
    ) -> dict[str, Any]:
        arrays = codec.encode(metadata, inputs, named)
        return {
            "model_name": self.model,
            "inputs": codec.tensors(transport.input, metadata, arrays),
            "parameters": codec.parameters(exact),
        }


class Client(_Requests):
    """A blocking client of one model.

    One client may be used by several threads at a time, over either protocol: over gRPC they share a connection,
    over HTTP each request under way has one. Nothing is sent before the first call; the model's metadata is asked
    for then, once, or by each thread that begins before it has come.

    Args:
        url: `grpc://host:8001`, `http://host:8000`, `grpcs://` or `https://` with TLS; `host:8001` is gRPC.
        model: The model's name on the server.
        timeout: Seconds that a call gets where it names none; a week at most, like those that calls name.

    Raises:
        InvalidRequest: If the URL is not a server's.
    """

    def infer(
        self, inputs: Any = None, /, *, exact: bool = False, timeout: float | None = None, **named: Any
    ) -> Answer:
        """Asks the model.

        Args:
            inputs: The array, for a model with one input, or a mapping of names to arrays; batch first.
            exact: Whether the backbone must answer, with no head in between.
            timeout: Seconds to wait for the answer.
            named: Inputs by name instead of `inputs` (for those named `exact` or `timeout` use a mapping).

        Raises:
            InvalidRequest: If the inputs don't fit the model.
            ModelNotFound: If the server has no such model.
            ServerUnavailable: If the server or the model does not answer; `RequestTimeout` if not in time.
            ServerError: If the server failed.
            ClientClosed: If this client was closed.
        """
        seconds, begun = self._seconds(timeout), time.monotonic()
        metadata = self.metadata(timeout=seconds)
        transport = self._open(asynchronous=False)
        with self._translated(transport, seconds):
            left = begun + seconds - time.monotonic()
            arguments = self._infer_arguments(transport, metadata, inputs, named, exact)
            return codec.decode(metadata, transport.call("infer", arguments, max(left, LEAST)))

    def metadata(self, *, timeout: float | None = None) -> Metadata:
        """The model's inputs and outputs: asked for once; a model that takes others by now needs another client.

        Raises:
            ClientError: As `infer`.
        """
        transport = self._open(asynchronous=False)
        if self._known is not None:
            return self._known
        seconds = self._seconds(timeout)
        with self._translated(transport, seconds):
            arguments = {"model_name": self.model, **transport.metadata_options}
            self._known = Metadata.from_json(transport.call("get_model_metadata", arguments, seconds))
        return self._known

    def is_ready(self, *, timeout: float = 5.0) -> bool:
        """Whether the model would answer now; False too if its server can't be reached within `timeout` seconds.

        Raises:
            ClientClosed: If this client was closed.
        """
        seconds, transport = self._seconds(timeout), self._open(asynchronous=False)
        try:
            with self._translated(transport, seconds):
                return bool(transport.call("is_model_ready", {"model_name": self.model}, seconds))
        except (ServerUnavailable, ModelNotFound):
            return False

    def close(self) -> None:
        """Closes the connections; harmless if done before."""
        transport = self._shut()
        if transport is not None:
            transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Requests):
    """As `Client`, for asyncio: use it in one event loop, by as many tasks as you like.

    Args:
        url: As of `Client`.
        model: The model's name on the server.
        timeout: Seconds that a call gets where it names none; a week at most, like those that calls name.

    Raises:
        InvalidRequest: If the URL is not a server's.
    """

    async def infer(
        self, inputs: Any = None, /, *, exact: bool = False, timeout: float | None = None, **named: Any
    ) -> Answer:
        """As `Client.infer`.

        Raises:
            ClientError: As there.
        """
        seconds, begun = self._seconds(timeout), time.monotonic()
        metadata = await self.metadata(timeout=seconds)
        transport = self._open(asynchronous=True)
        with self._translated(transport, seconds):
            left = begun + seconds - time.monotonic()
            arguments = self._infer_arguments(transport, metadata, inputs, named, exact)
            return codec.decode(metadata, await transport.call("infer", arguments, max(left, LEAST)))

    async def metadata(self, *, timeout: float | None = None) -> Metadata:
        """As `Client.metadata`.

        Raises:
            ClientError: As there.
        """
        transport = self._open(asynchronous=True)
        if self._known is not None:
            return self._known
        seconds = self._seconds(timeout)
        with self._translated(transport, seconds):
            arguments = {"model_name": self.model, **transport.metadata_options}
            self._known = Metadata.from_json(await transport.call("get_model_metadata", arguments, seconds))
        return self._known

    async def is_ready(self, *, timeout: float = 5.0) -> bool:
        """As `Client.is_ready`.

        Raises:
            ClientClosed: If this client was closed.
        """
        seconds, transport = self._seconds(timeout), self._open(asynchronous=True)
        try:
            with self._translated(transport, seconds):
                return bool(await transport.call("is_model_ready", {"model_name": self.model}, seconds))
        except (ServerUnavailable, ModelNotFound):
            return False

    async def close(self) -> None:
        """Closes the connections; harmless if done before."""
        transport = self._shut()
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
