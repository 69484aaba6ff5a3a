"""Small networks of the families that gati is meant for, with untrained but fixed weights, and example inputs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gati_export.backbones.exporter import exporting

CLASSES = 5


class Network(NamedTuple):
    """A module in eval mode and rows to run it on."""

    module: nn.Module
    inputs: dict[str, np.ndarray]


def export_onnx(
    module: nn.Module, inputs: dict[str, np.ndarray], path: Path, *, dynamic: tuple[str, ...] = ("batch",)
) -> Path:
    """Writes a module as ONNX; `dynamic` names the first dimensions that may vary, none for a batch fixed at 1."""
    tensors = {name: torch.from_numpy(rows[: 2 if dynamic else 1]) for name, rows in inputs.items()}
    shapes = {name: dict(enumerate(dynamic)) for name in tensors} if dynamic else None
    with exporting():
        program = torch.onnx.export(
            module, (), kwargs=tensors, dynamic_shapes=shapes, output_names=["output"], dynamo=True, verbose=False
        )
    program.save(path)
    return path


def decided(network: Network) -> Network:
    """Makes an untrained network tell its example inputs apart: centres its last layer's scores on them."""
    last = [part for part in network.module.modules() if isinstance(part, nn.Linear)][-1]
    scores: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda _module, _inputs, output: scores.append(output))
    with torch.no_grad():
        network.module(*(torch.from_numpy(rows) for rows in network.inputs.values()))
        hook.remove()
        last.bias -= scores[0].mean(0)
    return network


def resembling(network: Network, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows that a network's example inputs stand for: each is one of them with a little noise, or other words."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(next(iter(network.inputs.values()))), count)
    rows = {name: examples[index] for name, examples in network.inputs.items()}
    for name, values in rows.items():
        if values.dtype.kind == "f":
            rows[name] = (values + 0.03 * rng.normal(size=values.shape)).astype(values.dtype)
        elif name == "input_ids":
            words = rng.integers(1, 50, (count, 3))
            values[:, 1:4] = words  # always: copies of a text would be one observation
    return rows


def unpadded(rows: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Texts as they are without their padding, each [1, length]."""
    lengths = rows["attention_mask"].sum(axis=1)
    return [{name: array[[row], :length] for name, array in rows.items()} for row, length in enumerate(lengths)]


def _images(size: int = 16, rows: int = 12) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(rows, 3, size, size)).astype(np.float32)}


def _fixed(module: nn.Module) -> nn.Module:
    """Gives batch normalisation statistics that a trained network might have: with 0 and 1 it does nothing."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
    return module.eval()


def _conv(channels_in: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut; normalised before the addition, or before each convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int, pre: bool):
        super().__init__()
        self.pre = pre
        self.conv1, self.conv2 = _conv(channels_in, channels, 3, stride), _conv(channels, channels)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in if pre else channels), nn.BatchNorm2d(channels)
        self.short = _conv(channels_in, channels, 1, stride) if stride > 1 or channels_in != channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre:
            return self.short(x) + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return F.relu(self.short(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self, pre: bool):
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        sizes = [(8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 32, 2)]
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, stride, pre) for a, b, stride in sizes))
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def resnet(pre: bool = False) -> Network:
    """Four residual blocks; `pre` for pre-activation. Input x: float32 [rows, 3, 16, 16]."""
    torch.manual_seed(0)
    return Network(_fixed(ResNet(pre)), _images())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        wide = 4 * channels_in
        self.add = stride == 1 and channels_in == channels
        self.layers = nn.Sequential(
            *(_conv(channels_in, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(_conv(wide, wide, 3, stride, wide), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(_conv(wide, channels, 1), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.add else self.layers(x)


def mobilenet() -> Network:
    """Four inverted residuals, two of them with shortcuts. Input: float32 [rows, 3, 16, 16]."""
    torch.manual_seed(0)
    blocks = [InvertedResidual(*sizes) for sizes in [(8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2)]]
    layers = [_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU6(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(_fixed(nn.Sequential(*layers, nn.Linear(16, CLASSES))), {"input": _images()["x"]})


class ViT(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(width), enable_nested_tensor=False)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        return self.fc(self.encoder(tokens)[:, 0])


def vit(width: int = 32) -> Network:
    """A vision transformer of three layers. Input x: float32 [rows, 3, 16, 16]."""
    torch.manual_seed(0)
    return Network(ViT(width).eval(), _images())


class TextLayer(nn.Module):
    """Attention and a perceptron, normalised after each addition, as BERT's."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask, -1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.mlp(x))


class TextTransformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.positions, self.norm = nn.Embedding(50, width), nn.Embedding(64, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(TextLayer(width) for _ in range(3))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
        x = self.norm(self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1])))
        for layer in self.layers:
            x = layer(x, mask)
        return self.fc(torch.tanh(x[:, 0]))


def text_transformer(rows: int = 12, width: int = 32) -> Network:
    """BERT in small: inputs input_ids and attention_mask, int64 [rows, 10]; every layer reads the mask."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = np.arange(10) < rng.integers(3, 11, (rows, 1))
    inputs = {"input_ids": rng.integers(1, 50, (rows, 10)) * mask, "attention_mask": mask.astype(np.int64)}
    return Network(TextTransformer(width).eval(), inputs)


def mlp() -> Network:
    """Four linear layers that end in a softmax. Input: float32 [rows, 20]."""
    torch.manual_seed(0)
    sizes = [20, 32, 32, 16, CLASSES]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    inputs = {"input": np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)}
    return Network(nn.Sequential(*layers[:-1], nn.Softmax(-1)).eval(), inputs)


class Labelled(nn.Module):
    """Wide layers, and what people make of scores; the loudness of a row comes as one number."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [16, width, width, width, width]
        self.layers = nn.Sequential(*(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor, loudness: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.fc(self.layers(x * loudness[:, None]))
        return {"probabilities": scores.softmax(-1), "label": scores.argmax(-1), "best": scores.topk(2).indices}


def labelled(width: int = 1024) -> Network:
    """Probabilities, labels, and the two best, none of which is computed of another. Inputs x, loudness: [rows]."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 16)).astype(np.float32)
    return decided(Network(Labelled(width).eval(), {"x": x, "loudness": np.ones(12, np.float32)}))


def vgg() -> Network:
    """Plain convolutions and pools. Input: float32 [rows, 3, 16, 16]."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels_in, channels in [(3, 8), (8, 16), (16, 16)]:
        layers += [nn.Conv2d(channels_in, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
    return Network(
        _fixed(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))),
        {"input": _images()["x"]},
    )
