"""The wire: Triton's requests and responses, to and from gati's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from gati.errors import GatiError, RequestError, printable
from gati.inference.tail import Tail
from gati.repository.chain import Chain
from gati.serving.flight import Answer, Request

EXIT, RELEASE = "exit", "release"
MODE, CACHED, EXACT, PROBE = "gati_mode", "cached", "exact", "probe"
"""Request parameter, and its values. A probe runs nothing: its answer has the live release, and in place of an exit the
first one that audits have closed."""
ASKED = "gati_release"
"""Request parameter of a probe: a release. If the server has refused it, the answer is an error that says why."""
NONE_CLOSED = -1


class Wire:
    """Converts between the two.

    Args:
        chain: The chain that requests are for.
        live: Returns the number of the live release, 0 for none, and the first exit that is closed, or `NONE_CLOSED`.
            Takes the number of a release, 0 for none, and raises a GatiError if that was refused.
        pb_utils: Triton's `triton_python_backend_utils`.
        tail: Computes outputs of the chain beside its scores, if there are any.
    """

    def __init__(
        self, chain: Chain, live: Callable[[int], tuple[int, int]], pb_utils: Any, tail: Tail | None = None
    ) -> None:
        self._chain = chain
        self._live = live
        self._pb = pb_utils
        self._tail = tail

    def sender(self, request: Any) -> Callable[[Any, bool], None]:
        """A function that sends a response to a request at any time, also after `execute` has returned."""
        sender = request.get_response_sender()

        def send(response: Any, _last: bool) -> None:
            try:
                sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:  # the client may be gone, and nobody else waits
                self._log(f"a response could not be delivered: {error}", self._pb.Logger.log_warn)

        return send

    def returner(self, request: Any, returned: list[Any], place: int) -> Callable[[Any, bool], None]:
        """A function that puts the last response of a flight into `returned[place]`, and sends any other at once.

        `execute` returns that list: Triton takes a returned response sooner than one that is sent.
        """

        def give(response: Any, last: bool) -> None:
            if last:
                returned[place] = response
            else:
                self.sender(request)(response, last)

        return give

    def read(self, request: Any, send: Callable[[Any, bool], None]) -> Request | None:
        """Reads a request. Answers a probe, and a request that is at fault, itself, and returns None.

        Args:
            request: Triton's request.
            send: Called with Triton's response to it, and with whether this is the last one of a flight.
        """
        wanted = frozenset(request.requested_output_names())

        def reply(answer: Answer | GatiError, last: bool) -> None:
            send(self._sendable(answer, wanted), last)

        try:
            mode, release = parse_parameters(request.parameters())
            # Copied: the arrays lie in shared memory, which Triton takes back before the request is answered.
            inputs = {t.name: self._array(request, t.name).copy() for t in self._chain.inputs}
            if len({len(value) for value in inputs.values()}) != 1 or not len(next(iter(inputs.values()))):
                raise RequestError("every input needs the same number of rows, and at least one.")
            if mode != PROBE:
                return Request(inputs, mode == EXACT, reply)
            answer = self._probe(len(next(iter(inputs.values()))), release)
        except GatiError as error:
            answer = error
        except UnicodeDecodeError:  # Triton's HTTP front end lets it through
            answer = RequestError("the request's parameters are no UTF-8.")
        except Exception as error:  # out of `execute`, it would fail the whole batch, and perhaps answer twice
            self._log(f"a request could not be read: {error!r}")
            answer = GatiError(f"{self._chain.model} could not read this request; the server's log says more.")
        reply(answer, False)
        return None

    def _probe(self, rows: int, asked: int) -> Answer:
        """The answer to a probe that asks about a release, 0 for none."""
        release, closed = self._live(asked)
        output = self._chain.output.zeros(rows)
        return Answer(output, np.full((rows, 1), closed, np.int32), np.full((rows, 1), release, np.int64))

    def _array(self, request: Any, name: str) -> np.ndarray:
        tensor = self._pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise RequestError(f"input {name!r} is missing.")
        return tensor.as_numpy()

    def _sendable(self, answer: Answer | GatiError, wanted: frozenset[str]) -> Any:
        """Triton's response, whatever happens: an error here must not keep others of the flight from theirs."""
        try:
            return self._response(answer, wanted)
        except Exception as error:
            self._log(f"an answer could not be sent: {error!r}")
            return self._refusal(
                GatiError(f"{self._chain.model} could not send its answer; the server's log says more.")
            )

    def _response(self, answer: Answer | GatiError, wanted: frozenset[str]) -> Any:
        if isinstance(answer, GatiError):
            return self._refusal(answer)
        outputs = {self._chain.output.name: answer.output, EXIT: answer.exit, RELEASE: answer.release}
        if self._tail is not None:
            try:
                outputs |= self._tail.outputs(answer.output, wanted)
            except GatiError as error:
                return self._refusal(error)
        return self._pb.InferenceResponse(
            [self._pb.Tensor(name, value) for name, value in outputs.items() if name in wanted]
        )

    def _refusal(self, error: GatiError) -> Any:
        code = getattr(self._pb.TritonError, error.status)
        return self._pb.InferenceResponse(error=self._pb.TritonError(printable(str(error)), code))

    def _log(self, message: str, log: Callable[[str], None] | None = None) -> None:
        (log or self._pb.Logger.log_error)(printable(f"[gati] {self._chain.model}: {message}"))


def parse_parameters(parameters: str | None) -> tuple[str, int]:
    """Reads a request's parameters `gati_mode` and `gati_release` (0 if it is missing) from Triton's JSON.

    Raises:
        RequestError: If one of them has an impossible value.
    """
    if not parameters or parameters == "{}":
        return CACHED, 0
    given = json.loads(parameters)
    mode, release = given.get(MODE, CACHED), given.get(ASKED, 0)
    if mode not in (CACHED, EXACT, PROBE):
        raise RequestError(f"the parameter {MODE} is 'cached', 'exact' or 'probe', not {mode!r:.100}.")
    if type(release) is not int:  # isinstance would let true pass
        raise RequestError(f"the parameter {ASKED} is the number of a release, not {release!r:.100}.")
    return mode, release
