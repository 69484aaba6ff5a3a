"""Speaks to a running server over gRPC: loads heads in BLS mode, and sees that a release is live.

gRPC, because a load by HTTP stalls the inference clients that share its worker thread.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from gati.chain import Chain
from gati.errors import GatiError, PublishError, UnavailableError
from gati.head import first_line
from gati.release import Release
from gati.server import HEADER
from gati.settings import workspace
from gati.wire import MODE, PROBE, RELEASE
from gati_export.publish import Draft, Step, publish, withdraw

LIVE_SECONDS = 30.0
"""How long a server may take to see, load and warm a release."""


class Control:
    """A server's control plane. Use as a context manager.

    Args:
        address: HOST:GRPC_PORT.
        repository: The repository that it serves, beside which its token lies.

    Raises:
        UnavailableError: If no server answers there.
    """

    def __init__(self, address: str, repository: Path) -> None:
        self.address = address
        self._client = triton.InferenceServerClient(address)
        self._headers = {f"triton-grpc-protocol-{HEADER}": _token(repository)}
        if not self.is_live():
            self._client.close()
            raise UnavailableError(f"No Triton server answers gRPC on {address}.")

    def load(self, model: str) -> None:
        """Has the server load a model, or its new versions.

        Raises:
            PublishError: If the server can't, or the token is not its own.
            UnavailableError: If the server went away.
        """
        try:
            self._client.load_model(model, headers=self._headers)
        except InferenceServerException as error:
            if not self.is_live():
                raise UnavailableError(f"{self.address} went away before it loaded {model!r}.") from error
            if "restricted" in error.message():
                raise PublishError(
                    f"{self.address} did not load {model!r}: the token beside the repository is not that server's."
                ) from error
            raise PublishError(f"{self.address} did not load {model!r}: {first_line(error.message())}") from error

    def is_live(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self._client.is_server_live(client_timeout=5))
        except (InferenceServerException, grpc.RpcError):
            return False

    def live_release(self, chain: Chain) -> int:
        """The release that a chain serves from, 0 for none.

        Raises:
            UnavailableError: If the server or the model does not answer.
        """
        inputs = []
        for tensor in chain.inputs:
            value = np.zeros((1, *(max(d, 1) for d in tensor.shape)), tensor.numpy)
            inputs.append(triton.InferInput(tensor.name, list(value.shape), tensor.dtype))
            inputs[-1].set_data_from_numpy(value)
        try:
            result = self._client.infer(
                chain.model,
                inputs,
                outputs=[triton.InferRequestedOutput(RELEASE)],
                parameters={MODE: PROBE},
                client_timeout=10,
            )
        except InferenceServerException as error:
            raise UnavailableError(f"{chain.model!r} on {self.address} does not answer: {error.message()}") from error
        release = None if result is None else result.as_numpy(RELEASE)
        if release is None:
            raise UnavailableError(f"{chain.model!r} on {self.address} is no chain of gati's.")
        return int(release[0, 0])

    def take(self, chain: Chain, release: Release) -> None:
        """Has the server take a release that is on disk, and waits until it is live.

        Raises:
            PublishError: If it does not within `LIVE_SECONDS`.
            UnavailableError: If the server goes away meanwhile.
        """
        if chain.mode == "bls":
            for head in release.heads:
                self.load(chain.head_model(head.index))
        deadline = time.monotonic() + LIVE_SECONDS
        while (live := self.live_release(chain)) < release.number:
            if time.monotonic() > deadline:
                raise PublishError(
                    f"{self.address} did not take release {release.number} within {LIVE_SECONDS:.0f} s and goes on "
                    f"with {live}; its log says why."
                )
            time.sleep(0.05)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _token(repository: Path) -> str:
    path = workspace(repository) / "token"
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise PublishError(f"The server's token can't be read ({error.strerror}: {path}).") from error


def publish_to(
    repository: Path, chain: Chain, draft: Draft, address: str | None, step: Step = lambda _: None
) -> Release:
    """Publishes a draft and, where an address is given, sees that the server there takes it.

    A release that a living server does not take is withdrawn: the one before serves on, there and at the next start.

    Raises:
        GatiError: If nothing was published, or the server did not take it, or went away; the message says which.
    """
    if address is None:
        return publish(repository, chain, draft, step)
    with Control(address, repository) as control:
        control.live_release(chain)  # a server that is not there is found out before anything is published
        release = publish(repository, chain, draft, step)
        step("take")
        try:
            control.take(chain, release)
        except UnavailableError as error:
            raise UnavailableError(f"{error} Release {release.number} is on disk: the next start takes it.") from error
        except GatiError:
            withdraw(repository, chain, release.number)
            raise
    return release
