"""What a server says of a model: its versions, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from gati_client.errors import ServerError


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: Triton datatype, and shape with the batch dimension; -1 where it may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype; object for BYTES."""
        return np.dtype(triton_to_np_dtype(self.datatype))

    @property
    def batched(self) -> bool:
        """Whether the first dimension may vary, and so is taken for the batch."""
        return self.shape[:1] == (-1,)

    def __str__(self) -> str:
        sizes = ["any" if size < 0 else str(size) for size in self.shape]
        if self.batched:
            sizes[0] = "batch"
        return f"{self.datatype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class Metadata:
    """A model as its server describes it."""

    model: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Metadata:
        """Reads the server's answer, of HTTP or of gRPC as JSON (where numbers are strings).

        Raises:
            ServerError: If it is not a model's metadata.
        """
        try:
            return cls(
                fields["name"],
                tuple(fields.get("versions", ())),
                fields.get("platform", ""),
                tuple(_spec(tensor) for tensor in fields["inputs"]),
                tuple(_spec(tensor) for tensor in fields["outputs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"The server's answer is not the metadata of a model ({error!r}).") from error


def _spec(fields: dict[str, Any]) -> TensorSpec:
    return TensorSpec(fields["name"], fields["datatype"], tuple(int(size) for size in fields.get("shape", ())))
