"""HTTP connections, and the clients, against web servers that are no Triton."""

from __future__ import annotations

import asyncio
import inspect
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from gati_client import AsyncClient, Client, RequestTimeout, ServerUnavailable
from gati_client.connection import Connections


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"<html>hello</html>"
        self.send_response(502 if "broken" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Client", str(self.client_address[1]))
        if "bye" in self.path:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        # Hang up without having said so, as a server that is restarted does.
        self.close_connection = "hangup" in self.path

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_connection_is_used_again(web: str) -> None:
    connections = Connections(web, tls=False)
    assert len({connections.request("GET", "/", 5).headers["Client"] for _ in range(5)}) == 1
    connections.close()


def test_a_connection_that_the_server_closed_is_not(web: str) -> None:
    connections = Connections(web, tls=False)
    first = connections.request("GET", "/hangup", 5).headers["Client"]
    threading.Event().wait(0.1)
    assert connections.request("GET", "/", 5).headers["Client"] != first
    connections.close()


def test_a_request_under_way_ends_after_close(web: str) -> None:
    connections = Connections(web, tls=False)
    connections.close()
    assert connections.request("GET", "/", 5).status == 200
    assert not connections._idle


def test_a_response_after_which_the_server_hangs_up_is_read_to_its_end(web: str) -> None:
    connections = Connections(web, tls=False)
    assert [connections.request("GET", path, 5).body for path in ("/bye", "/")] == [b"<html>hello</html>"] * 2
    connections.close()


@pytest.mark.parametrize("whole", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"], ids=["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_again_is_not_waited_for(whole: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):  # the client hangs up
                connection.sendall(whole)
                for byte in b"HTTP/1.1 200 OK" + b" " * 80:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.3)

        threading.Thread(target=drip, daemon=True).start()
        begun = time.monotonic()
        with Client(f"http://127.0.0.1:{server.getsockname()[1]}", "m") as client, pytest.raises(RequestTimeout):
            client.metadata(timeout=1)
        assert 1 <= time.monotonic() - begun < 2


@pytest.mark.parametrize("timeout", [math.inf, 1e12])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_who_would_wait_for_ever_waits_for_long(
    protocol: str, kind: type[Client] | type[AsyncClient], timeout: float
) -> None:
    with socket.socket() as nobody:  # listens there
        nobody.bind(("127.0.0.1", 0))
        client = kind(f"{protocol}://127.0.0.1:{nobody.getsockname()[1]}", "m", timeout=timeout)

        async def ask() -> None:
            for call in (client.metadata, lambda: client.infer(np.zeros(1)), lambda: client.infer(1, timeout=timeout)):
                with pytest.raises(ServerUnavailable) as raised:
                    result = call()
                    await result if inspect.isawaitable(result) else None
                assert raised.type is ServerUnavailable, "at once, and not for want of time"
            ready = client.is_ready(timeout=timeout)
            assert not (await ready if inspect.isawaitable(ready) else ready)
            closed = client.close()
            await closed if inspect.isawaitable(closed) else None

        asyncio.run(ask())


@pytest.mark.parametrize("path", ["", "/broken"])
def test_a_web_server_is_no_triton(web: str, path: str) -> None:
    row = np.zeros((1, 3), np.float32)

    async def ask() -> None:
        async with AsyncClient(f"http://{web}{path}", "m") as client:
            await client.infer(row)

    with pytest.raises(ServerUnavailable, match=r"^'m' at http://.* is unavailable: [^.]*\.$"):
        asyncio.run(ask())
    with (
        Client(f"http://{web}{path}", "m") as client,
        pytest.raises(ServerUnavailable, match=r"^'m' at http://.* is unavailable: [^.]*\.$"),
    ):
        client.infer(row)
