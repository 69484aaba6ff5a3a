"""What a model answered, and where in its chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gati_client.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer to one request.

    Attributes:
        outputs: The model's outputs by name, batch first, without `exit` and `release`. The arrays may be
            read-only views of the response: copy them before writing to them.
        exit: INT32 [batch], the index of the segment after which each row was answered; None for a plain model.
        release: INT64 [batch], the release of the head that answered each row, 0 where the backbone did; None
            for a plain model.
    """

    outputs: dict[str, np.ndarray]
    exit: np.ndarray | None = None
    release: np.ndarray | None = None

    @property
    def output(self) -> np.ndarray:
        """The only output, batch first.

        Raises:
            InvalidRequest: If the model has several: take one from `outputs`.
        """
        if len(self.outputs) != 1:
            names = ", ".join(self.outputs) or "none"
            raise InvalidRequest(f"`output` is for models with one output; take yours from `outputs` ({names}).")
        return next(iter(self.outputs.values()))

    @property
    def hit(self) -> np.ndarray | None:
        """Bool [batch], whether a head answered; None for a model that does not say."""
        return None if self.release is None else self.release > 0
