"""A small residual network, trained on real digits in seconds, and its chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from networks import export_onnx
from torch import nn
from torch.nn import functional

from gati.inference.session import threads
from gati_export.composition.latency import Times
from gati_export.demo.digits import Pool, pools, views
from gati_export.export import ExportPlan, export_chain
from gati_export.families.blocks.distillation import torch_threads
from gati_export.learning import candidates, training
from gati_export.terms import Terms

TIMES = Times(np.array([0.1, 0.2, 0.3, 0.4]) * 1e-3, np.full(3, 1e-5))
"""Which heads are chosen must not depend on how busy the machine is that runs the tests."""
SIZE = 16
SAMPLES = 1600


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, 1, 1)
        self.second = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Small(nn.Module):
    """Most of its time is spent late: a head at the first cut point pays, however busy the machine is."""

    def __init__(self, width: int = 16, late: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1)
        self.early = nn.Sequential(Block(width), Block(width))
        self.widen = nn.Conv2d(width, late, 2, 2)
        self.late = nn.Sequential(Block(late), Block(late))
        self.scores = nn.Linear(late, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        early = self.early(functional.relu(self.stem(image)))
        return self.scores(self.late(functional.relu(self.widen(early))).amax((2, 3)))


def trained(pool: Pool, steps: int = 100) -> Small:
    torch.manual_seed(0)
    network, random = Small(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for step in range(steps):
        batch = random.integers(0, len(pool.labels), 64)
        images = torch.from_numpy(views(pool, batch, seed=step, size=SIZE))
        loss = functional.cross_entropy(network(images), torch.from_numpy(pool.labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def lookups(_chain: object, _sessions: object, heads: Sequence[object], _samples: object) -> list[float]:
    """Seconds of a lookup in each head."""
    return [2e-5] * len(heads)


def export_small(folder: Path, name: str) -> np.ndarray:
    """Exports `folder/models` with the chain `name` and `name`-plain; returns 1,000 new images."""
    ours, theirs = pools()
    index = np.random.default_rng(1).integers(0, len(theirs.labels), SAMPLES + 1000)
    images = views(theirs, index, seed=1, size=SIZE)
    np.savez(folder / "samples.npz", image=images[:SAMPLES])
    with torch_threads(threads()):  # whoever else runs tests waits for this
        network = trained(ours)
    export_onnx(network, {"image": images[:2]}, folder / "small.onnx")
    plan = ExportPlan(
        str(folder / "small.onnx"),
        folder / "samples.npz",
        folder / "models",
        name,
        mode="inline",
        terms=Terms(families="pooled", views=3000),  # others are learned elsewhere, and take longer
        cut_points=3,
        plain=True,
    )
    with (
        patch.object(training, "measure_segments", lambda *_: TIMES),
        patch.object(candidates, "measure_heads", lookups),
    ):
        export_chain(plan, lambda _what, _done: None)
    return images[SAMPLES:]
