"""What changes in a head's file once it is learned: its threshold and its metadata, for which nobody needs PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from gati.inference.head import THRESHOLD

CLOSED = float("inf")
"""A threshold that no score reaches, for heads without one. JSON has `gati.repository.release.SHUT` for it."""


def with_threshold(model: bytes, threshold: float) -> bytes:
    """A head's file with another threshold, rounded to float32.

    Raises:
        ValueError: If it is NaN or below 0, or the file is no head's.
    """
    if not threshold >= 0:
        raise ValueError(f"A threshold is at least 0, not {threshold}.")
    proto = onnx.ModelProto.FromString(model)
    tensor = next((tensor for tensor in proto.graph.initializer if tensor.name == THRESHOLD), None)
    if tensor is None:
        raise ValueError(f"The model has no initializer {THRESHOLD!r}, so it is no head.")
    tensor.CopyFrom(numpy_helper.from_array(np.float32(threshold).reshape(()), THRESHOLD))
    return proto.SerializeToString(deterministic=True)


def stamp(model: bytes, fields: Mapping[str, str]) -> bytes:
    """A head's file with metadata under these keys, `gati.` included; the rest of the file stays as it is."""
    proto = onnx.ModelProto.FromString(model)
    kept = {prop.key: prop.value for prop in proto.metadata_props} | dict(fields)
    del proto.metadata_props[:]
    for key, value in sorted(kept.items()):
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)
