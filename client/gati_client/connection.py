"""Keep-alive HTTP connections that threads take turns on.

tritonclient's own blocking HTTP client may be used by one thread only, and leaves two open files behind for each
thread that has used one (its gevent loop). So its encoding is used, and the standard library's connections.
"""

from __future__ import annotations

import selectors
import ssl
import threading
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPConnection, HTTPSConnection
from typing import NamedTuple


class Response(NamedTuple):
    """A server's response: status, headers (case-insensitive), body."""

    status: int
    headers: Message
    body: bytes


class Connections:
    """Connections to one server: as many as there are requests under way, kept for the next ones. Thread-safe.

    Args:
        host: `host:port`.
        tls: Whether to use TLS, verified by the system's certificates.
    """

    def __init__(self, host: str, tls: bool) -> None:
        self._host = host
        self._context = ssl.create_default_context() if tls else None
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False

    def request(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Sends a request, once, and waits for its response.

        Args:
            method: GET or POST.
            path: Path and query.
            timeout: Seconds to wait for the connection, and again for each part of the response.
            body: What to send.
            headers: Sent with it.

        Raises:
            OSError: If the server can't be reached, or not in time (TimeoutError).
            http.client.HTTPException: If what answers does not speak HTTP.
        """
        connection = self._take(timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            answer = Response(response.status, response.headers, response.read())
        except BaseException:
            # The answer may still be under way on this connection: never read it as the next request's.
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _take(self, timeout: float) -> HTTPConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                if self._context is None:
                    return HTTPConnection(self._host, timeout=timeout)
                return HTTPSConnection(self._host, timeout=timeout, context=self._context)
            if _is_alive(connection):
                connection.sock.settimeout(timeout)
                return connection
            connection.close()

    def _give_back(self, connection: HTTPConnection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Closes the idle connections now, and the others when their requests have ended."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()


def _is_alive(connection: HTTPConnection) -> bool:
    """Whether an idle connection can be used again: one with something to read was closed by the server."""
    if connection.sock is None:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return not selector.select(0)
