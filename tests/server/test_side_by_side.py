"""What a client of the plain model may do, done to a chain as well, in both modes: it is told the same."""

from __future__ import annotations

import json
import queue
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as over_http
from conftest import MODEL, PLAIN, Exported, Serve, Served
from running import MODES
from tritonclient.utils import InferenceServerException, shared_memory

from gati.repository.secret import read_or_create_token

EXACT = {"gati_mode": "exact"}
ROWS, CLASSES = 4, 10


@pytest.fixture(scope="module")
def servers(exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """One in each mode, with the plain model beside the chain."""
    quiet = {"GATI_AUDIT": "0", "GATI_STORE": "none"}
    return {m: serve_module(exported.copy(tmp_path_factory.mktemp(m), m, plain=True), **quiet) for m in MODES}


@pytest.fixture(params=MODES)
def served(request: pytest.FixtureRequest, servers: dict[str, Served]) -> Served:
    return servers[request.param]


def tensor(rows: np.ndarray, name: str = "image", dtype: str = "FP32") -> triton.InferInput:
    sent = triton.InferInput(name, list(rows.shape), dtype)
    sent.set_data_from_numpy(rows)
    return sent


def ask(served: Served, model: str, inputs: list[Any], **named: Any) -> Any:
    """What is answered over gRPC: the scores, and what comes with them; or the error."""
    outputs = named.pop("outputs", [triton.InferRequestedOutput("output")])
    try:
        with triton.InferenceServerClient(served.grpc) as client:
            result = client.infer(model, inputs, outputs=outputs, parameters=EXACT, **named)
    except InferenceServerException as error:
        return str(error).replace(PLAIN, MODEL)
    response = result.get_response()
    return result.as_numpy("output"), response.id, response.model_version, sorted(response.parameters)


def stream(served: Served, model: str, images: np.ndarray) -> list[Any]:
    """Answers over one gRPC stream, in the order in which they come, and whether each is the last of its request."""
    came = queue.Queue[Any]()
    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: came.put((result, error)))
        for number, image in enumerate(images):
            outputs = [triton.InferRequestedOutput("output")]
            how = {"request_id": str(number), "enable_empty_final_response": True, "parameters": EXACT}
            client.async_stream_infer(model, [tensor(image[None])], outputs=outputs, **how)
        answers = [came.get(timeout=30) for _ in images]
        client.stop_stream()
    assert came.empty() and not any(error for _, error in answers)
    said = [result.get_response() for result, _ in answers]
    return [(one.id, one.parameters["triton_final_response"].bool_param, len(one.outputs)) for one in said]


def post(served: Served, model: str, body: bytes, headers: dict[str, str], path: str = "infer") -> tuple[int, bytes]:
    url = f"http://{served.http}/v2/models/{model}/{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return answer.status, answer.read().replace(PLAIN.encode(), MODEL.encode())
    except urllib.error.HTTPError as error:
        return error.code, error.read().replace(PLAIN.encode(), MODEL.encode())


ASKED: dict[str, Callable[[np.ndarray], tuple[list[Any], dict[str, Any]]]] = {
    "an id": lambda x: ([tensor(x)], {"request_id": "a-17"}),
    "a priority and a timeout": lambda x: ([tensor(x)], {"priority": 3, "timeout": 1}),
    "a sequence": lambda x: ([tensor(x)], {"sequence_id": "camera-7", "sequence_start": True, "sequence_end": True}),
    "a version": lambda x: ([tensor(x)], {"model_version": "1"}),
    "another version": lambda x: ([tensor(x)], {"model_version": "2"}),
    "classes": lambda x: ([tensor(x)], {"outputs": [triton.InferRequestedOutput("output", class_count=3)]}),
    "compression": lambda x: ([tensor(x)], {"compression_algorithm": "gzip"}),
    "too large a batch": lambda x: ([tensor(np.repeat(x, 9, axis=0))], {}),
    "no rows": lambda x: ([tensor(x[:0])], {}),
    "another type": lambda x: ([tensor(x.astype(np.float64), dtype="FP64")], {}),
    "another shape": lambda x: ([tensor(x[..., :15])], {}),
    "another name": lambda x: ([tensor(x, "picture")], {}),
    "an input twice": lambda x: ([tensor(x), tensor(x)], {}),
    "no input": lambda _: ([], {}),
    "another output": lambda x: ([tensor(x)], {"outputs": [triton.InferRequestedOutput("logits")]}),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_asked_for_over_grpc(exported: Exported, served: Served, what: str) -> None:
    inputs, named = ASKED[what](exported.images[:ROWS])
    plain, chain = (ask(served, model, inputs, **named) for model in (PLAIN, MODEL))
    if isinstance(plain, str):
        assert chain[:60] == plain[:60]  # Triton cuts what it says of shapes after so many characters
        return
    assert chain[1:] == plain[1:]
    assert chain[0].shape == plain[0].shape
    if plain[0].dtype.kind == "f":
        np.testing.assert_allclose(chain[0], plain[0], rtol=1e-4, atol=1e-4)


def test_a_stream_is_answered_in_its_order(exported: Exported, served: Served) -> None:
    plain, chain = (stream(served, model, exported.images[:50]) for model in (PLAIN, MODEL))
    assert chain == plain == [(str(number), True, 1) for number in range(50)]


def test_what_is_asked_for_over_http(exported: Exported, served: Served) -> None:
    image = exported.images[:1]
    data = {"name": "image", "shape": list(image.shape), "datatype": "FP32", "data": image.ravel().tolist()}
    wanted = {"name": "output", "parameters": {"classification": 1}}
    asked = {"id": "b-4", "inputs": [data], "outputs": [wanted], "parameters": EXACT}
    plain, chain = (post(served, model, json.dumps(asked).encode(), {}) for model in (PLAIN, MODEL))
    assert plain[0] == chain[0] == 200
    told = [json.loads(body) for _, body in (plain, chain)]
    for answer in told:
        answer["outputs"][0]["data"] = [text.rpartition(":")[2] for text in answer["outputs"][0]["data"]]
    assert told[0] == told[1]
    binary = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    for body, headers, path in (
        (image.tobytes(), binary, "infer"),
        (image.tobytes()[:100], binary, "infer"),
        (b'{"inputs": [', {}, "infer"),
        (json.dumps({"image": image.ravel().tolist()}).encode(), {}, "generate"),
        (json.dumps({"image": "text"}).encode(), {}, "generate"),
    ):
        plain, chain = (post(served, model, body, headers, path) for model in (PLAIN, MODEL))
        assert plain[0] == chain[0]
        assert plain[0] == 200 or plain == chain


def test_shared_memory_is_read_and_written(exported: Exported, served: Served) -> None:
    images = np.ascontiguousarray(exported.images[:ROWS])
    token = {"gati": read_or_create_token(served.repository)}
    sizes = {"given": images.nbytes, "scores": 4 * ROWS * CLASSES}
    regions = {
        name: shared_memory.create_shared_memory_region(name, f"/{served.repository.parent.name}-{name}", size)
        for name, size in sizes.items()
    }
    found = dict[str, np.ndarray]()
    try:
        shared_memory.set_shared_memory_region(regions["given"], [images])
        with over_http.InferenceServerClient(served.http) as client:
            for name, size in sizes.items():
                key = f"/{served.repository.parent.name}-{name}"
                client.register_system_shared_memory(name, key, size, headers=token)
            sent = over_http.InferInput("image", list(images.shape), "FP32")
            sent.set_shared_memory("given", images.nbytes)
            output = over_http.InferRequestedOutput("output")
            for model in (PLAIN, MODEL):
                output.set_shared_memory("scores", sizes["scores"])
                client.infer(model, [sent], outputs=[output], parameters=EXACT)
                scores = shared_memory.get_contents_as_numpy(regions["scores"], np.float32, [ROWS, CLASSES])
                found[model] = scores.copy()
                output.set_shared_memory("scores", 100)
                with pytest.raises(InferenceServerException, match="should be at least 160 bytes"):
                    client.infer(model, [sent], outputs=[output], parameters=EXACT)
            client.unregister_system_shared_memory(headers=token)
    finally:
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)
    assert found[PLAIN].any()
    np.testing.assert_allclose(found[MODEL], found[PLAIN], rtol=1e-4, atol=1e-4)
