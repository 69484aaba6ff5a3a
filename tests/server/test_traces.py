"""Triton's traces of requests: in BLS mode they show the segments and heads that a request went through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tritonclient.grpc as triton
from conftest import MODEL, Exported, Served, killed
from running import until

from gati.triton.ports import HOST, Ports
from gati.triton.server import Server

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
QUIET = {"GATI_AUDIT": "0", "GATI_STORE": "none"}


@contextmanager
def traced(exported: Exported, folder: Path, *settings: str, **environment: str) -> Iterator[Served]:
    """A server in BLS mode that traces."""
    options = [f"--trace-config={setting}" for setting in ("level=TIMESTAMPS", *settings)]
    server = Server(exported.copy(folder, "bls"), Ports(0, 0, 0), QUIET | environment, options=options)
    try:
        yield Served(server, server.repository)
    finally:
        killed(server)


@contextmanager
def collector() -> Iterator[tuple[int, list[bytes]]]:
    """Takes what OpenTelemetry sends; gives its port, and what has come."""
    came: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, came
        server.shutdown()


def ask(served: Served, exported: Exported, **named: Any) -> int:
    """The exit that answers an image."""
    with triton.InferenceServerClient(served.grpc) as client:
        tensor = triton.InferInput("image", [1, 1, 16, 16], "FP32")
        tensor.set_data_from_numpy(exported.images[:1])
        return int(client.infer(MODEL, [tensor], **named).as_numpy("exit")[0, 0])


@pytest.mark.triton
def test_what_a_request_went_through_is_under_it_in_triton_s_own_traces(exported: Exported, tmp_path: Path) -> None:
    settings = ["rate=1", f"triton,file={tmp_path / 'trace'}", "triton,log-frequency=1"]
    with traced(exported, tmp_path, *settings, GATI_WORKERS="0") as served:

        def under(number: int) -> set[str]:
            """What was called for a request."""
            file = tmp_path / f"trace.{number}"
            until(lambda: file.exists() and file.read_text().endswith("]"))
            spans = [span for span in json.loads(file.read_text()) if "model_name" in span]
            (own,) = [span["id"] for span in spans if span["model_name"] == MODEL]
            return {span["model_name"] for span in spans if span.get("parent_id") == own}

        last = ask(served, exported, parameters={"gati_mode": "exact"})
        assert under(0) == {f"{MODEL}-segment-{index}" for index in range(last + 1)}
        numbers = count(1)
        until(lambda: f"{MODEL}-head-0" in (ask(served, exported), under(next(numbers)))[1])


@pytest.mark.triton
def test_open_telemetry_s_traces_hold_what_a_request_went_through(exported: Exported, tmp_path: Path) -> None:
    with collector() as (port, came):
        otel = [f"opentelemetry,url=http://{HOST}:{port}/v1/traces", "opentelemetry,bsp_schedule_delay=100"]
        with traced(exported, tmp_path, "mode=opentelemetry", "rate=1000000", *otel) as served:
            headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
            asked = {"parameters": {"gati_mode": "exact"}, "headers": headers}

            def seen() -> set[str | None]:
                """Models in the request's trace; it is asked again, since what Triton fails to send is lost."""
                ask(served, exported, **asked)
                return {_model(span) for span in spans_of(came) if span["traceId"] == TRACE_ID}

            last = ask(served, exported, **asked)
            names = {MODEL, *(f"{MODEL}-segment-{index}" for index in range(last + 1))}
            until(lambda: seen() >= names)


def spans_of(came: list[bytes]) -> list[dict[str, Any]]:
    """The spans that OpenTelemetry has sent."""
    scopes = [s for body in came for r in json.loads(body)["resourceSpans"] for s in r["scopeSpans"]]
    return [span for scope in scopes for span in scope["spans"]]


def _model(span: dict[str, Any]) -> str | None:
    """The model that a span is of, if it says so."""
    values = {entry["key"]: entry["value"] for entry in span.get("attributes", ())}
    return values.get("triton.model_name", {}).get("stringValue")
