"""A network's signature, as somebody else has written it down: TorchScript has no names for outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gati.repository.chain import Tensor


class Signature(NamedTuple):
    """A network's inputs, and the names of its outputs, as far as they are known."""

    inputs: Sequence[Tensor] = ()
    outputs: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Names of the inputs."""
        return [tensor.name for tensor in self.inputs]


UNKNOWN = Signature()
