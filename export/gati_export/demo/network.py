"""The demo's backbone: a residual network of 17 convolutions, trained on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from gati_export.demo.digits import SIZE, Pool, views
from gati_export.progress import Progress

WIDTH, BATCH = 64, 32
STRIDES = (1, 1, 1, 1, 1, 2, 1, 1)
"""Of the blocks, one after another."""
PHASES = ((16, 12), (32, 6), (SIZE, 2))
"""Size of the images and epochs at it: most is learned at a quarter of the cost."""


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(WIDTH)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(WIDTH)
        self.shortcut = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, WIDTH, h, w] to [batch, WIDTH, h/stride, w/stride]."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class Network(nn.Module):
    """Images [batch, 1, h, w] to scores [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(stride) for stride in STRIDES))
        self.scores = nn.Linear(WIDTH, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The scores."""
        return self.scores(self.blocks(self.stem(image)).mean((2, 3)))


def train(pool: Pool, progress: Progress, seed: int = 0) -> Network:
    """Trains a network on fresh views of a pool's digits, in under a minute on two cores."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = Network().train()
    done, total = 0, sum(size * size * epochs for size, epochs in PHASES)
    for size, epochs in PHASES:
        batches = [batch for _ in range(epochs) for batch in _batches(random, pool)]
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=len(batches))
        for step, batch in enumerate(batches):
            progress("Train the network", (done + size * size * epochs * step / len(batches)) / total)
            images = torch.from_numpy(views(pool, batch, seed=int(random.integers(2**31)), size=size))
            loss = functional.cross_entropy(network(images), torch.from_numpy(pool.labels[batch]), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        done += size * size * epochs
    progress("Train the network", 1)
    return network.eval()


def _batches(random: np.random.Generator, pool: Pool) -> list[np.ndarray]:
    return np.array_split(random.permutation(len(pool.labels)), len(pool.labels) // BATCH)


def save(network: Network, path: Path) -> None:
    """Saves a network as a `torch.export` program that takes any number of images."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(network, (torch.zeros(2, 1, SIZE, SIZE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
