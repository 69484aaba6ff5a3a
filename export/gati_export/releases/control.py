"""Speaks to one running server over gRPC: loads heads in BLS mode, and sees that a release is live.

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

from gati.errors import PublishError, ReleaseRefused, UnavailableError, first_line
from gati.repository.chain import Chain
from gati.repository.release import Release
from gati.repository.workspace import workspace
from gati.serving.wire import ASKED, EXIT, MODE, PROBE, RELEASE
from gati.triton.model_control import HEADER

LOAD_SECONDS = 60.0
"""How long a server may take to load a head as a model of Triton's."""
LIVE_SECONDS = 30.0
"""How long a server may take to see, load and warm a release."""
PROBE_SECONDS = 5.0
"""How long it may take to say what it serves."""


class LateError(UnavailableError):
    """A server does not answer in time: it hangs, has too much to do, or can't be reached."""


class Control:
    """A server's control plane. Use as a context manager.

    Args:
        address: HOST:GRPC_PORT.
        repository: The repository that it serves, beside which its token lies.
    """

    def __init__(self, address: str, repository: Path) -> None:
        self.address = address
        self._repository = repository
        self._headers = {f"triton-grpc-protocol-{HEADER}": _token(repository)}
        self._client = triton.InferenceServerClient(address)

    def load(self, model: str) -> None:
        """Has the server load a model, or its new versions.

        Raises:
            PublishError: If the server can't, or the token is not its own.
            UnavailableError: If the server went away, or does not answer within `LOAD_SECONDS` (a `LateError`).
        """
        try:
            self._client.load_model(model, headers=self._headers, client_timeout=LOAD_SECONDS)
        except InferenceServerException as error:
            if _is_late(error):
                raise LateError(f"{self.address} did not load {model!r} within {LOAD_SECONDS:.0f} s.") from error
            if not self.is_live():
                raise UnavailableError(f"{self.address} went away before it loaded {model!r}.") from error
            if "restricted" in error.message():
                raise PublishError(
                    f"{self.address} did not load {model!r}: the token beside the repository is not that server's."
                ) from error
            reason = first_line(error.message()).rstrip(".")
            raise PublishError(f"{self.address} did not load {model!r}: {reason}.") from error

    def is_live(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self._client.is_server_live(client_timeout=PROBE_SECONDS))
        except (InferenceServerException, grpc.RpcError):
            return False

    def live_release(self, chain: Chain) -> int:
        """The release that a chain serves from, 0 for none.

        Raises:
            UnavailableError: If the server or the model does not answer; a `LateError` where it did not in time.
        """
        return self.live_state(chain)[0]

    def live_state(self, chain: Chain) -> tuple[int, int]:
        """The release that a chain serves from, 0 for none, and the first exit that is closed, or `NONE_CLOSED`.

        Raises:
            UnavailableError: If the server or the model does not answer; a `LateError` where it did not in time.
        """
        return self._probe(chain, 0)

    def _probe(self, chain: Chain, asked: int) -> tuple[int, int]:
        """Likewise, by a server that may say instead that it refuses the release asked about, 0 for none.

        Raises:
            ReleaseRefused: If it does.
            UnavailableError: As above.
        """
        inputs = []
        for tensor in chain.inputs:
            value = np.zeros((1, *(max(d, 1) for d in tensor.dims)), tensor.numpy)
            inputs.append(triton.InferInput(tensor.name, list(value.shape), tensor.dtype))
            inputs[-1].set_data_from_numpy(value)
        try:
            result = self._client.infer(
                chain.model,
                inputs,
                outputs=[triton.InferRequestedOutput(name) for name in (RELEASE, EXIT)],
                parameters={MODE: PROBE, ASKED: asked} if asked else {MODE: PROBE},
                client_timeout=PROBE_SECONDS,
            )
        except InferenceServerException as error:
            if _is_late(error):
                raise LateError(f"{self.address} does not answer within {PROBE_SECONDS:.0f} s.") from error
            if not self.is_live():
                raise UnavailableError(f"No Triton server answers gRPC on {self.address}.") from error
            reason = first_line(error.message())
            if asked and error.status() == str(grpc.StatusCode.UNIMPLEMENTED):
                raise ReleaseRefused(reason) from error
            raise UnavailableError(f"{chain.model!r} on {self.address} does not answer: {reason}") from error
        told = [None if result is None else result.as_numpy(name) for name in (RELEASE, EXIT)]
        if any(value is None for value in told):
            raise UnavailableError(f"{chain.model!r} on {self.address} is no chain of gati's.")
        release, closed = (int(value[0, 0]) for value in told if value is not None)
        return release, closed

    def take(self, chain: Chain, release: Release) -> int:
        """Has the server take a release that is on disk, and waits until it is live.

        Returns:
            The release that is live then: this one, or a later one.

        Raises:
            PublishError: If it refuses it, and says why.
            UnavailableError: If the server goes away meanwhile, or has not answered for long (a `LateError`), or does
                not serve it within `LIVE_SECONDS` (likewise): a copy, or what a network's disk shows, may be old.
        """
        if chain.mode == "bls":
            for head in release.heads:
                self.load(chain.head_model(head.index))
        begun = silent = time.monotonic()
        live = 0
        while time.monotonic() < begun + LIVE_SECONDS:
            try:
                live = self.live_release(chain)
            except LateError:
                silent = time.monotonic()
            if live >= release.number:
                return live
            time.sleep(0.05)
        if time.monotonic() - silent < LIVE_SECONDS / 2:  # it hung until a moment ago: no refusal yet
            raise LateError(f"{self.address} did not answer within {LIVE_SECONDS:.0f} s.")
        goes_on = f"did not take release {release.number} within {LIVE_SECONDS:.0f} s and goes on with {live}"
        try:
            self._probe(chain, release.number)
        except ReleaseRefused as error:
            raise PublishError(f"{self.address} {goes_on}: {error}") from error
        raise LateError(f"{self.address} {goes_on}: what it reads is not up to date yet, or its log says why.")

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


def _is_late(error: InferenceServerException) -> bool:
    return error.status() == str(grpc.StatusCode.DEADLINE_EXCEEDED)
