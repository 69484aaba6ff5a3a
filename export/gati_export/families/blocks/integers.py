"""Convolutions in integers of 8 bits, once they are trained (Jacob et al. 2018): smaller lookups, and sooner done.

ONNX Runtime convolves integers where what a convolution reads, its weights and what it gives are quantised. Weights
have 7 of the 8 bits, since x86 without VNNI adds up two products in 16, where larger ones would overflow: heads say the
same wherever they are served.

PyTorch's own operators for this (`quantized_decomposed`) are exported with casts and clips that ONNX Runtime does not
fold: it would quantise the weights at each lookup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from onnxscript import opset18 as op
from torch import Tensor as Torch
from torch import nn
from torch.nn import functional

LARGEST = 63
"""Of a weight's integers, either way."""
NAME = "integers."
"""What begins the names of numbers here in the state of a network that holds them under this name."""


@torch.library.custom_op("gati::rounded", mutates_args=())
def rounded(values: Torch, scale: Torch, zero: Torch) -> Torch:
    """Values of any shape as they come back from integers of the type that `zero`, one number, has."""
    kind = torch.iinfo(zero.dtype)
    integers = torch.clamp(torch.round(values / scale) + zero, kind.min, kind.max)
    return (integers - zero) * scale


@torch.library.custom_op("gati::unpacked", mutates_args=())
def unpacked(integers: Torch, scale: Torch, zero: Torch) -> Torch:
    """Weights, [channels, ...], of integers with a scale for each channel; `zero`, int8 [channels], is nought."""
    return (integers - zero.reshape(_each(integers))).float() * scale.reshape(_each(integers))


@rounded.register_fake
def _(values: Torch, scale: Torch, zero: Torch) -> Torch:
    return torch.empty_like(values)


@unpacked.register_fake
def _(integers: Torch, scale: Torch, zero: Torch) -> Torch:
    return torch.empty_like(integers, dtype=torch.float32)


def _rounded_in_onnx(values: Any, scale: Any, zero: Any) -> Any:
    integers: Any = op.QuantizeLinear(values, scale, zero)
    return op.DequantizeLinear(integers, scale, zero)


def _unpacked_in_onnx(integers: Any, scale: Any, zero: Any) -> Any:
    return op.DequantizeLinear(integers, scale, zero, axis=0)


IN_ONNX = {
    torch.ops.gati.rounded.default: _rounded_in_onnx,
    torch.ops.gati.unpacked.default: _unpacked_in_onnx,
}
"""What PyTorch's exporter is to write for the operators here."""


def _each(weights: Torch) -> tuple[int, ...]:
    """The shape that numbers for each channel have to have beside weights [channels, ...]."""
    return (-1, *[1] * (weights.ndim - 1))


class Integers(nn.Module):
    """Trained layers in integers; it holds what they are quantised with, and they what is left of them.

    Args:
        layers: Convolutions without bias, each with its normalisation and ReLU behind it, and what makes no new
            numbers, such as poolings of maxima; in eval mode.
        examples: Something to run them on, [n, channels, height, width]: larger numbers than come up then are cut off.
    """

    def __init__(self, layers: nn.Sequential, examples: Torch) -> None:
        super().__init__()
        with torch.no_grad():
            seen = examples
            self._span("given", seen)
            for place, layer in enumerate(layers):
                seen = layer(seen)
                if isinstance(layer, nn.ReLU):
                    self._span(f"{place}", seen)
                elif isinstance(layer, nn.Conv2d):
                    self._pack(f"{place}", layer, _factor(_norm(layers, place)))

    def _span(self, name: str, values: Torch) -> None:
        """Has integers span the values."""
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        scale = max(high - low, 1e-6) / 255
        self._hold(f"scale_{name}", torch.tensor(scale))
        self._hold(f"zero_{name}", torch.tensor(round(-low / scale), dtype=torch.uint8))

    def _pack(self, name: str, convolution: nn.Conv2d, factor: Torch) -> None:
        weights = convolution.weight * factor.reshape(_each(convolution.weight))
        scale = weights.abs().amax((1, 2, 3)).clamp_min(1e-12) / LARGEST
        self._hold(f"weight_{name}", torch.round(weights / scale.reshape(_each(weights))).to(torch.int8))
        self._hold(f"weight_scale_{name}", scale)
        self._hold(f"weight_zero_{name}", torch.zeros(len(scale), dtype=torch.int8))

    def _hold(self, name: str, value: Torch) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, layers: nn.Sequential, features: Torch) -> Torch:
        """What the layers give for features [batch, ...], nearly."""
        seen = self._round("given", features)
        for place, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                norm = _norm(layers, place)
                bias = norm.bias - cast(Torch, norm.running_mean) * _factor(norm)
                packed = (self.get_buffer(f"{part}_{place}") for part in ("weight", "weight_scale", "weight_zero"))
                weights = unpacked(*packed)
                seen = functional.conv2d(seen, weights, bias, padding=layer.padding, groups=layer.groups)
            elif isinstance(layer, nn.ReLU):
                seen = self._round(f"{place}", layer(seen))
            elif not isinstance(layer, nn.BatchNorm2d):
                seen = layer(seen)
        return seen

    def _round(self, name: str, values: Torch) -> Torch:
        return rounded(values, self.get_buffer(f"scale_{name}"), self.get_buffer(f"zero_{name}"))


def _norm(layers: nn.Sequential, place: int) -> nn.BatchNorm2d:
    """The normalisation behind a convolution."""
    return cast(nn.BatchNorm2d, layers[place + 1])


def _factor(norm: nn.BatchNorm2d) -> Torch:
    """By what a normalisation multiplies each channel."""
    return norm.weight * torch.rsqrt(cast(Torch, norm.running_var) + norm.eps)


def weights_before(start: Mapping[str, Torch], layers: nn.Sequential, name: str) -> dict[str, Torch]:
    """The weights that layers had, for training to go on from, by their names in a network.

    Args:
        start: Numbers of that network by name, those of `Integers` among them, or none.
        layers: Layers as these were.
        name: Of the layers in the network.
    """
    found = {key: value for key, value in start.items() if not key.startswith(NAME)}
    for place in (place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)):
        integers, scale = (start.get(f"{NAME}{part}_{place}") for part in ("weight", "weight_scale"))
        weight, variance = (start.get(f"{name}.{place + 1}.{part}") for part in ("weight", "running_var"))
        if integers is None or scale is None or weight is None or variance is None:
            continue
        factor = weight * torch.rsqrt(variance + _norm(layers, place).eps)
        factor = torch.where(factor == 0, torch.ones_like(factor), factor)
        found[f"{name}.{place}.weight"] = integers.float() * (scale / factor).reshape(_each(integers))
    return found
