"""gati for callers: a small client for chains (and any other model) on Triton.

    with Client("grpc://localhost:8001", "resnet18") as client:
        answer = client.infer(images)  # float32 [batch, 3, 32, 32]
        answer.output, answer.exit, answer.hit

`gati_client.workload` makes request sequences for benchmarks, `gati_client.load` drives them against a server.
"""

from gati_client.answer import Answer
from gati_client.client import AsyncClient, Client
from gati_client.errors import (
    ClientClosed,
    ClientError,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
)
from gati_client.metadata import Metadata, TensorSpec

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientClosed",
    "ClientError",
    "InvalidRequest",
    "Metadata",
    "ModelNotFound",
    "RequestTimeout",
    "ServerError",
    "ServerUnavailable",
    "TensorSpec",
]
