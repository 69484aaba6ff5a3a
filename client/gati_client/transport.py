"""The ways to a server: gRPC and HTTP, blocking and asyncio, behind one method.

A transport's `call` takes the name of a tritonclient method, its arguments, and a timeout in seconds. Blocking
transports return the result, asyncio ones an awaitable of it. Each protocol's libraries are imported when one of
its transports is made.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import ssl
from dataclasses import dataclass
from http.client import HTTPException
from types import ModuleType
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from tritonclient.utils import InferenceServerException

from gati_client.connection import Connections, Response
from gati_client.errors import ClientError, InvalidRequest

SCHEMES: dict[str, tuple[Literal["grpc", "http"], bool, int]] = {
    "grpc": ("grpc", False, 8001),
    "grpcs": ("grpc", True, 443),
    "http": ("http", False, 8000),
    "https": ("http", True, 443),
}
"""Protocol, whether it runs over TLS, and the port where the URL names none."""

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own limit of two minutes would keep a client away long after its server has come back.
    ("grpc.max_reconnect_backoff_ms", 1000),
]

OK = 200
HEADER_LENGTH = "Inference-Header-Content-Length"
"""Where in an HTTP body the JSON ends and the tensors begin."""


@dataclass(frozen=True)
class Address:
    """Where a server is: protocol, TLS or not, and `host:port` (for HTTP with the path, if any)."""

    protocol: Literal["grpc", "http"]
    tls: bool
    target: str

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Reads `grpc://`, `grpcs://`, `http://` or `https://` URLs; `host:8001` alone is gRPC.

        Raises:
            InvalidRequest: If it is none of them.
        """
        try:
            parts = urlsplit(url if "://" in url else f"grpc://{url}")
            protocol, tls, port = SCHEMES[parts.scheme]
            host, port = parts.hostname, parts.port or port
        except (KeyError, ValueError) as error:
            raise InvalidRequest(_not_a_url(url)) from error
        path = parts.path.rstrip("/")
        if not host or parts.username or parts.query or parts.fragment or (path and protocol == "grpc"):
            raise InvalidRequest(_not_a_url(url))
        host = f"[{host}]" if ":" in host else host
        return cls(protocol, tls, f"{host}:{port}{path}")


def _not_a_url(url: str) -> str:
    return f"{url!r} is not the URL of a server, such as grpc://localhost:8001 or http://localhost:8000."


class Grpc:
    """gRPC, blocking or asyncio: tritonclient's two clients differ in what their methods return only. Thread-safe."""

    failures: tuple[type[Exception], ...] = ()

    def __init__(self, address: Address, asynchronous: bool) -> None:
        self.metadata_options = {"as_json": True}
        self.input = _load("tritonclient.grpc").InferInput
        module = _load("tritonclient.grpc.aio" if asynchronous else "tritonclient.grpc")
        self._client = module.InferenceServerClient(address.target, ssl=address.tls, channel_args=CHANNEL)

    def call(self, method: str, arguments: dict[str, Any], timeout: float) -> Any:
        """Runs a method of the client."""
        return getattr(self._client, method)(**arguments, client_timeout=timeout)

    def close(self) -> Any:
        """Closes the channel."""
        return self._client.close()


class Http:
    """HTTP, blocking: tritonclient's encoding over connections that threads may share. Thread-safe."""

    failures = (HTTPException, json.JSONDecodeError)

    def __init__(self, address: Address) -> None:
        self.metadata_options: dict[str, Any] = {}
        self._client = _load("tritonclient.http").InferenceServerClient
        self.input = _load("tritonclient.http").InferInput
        host, _, path = address.target.partition("/")
        self._base = f"/{path}/v2/models/" if path else "/v2/models/"
        self._connections = Connections(host, address.tls)

    def call(self, method: str, arguments: dict[str, Any], timeout: float) -> Any:
        """Does what this method of tritonclient's own client would do."""
        path = self._base + quote(arguments["model_name"], safe="")
        if method == "infer":
            return self._infer(f"{path}/infer", arguments, timeout)
        if method == "is_model_ready":
            return self._connections.request("GET", f"{path}/ready", timeout).status == OK
        return json.loads(_checked(self._connections.request("GET", path, timeout)).body)

    def _infer(self, path: str, arguments: dict[str, Any], timeout: float) -> Any:
        body, length = self._client.generate_request_body(arguments["inputs"], parameters=arguments["parameters"])
        headers = {"Content-Type": "application/octet-stream"}
        if length is not None:
            headers[HEADER_LENGTH] = str(length)
        response = _checked(self._connections.request("POST", path, timeout, body, headers))
        length = response.headers.get(HEADER_LENGTH)
        return self._client.parse_response_body(response.body, header_length=None if length is None else int(length))

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()


def _checked(response: Response) -> Response:
    """A response that is not an error.

    Raises:
        InferenceServerException: As tritonclient would raise it, if it is.
    """
    if response.status == OK:
        return response
    try:
        words = json.loads(response.body)["error"]
    except (ValueError, KeyError, TypeError):
        words = f"HTTP status {response.status}"  # of a proxy, say, that answers in HTML
    raise InferenceServerException(words, str(response.status))


class AsyncHttp:
    """HTTP over asyncio; make it and use it in one event loop."""

    def __init__(self, address: Address) -> None:
        self.metadata_options: dict[str, Any] = {}
        self.input = _load("tritonclient.http").InferInput
        self.failures = (_load("aiohttp").ClientError, _load("rapidjson").JSONDecodeError)
        module = _load("tritonclient.http.aio")
        self._client = module.InferenceServerClient(
            address.target,
            conn_timeout=None,  # `call` watches the time
            ssl=address.tls,
            # Never tritonclient's default, None, which not every aiohttp takes; False has no effect without TLS.
            ssl_context=ssl.create_default_context() if address.tls else False,
        )

    async def call(self, method: str, arguments: dict[str, Any], timeout: float) -> Any:
        """Runs a method of the client."""
        async with asyncio.timeout(timeout):
            return await getattr(self._client, method)(**arguments)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def open_transport(address: Address, asynchronous: bool) -> Grpc | Http | AsyncHttp:
    """The transport for an address; nothing is sent yet.

    Raises:
        ClientError: If this protocol's libraries are not installed.
    """
    if address.protocol == "grpc":
        return Grpc(address, asynchronous)
    return AsyncHttp(address) if asynchronous else Http(address)


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # tritonclient raises RuntimeError where an extra is missing
        raise ClientError(
            "This protocol needs gati's extra `client`: in a clone of it, pip install '.[client]'."
        ) from error
