"""Keep-alive HTTP connections that threads take turns on.

tritonclient's own blocking HTTP client may be used by one thread only, and leaves two open files behind for each
thread that has used one (its gevent loop). So its encoding is used, and the standard library's connections.
"""

from __future__ import annotations

import io
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple


class Response(NamedTuple):
    """A server's response: status, headers (case-insensitive), body."""

    status: int
    headers: Message
    body: bytes


class Deadline:
    """The moment by which a request has to be answered, so many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            TimeoutError: If none are.
        """
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _Reading(io.RawIOBase):
    """What comes on a socket: each part of it may take what is left of the time. In the socket's place for a response.

    A socket's own timeout is begun anew with each part that comes, however small.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._parts = sock.makefile("rb", buffering=0)  # keeps the socket open where the connection lets go of it
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left())
        return self._parts.readinto(buffer)

    def close(self) -> None:
        self._parts.close()
        super().close()


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
            timeout: Seconds that all of it may take (over TLS, each part that is sent begins anew).
            body: What to send.
            headers: Sent with it.

        Raises:
            OSError: If the server can't be reached, or not in time (TimeoutError).
            http.client.HTTPException: If what answers does not speak HTTP.
        """
        deadline = Deadline(timeout)
        connection = self._take()
        try:
            _connect(connection, deadline)
            connection.request(method, path, body, dict(headers or {}))
            connection.response_class = lambda sock, **more: HTTPResponse(_Reading(sock, deadline), **more)  # type: ignore
            response = connection.getresponse()
            answer = Response(response.status, response.headers, response.read())
        except BaseException:
            # The answer may still be under way on this connection: never read it as the next request's.
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _take(self) -> HTTPConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                if self._context is None:
                    return HTTPConnection(self._host)
                return HTTPSConnection(self._host, context=self._context)
            if _is_alive(connection):
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


def _connect(connection: HTTPConnection, deadline: Deadline) -> None:
    """Opens a connection that is not open, and gives what is sent on it what is left of the time."""
    if not connection.sock:
        connection.timeout = deadline.left()
        connection.connect()
    connection.sock.settimeout(deadline.left())


def _is_alive(connection: HTTPConnection) -> bool:
    """Whether an idle connection can be used again: one with something to read was closed by the server."""
    if connection.sock is None:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return not selector.select(0)
