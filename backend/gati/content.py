"""What a sample holds of a request: the model's inputs or, in their place, what goes on at a cut point."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gati.chain import Chain, Tensor

CONTENT = b"gati.content"
"""Metadata of a shard: the cut point, and the segments that made what it holds; none where it holds inputs."""


@dataclass(frozen=True)
class Content:
    """What is kept of each row.

    Attributes:
        cut: The cut point whose activations are kept; None where inputs are.
        tensors: What is kept: the inputs, or the cut tensor and those inputs that segments behind it read.
        segments: SHA-256 of the segments that made it.
    """

    cut: int | None
    tensors: tuple[Tensor, ...]
    segments: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """What a shard says that it holds."""
        if self.cut is None:
            return {}
        return {CONTENT: json.dumps({"cut": self.cut, "segments": self.segments}).encode()}


def inputs_of(chain: Chain) -> Content:
    """The model's inputs."""
    return Content(None, chain.inputs)


def features_at(chain: Chain, cut: int) -> Content:
    """What goes on at a cut point: all that the backbone's answer can be had from."""
    later = {name for segment in chain.segments[cut + 1 :] for name in segment.inputs}
    carried = (tensor for tensor in chain.inputs if tensor.name in later)
    return Content(cut, (chain.segments[cut].output, *carried), chain.digests()[: cut + 1])


def content_of(chain: Chain, metadata: Mapping[bytes, bytes]) -> Content | None:
    """What a shard with this metadata holds; None if that is of other segments than the chain's."""
    if CONTENT not in metadata:
        return inputs_of(chain)
    known = (features_at(chain, cut) for cut in chain.heads)
    return next((one for one in known if one.metadata[CONTENT] == metadata[CONTENT]), None)
