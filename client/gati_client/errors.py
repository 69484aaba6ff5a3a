"""What can go wrong between a caller and a server, as a hierarchy.

    ClientError
    ├── InvalidRequest      what was asked does not fit the model; the caller should change it
    ├── ModelNotFound       the server has no such model, or not that version of it
    ├── ServerUnavailable   the server or the model does not answer now; trying again later may help
    │   └── RequestTimeout    no answer came within the time given
    ├── ServerError         the server failed while answering
    └── ClientClosed        the client was closed before

Every message is one sentence. Errors of both protocols are mapped here and nowhere else; the original is kept
as the `__cause__`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.utils import InferenceServerException

LONGEST = 400
"""Characters of a server's own words that a message repeats."""


class ClientError(Exception):
    """Anything that the client expects can go wrong."""


class InvalidRequest(ClientError):
    """A request does not fit the model, refused by this client or by the server; change it."""


class ModelNotFound(ClientError):
    """The server has no model of this name, or not that version of it."""


class ServerUnavailable(ClientError):
    """The server can't be reached, or the model is not ready; trying again later may help."""


class RequestTimeout(ServerUnavailable):
    """No answer came within the time given."""


class ServerError(ClientError):
    """The server failed while answering; its log says more."""


class ClientClosed(ClientError):
    """The client was closed before; make another."""


STATUSES: dict[str, type[ClientError]] = {
    "StatusCode.INVALID_ARGUMENT": InvalidRequest,
    "StatusCode.OUT_OF_RANGE": InvalidRequest,
    "StatusCode.UNIMPLEMENTED": InvalidRequest,
    "StatusCode.NOT_FOUND": ModelNotFound,
    "StatusCode.UNAVAILABLE": ServerUnavailable,
    "StatusCode.RESOURCE_EXHAUSTED": ServerUnavailable,
    "StatusCode.CANCELLED": ServerUnavailable,
    "StatusCode.DEADLINE_EXCEEDED": RequestTimeout,
    "400": InvalidRequest,
    "413": InvalidRequest,
    "501": InvalidRequest,
    "404": ModelNotFound,
    "429": ServerUnavailable,
    "499": ServerUnavailable,
    "502": ServerUnavailable,
    "503": ServerUnavailable,
    "408": RequestTimeout,
    "504": RequestTimeout,
}
"""What tritonclient's `status()` means, gRPC and HTTP; any other is a `ServerError`."""

SENTENCES: dict[type[ClientError], str] = {
    InvalidRequest: "{model!r} at {url} refused the request: {reason}.",
    ModelNotFound: "{url} does not have the model {model!r}: {reason}.",
    ServerUnavailable: "{model!r} at {url} is unavailable: {reason}.",
    RequestTimeout: "{model!r} at {url} did not answer within {timeout:g} s.",
    ServerError: "{model!r} at {url} failed: {reason}.",
}


@contextmanager
def translated(model: str, url: str, timeout: float, failures: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what tritonclient and its transports raise into this module's errors.

    Args:
        model: The model that was asked, for the message.
        url: The server, likewise.
        timeout: Seconds that the request was given, likewise.
        failures: Further exceptions that mean, on this transport, that the server can't be reached.

    Raises:
        ClientError: The subclass that fits, from the original.
    """
    try:
        yield
    except ClientError:
        raise
    except (InferenceServerException, OSError, *failures) as error:
        kind = _kind(error)
        raise kind(SENTENCES[kind].format(model=model, url=url, timeout=timeout, reason=_reason(error))) from error


def _kind(error: Exception) -> type[ClientError]:
    if isinstance(error, InferenceServerException):
        status = error.status()
        # Without a status it never reached the server: tritonclient refused to build the request.
        return InvalidRequest if status is None else STATUSES.get(status, ServerError)
    return RequestTimeout if isinstance(error, TimeoutError) else ServerUnavailable


def _reason(error: Exception) -> str:
    """The server's own words as one clause: Triton sends several sentences, Python backends a traceback."""
    words = (error.message() if isinstance(error, InferenceServerException) else str(error)) or type(error).__name__
    line = next((line for line in words.splitlines() if line.strip()), type(error).__name__)
    line = re.sub(r"^\[request id: [^\]]*\] ", "", line.strip())
    clause = re.sub(r"\. +", "; ", line).rstrip(". ")
    return clause if len(clause) <= LONGEST else f"{clause[:LONGEST]}…"
