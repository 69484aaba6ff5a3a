"""Triton's requests and responses, to and from gati's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from gati.chain import Chain
from gati.errors import GatiError, RequestError, printable
from gati.flight import Answer, Request
from gati.tail import Tail

EXIT, RELEASE = "exit", "release"
MODE, CACHED, EXACT, PROBE = "gati_mode", "cached", "exact", "probe"
"""Request parameter, and its values. A probe runs nothing: it tells the live release, and in place of an exit the first
of those that audits have closed."""
ASKED = "gati_release"
"""Request parameter of a probe: a release. Where it was looked at and is not taken, the answer is an error, and why."""
NONE_CLOSED = -1


class Wire:
    """Converts between the two.

    Args:
        chain: The chain whose inputs and output are spoken of.
        live: Gives the number of the live release, 0 for none, and the first exit that is closed, or `NONE_CLOSED`;
            raises a GatiError where a release that is asked about, 0 for none, is not taken.
        pb_utils: Triton's `triton_python_backend_utils`.
        tail: Computes what else than its scores the chain gives, if it does.
    """

    def __init__(
        self, chain: Chain, live: Callable[[int], tuple[int, int]], pb_utils: Any, tail: Tail | None = None
    ) -> None:
        self._chain = chain
        self._live = live
        self._pb = pb_utils
        self._tail = tail

    def sender(self, request: Any) -> Callable[[Any, bool], None]:
        """What sends a request its response, whenever that is known."""
        sender = request.get_response_sender()

        def send(response: Any, _: bool) -> None:
            try:
                sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:  # the client may be gone; nobody is left to be told
                self._log(f"a response was not taken: {error}", self._pb.Logger.log_warn)

        return send

    def holder(self, request: Any, held: list[Any], place: int) -> Callable[[Any, bool], None]:
        """What sends a request its response at once while others wait, and puts the last into `held[place]`.

        From there, `execute` returns it.
        """

        def hold(response: Any, last: bool) -> None:
            if last:
                held[place] = response
            else:
                self.sender(request)(response, last)

        return hold

    def read(self, request: Any, send: Callable[[Any, bool], None]) -> Request | None:
        """Takes a request in; None when it was answered at once, because it asks for what can't be.

        Args:
            request: Triton's request.
            send: Takes Triton's response to it, and whether no other request is answered later.
        """
        wanted = frozenset(request.requested_output_names())

        def reply(answer: Answer | GatiError, last: bool) -> None:
            send(self._sendable(answer, wanted), last)

        try:
            asked, about = mode(request.parameters())
            # Copied: the arrays lie in shared memory that is given back before the request is answered.
            inputs = {t.name: self._array(request, t.name).copy() for t in self._chain.inputs}
            if len({len(value) for value in inputs.values()}) != 1 or not len(next(iter(inputs.values()))):
                raise RequestError("every input needs the same number of rows, and at least one.")
            if asked != PROBE:
                return Request(inputs, asked == EXACT, reply)
            answer = self._probe(len(next(iter(inputs.values()))), about)
        except GatiError as error:
            answer = error
        except UnicodeDecodeError:  # Triton's HTTP front end lets it through
            answer = RequestError("the request's parameters are no UTF-8.")
        except Exception as error:  # what leaves `execute` fails all that Triton batched, and may answer one twice
            self._log(f"a request could not be read: {error!r}")
            answer = GatiError(f"{self._chain.model} could not read this request; the server's log says more.")
        reply(answer, False)
        return None

    def _probe(self, rows: int, asked: int) -> Answer:
        release, closed = self._live(asked)
        output = self._chain.output.zeros(rows)
        return Answer(output, np.full((rows, 1), closed, np.int32), np.full((rows, 1), release, np.int64))

    def _array(self, request: Any, name: str) -> np.ndarray:
        tensor = self._pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise RequestError(f"input {name!r} is missing.")
        return tensor.as_numpy()

    def _sendable(self, answer: Answer | GatiError, wanted: frozenset[str]) -> Any:
        """Triton's response, in any case: who waits for other requests of the batch can't help it."""
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


def mode(parameters: str | None) -> tuple[str, int]:
    """The request parameters `gati_mode` and `gati_release`, 0 for none, out of Triton's JSON.

    Raises:
        RequestError: If one is none of its values.
    """
    if not parameters or parameters == "{}":
        return CACHED, 0
    given = json.loads(parameters)
    value, asked = given.get(MODE, CACHED), given.get(ASKED, 0)
    if value not in (CACHED, EXACT, PROBE):
        raise RequestError(f"the parameter {MODE} is 'cached', 'exact' or 'probe', not {value!r:.100}.")
    if type(asked) is not int:  # to isinstance, true would be a number
        raise RequestError(f"the parameter {ASKED} is the number of a release, not {asked!r:.100}.")
    return value, asked
