"""How graphs describe the tensors that they take and give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ValueInfoProto, helper


def tensor_info(name: str, kind: int, shape: Sequence[int | str] | None = None) -> ValueInfoProto:
    """Describes a tensor.

    Args:
        name: Its name.
        kind: ONNX's number for the type of its elements; see `kind_of`.
        shape: Its dimensions, those that may vary by name; None leaves them open.
    """
    return helper.make_tensor_value_info(name, kind, shape)


def kind_of(dtype: np.dtype) -> int:
    """ONNX's number for a NumPy dtype."""
    return helper.np_dtype_to_tensor_dtype(dtype)
