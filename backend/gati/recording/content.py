"""Content of samples: what is kept of a request, the model's inputs or hidden activations at a cut point."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gati.repository.chain import Chain, Tensor

CONTENT = b"gati.content"
"""Metadata of a shard of activations: their cut point, and the segments that computed them. A shard of inputs has
none."""


@dataclass(frozen=True)
class Content:
    """What is kept of each row.

    Attributes:
        cut: The cut point whose activations are kept; None if inputs are.
        tensors: The tensors that are kept: the inputs, or the cut tensor and those inputs that segments behind it read.
        segments: SHA-256 of the segments that computed them.
    """

    cut: int | None
    tensors: tuple[Tensor, ...]
    segments: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """The metadata of a shard of this content."""
        if self.cut is None:
            return {}
        return {CONTENT: json.dumps({"cut": self.cut, "segments": self.segments}).encode()}


def inputs_of(chain: Chain) -> Content:
    """Content that is the model's inputs."""
    return Content(None, chain.inputs)


def features_at(chain: Chain, cut: int) -> Content:
    """Content that is the activations at a cut point, from which the backbone's answer can be computed."""
    later = {name for segment in chain.segments[cut + 1 :] for name in segment.inputs}
    carried = (tensor for tensor in chain.inputs if tensor.name in later)
    return Content(cut, (chain.segments[cut].output, *carried), chain.digests()[: cut + 1])


def content_of(chain: Chain, metadata: Mapping[bytes, bytes]) -> Content | None:
    """The content of a shard with this metadata; None if other segments than the chain's computed it."""
    if CONTENT not in metadata:
        return inputs_of(chain)
    known = (features_at(chain, cut) for cut in chain.heads)
    return next((one for one in known if one.metadata[CONTENT] == metadata[CONTENT]), None)
