"""HTTP connections, and the clients, against web servers that are no Triton."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from gati_client import AsyncClient, Client, ServerUnavailable
from gati_client.connection import Connections


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"<html>hello</html>"
        self.send_response(502 if "broken" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Client", str(self.client_address[1]))
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
