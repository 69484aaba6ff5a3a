"""What exits save, and lookups cost, on a GPU: scripts/gpu.py [--device cuda] [--networks 18,50,152] [--batches 1,8].

Chains of four segments with a pooled linear head each (the mechanism of `gati bench`), on ResNets for 224 x 224
pictures with untrained weights: time does not depend on these. In one process, without a server; inputs come from the
host, and answers go there. All ways are run in turns: the plain backbone; the same as a CUDA graph; the chain without
heads; with heads that all miss, or hit at an exit, by stages (`sync`), joined (`joined`: gati.inference.ladder), and
with lookups in a thread of their own, beside the next stage (`async`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from gati.inference.device import DeviceRunner, Hidden, Runner, runner_on
from gati.inference.head import Prediction
from gati.inference.inline import InlineEngine
from gati.inference.ladder import Ladder, sizes_up_to
from gati.inference.session import open_session, parse_device, run
from gati.inference.steps import Step
from gati.options import json_option, write_json
from gati.repository.chain import Chain, read_chain
from gati.repository.release import Window
from gati.serving.flight import Answer, Request
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Observer, Orchestrator
from gati.serving.watch import ReleaseWatch
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.segments import cut, write_segments
from gati_export.bench.contenders import CERTAIN
from gati_export.bench.linear import linear_head
from gati_export.certificates.certificate import uncertified
from gati_export.learning.headfile import with_threshold
from gati_export.releases.publish import Draft, publish
from gati_export.samples.ragged import count
from gati_export.samples.samples import check_samples, load_samples

LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
"""Blocks of a ResNet's four groups, by its depth."""
HEADS = 3
PICTURES, TURNS = 400, 3
"""Samples that an exported chain is asked, and how often."""
Way = Callable[[], object]


class Block(nn.Module):
    """A residual block: of two convolutions, or where it is wide, of three that pass through a bottleneck."""

    def __init__(self, channels_in: int, channels: int, stride: int, wide: bool) -> None:
        super().__init__()
        out = channels * 4 if wide else channels
        shapes = [(channels_in, channels, 3, stride), (channels, out, 3, 1)]
        if wide:
            shapes = [(channels_in, channels, 1, 1), (channels, channels, 3, stride), (channels, out, 1, 1)]
        self.layers = nn.ModuleList(_convolution(*shape) for shape in shapes)
        self.short = None if stride == 1 and channels_in == out else _convolution(channels_in, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, height, width] to [batch, channels, height / stride, width / stride]."""
        y = x
        for place, layer in enumerate(self.layers):
            y = layer(y)
            y = y.relu() if place + 1 < len(self.layers) else y
        return (y + (x if self.short is None else self.short(x))).relu()


def _convolution(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    convolution, norm = (
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
    )
    nn.init.constant_(norm.weight, 0.5)  # or what passes would double with every block
    return nn.Sequential(convolution, norm)


def resnet(depth: int) -> nn.Module:
    """An untrained ResNet of He et al. (2016), table 1: pictures [batch, 3, 224, 224] to logits [batch, 1000]."""
    wide, channels = depth >= 50, 64
    parts: list[nn.Module] = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for group, blocks in enumerate(LAYERS[depth]):
        for block in range(blocks):
            parts.append(Block(channels, 64 << group, 2 if group and not block else 1, wide))
            channels = (64 << group) * (4 if wide else 1)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)).eval()


def backbone_of(depth: int, folder: Path) -> Backbone:
    """A ResNet as `gati export` reads it."""
    torch.manual_seed(0)
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        resnet(depth),
        (torch.randn(2, 3, 224, 224),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=(batch,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(folder / "backbone.onnx", external_data=False)
    return load_backbone(str(folder / "backbone.onnx"), None, folder)


def orchestrated(chain: Chain, live: LiveRelease, feeds: dict[str, np.ndarray], exact: bool = False) -> Way:
    """A chain as it is served."""
    orchestrator = Orchestrator(chain, lambda: live, cast(Observer, Silent()), lambda _: None)
    return lambda: orchestrator.serve([Request(feeds, exact, lambda *_: None)])


def unheard(*_: object) -> None:
    """Nobody is told who leaves."""


class Silent:
    """Nobody is told anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Bed:
    """A chain in a repository of its own, and how it is asked.

    Args:
        backbone: The network.
        folder: Where the repository is to be.
        device: What to run it on.
    """

    def __init__(self, backbone: Backbone, folder: Path, device: str) -> None:
        self._folder = folder
        chain = Chain("bed", "inline", backbone.inputs, backbone.output, (), CERTAIN, 0.05, 8)
        graphs = cut(backbone, choose_cutpoints(find_cutpoints(backbone), HEADS))
        segments = write_segments(graphs, lambda index: chain.segment_path(folder, index).parent)
        self.chain = replace(chain, segments=segments)
        self._heads = {i: linear_head(segments[i].output, chain.output) for i in self.chain.heads}
        runner = runner_on(parse_device(device))
        self._engine = InlineEngine(folder, self.chain, runner, warn=click.echo)
        whole = Step(self.chain.segments[-1].index, onnx.load(backbone.path))
        on_gpu = isinstance(runner, DeviceRunner)
        sizes = sizes_up_to(self.chain.max_batch)
        self.captured = Ladder([whole], self.chain, runner, captured=True, sizes=sizes) if on_gpu else None
        self._pool = ThreadPoolExecutor(1)

    def release(self, hits: int | None) -> LiveRelease:
        """Publishes heads that all miss, or of which one hits whatever comes, and takes them."""
        heads = {i: with_threshold(head, 0) if i == hits else head for i, head in self._heads.items()}
        publish(self._folder, self.chain, Draft(heads, uncertified(CERTAIN, 0.5), Window("none", 0), "benchmark"))
        return live_of(self._folder, self.chain, self._engine)

    def beside(self, live: LiveRelease, feeds: dict[str, np.ndarray]) -> Way:
        """Each lookup in a thread, beside the next stage (GATI, section 4): rows leave one stage too late."""
        heads = live.heads
        assert heads is not None

        def walk() -> object:
            values: dict[str, Hidden] = {**feeds}
            asked: Future[Prediction | None] | None = None
            for stage in live.stages:
                name = self.chain.segments[stage.last].output.name
                values[name] = stage.run({read: values[read] for read in stage.inputs})
                if asked is not None and (said := asked.result()) is not None and said.hit.all():
                    return said.answer
                if stage.last in live.state:
                    asked = self._pool.submit(heads.predict, stage.last, values[name], {})
            return values[self.chain.output.name]

        return walk


def ways_of(bed: Bed, plain: Way, feeds: dict[str, np.ndarray], lives: Mapping[str, LiveRelease]) -> dict[str, Way]:
    """What is compared, by name."""
    ways = {"plain": plain}
    if (captured := bed.captured) is not None:
        ways["plain, CUDA graph"] = lambda: captured.run(feeds, {}, unheard)
    ways["chain, no lookups"] = orchestrated(bed.chain, lives["all miss"], feeds, exact=True)
    for name, live in lives.items():
        ways[f"{name}, sync"] = orchestrated(bed.chain, replace(live, shortcuts=None), feeds)
        if live.joined is not None and count(feeds) <= live.joined.rows:
            ways[f"{name}, joined"] = orchestrated(bed.chain, live, feeds)
        ways[f"{name}, async"] = bed.beside(live, feeds)
    return ways


def exported(repository: Path, model: str, samples: Path, device: str, batches: Sequence[int]) -> None:
    """Measures an exported chain on real samples, and holds it against itself on the processor."""
    chain, plain = read_chain(repository, model), repository / f"{model}-plain" / "1" / "model.onnx"
    rows = {name: values[:PICTURES] for name, values in check_samples(load_samples(samples), chain.inputs).items()}
    session, runner = open_session(plain, parse_device(device)), runner_on(parse_device(device))
    engines = (InlineEngine(repository, chain, where, warn=click.echo) for where in (runner, Runner()))
    live, here = (live_of(repository, chain, engine) for engine in engines)
    feeds: dict[str, np.ndarray] = {}
    ways: dict[str, Way] = {"plain": lambda: run(session, [chain.output.name], feeds)}
    if isinstance(runner, DeviceRunner):
        whole, sizes = Step(chain.segments[-1].index, onnx.load(plain)), sizes_up_to(chain.max_batch)
        captured = Ladder([whole], chain, runner, captured=True, sizes=sizes)
        ways["plain, CUDA graph"] = lambda: captured.run(feeds, {}, unheard)
    ways |= {
        "sync": orchestrated(chain, replace(live, shortcuts=None), feeds),
        "joined": orchestrated(chain, live, feeds),
    }
    for batch in batches:
        milliseconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn, (name, way) in product(range(-1, TURNS), ways.items()):
            for start in range(0, PICTURES, batch):
                feeds.update({name: values[start : start + batch] for name, values in rows.items()})
                started = time.perf_counter()
                way()
                if turn >= 0:
                    milliseconds[name].append((time.perf_counter() - started) * 1e3)
        _show(_rows(model, batch, milliseconds))
        one, other = (_answers(chain, where, rows, batch) for where in (live, replace(here, shortcuts=None)))
        elsewhere, otherwise = (np.count_nonzero(a != b) for a, b in zip(one, other, strict=True))
        click.echo(f"Of {PICTURES}, {elsewhere} left elsewhere than on the processor, {otherwise} got another answer.")


def _answers(
    chain: Chain, live: LiveRelease, rows: Mapping[str, np.ndarray], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where samples leave, and what they are answered, [n] each."""
    told: list[Answer] = []
    orchestrator = Orchestrator(chain, lambda: live, cast(Observer, Silent()), lambda _: None)
    for start in range(0, PICTURES, batch):
        feeds = {name: values[start : start + batch] for name, values in rows.items()}
        orchestrator.serve([Request(feeds, False, lambda answer, _: told.append(cast(Answer, answer)))])
    exits, outputs = (np.concatenate([getattr(answer, of) for answer in told]) for of in ("exit", "output"))
    return exits.ravel(), outputs.argmax(axis=1)


def live_of(repository: Path, chain: Chain, engine: InlineEngine) -> LiveRelease:
    """The live release of a chain."""
    silent = Silent()
    watch = ReleaseWatch(repository, chain, engine, silent.refused, silent.went_live)
    for _ in range(2):  # the second completes what the first has found
        watch.look()
    return watch.live


def measure(ways: Mapping[str, Way], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, in turns, for so long or so often, once all have been run a few times."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    for turn in range(-5, rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= 0:
                taken[name].append((time.perf_counter() - start) * 1e3)
        if turn >= 10 and time.perf_counter() > end:
            break
    return taken


def _numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    return tuple(int(word) for word in value.split(","))


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--networks", callback=_numbers, default="18,50,152", show_default=True, help="Depths of ResNets.")
@click.option("--batches", callback=_numbers, default="1,8", show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of each measurement, at most.")
@click.option("--rounds", default=300, show_default=True, help="Likewise.")
@click.option(
    "--exported",
    "chain",
    type=(click.Path(exists=True, path_type=Path), str, click.Path(exists=True, path_type=Path)),
    metavar="REPOSITORY MODEL SAMPLES",
    help="Measure an exported chain, with MODEL-plain beside it, on samples instead.",
)
@json_option
def main(
    device: str,
    networks: Sequence[int],
    batches: Sequence[int],
    seconds: float,
    rounds: int,
    chain: tuple[Path, str, Path] | None,
    json_path: Path | None,
) -> None:
    """Measures chains of ResNets on a GPU."""
    if chain is not None:
        exported(*chain, device, batches)
        return
    rows: list[dict[str, Any]] = []
    for depth in networks:
        with tempfile.TemporaryDirectory() as work:
            backbone = backbone_of(depth, Path(work))
            bed, session = (
                Bed(backbone, Path(work, "models"), device),
                open_session(backbone.path, parse_device(device)),
            )
            lives = {"all miss": bed.release(None), **{f"hit at {i}": bed.release(i) for i in bed.chain.heads}}
            for batch in batches:
                random = np.random.default_rng(0)
                feeds = {"image": random.standard_normal((batch, 3, 224, 224)).astype(np.float32)}
                ways = ways_of(bed, lambda s=session, f=feeds: run(s, ["logits"], f), feeds, lives)
                rows += _rows(f"ResNet-{depth}", batch, measure(ways, seconds, rounds))
                _show(rows[-len(ways) :])
                write_json(json_path, {"device": device, "rows": rows})


def _rows(network: str, batch: int, taken: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    base = float(np.median(taken["plain"]))
    found = []
    for way, milliseconds in taken.items():
        middle, high = (float(q) for q in np.percentile(milliseconds, [50, 95]))
        found.append(
            {
                "network": network,
                "batch": batch,
                "way": way,
                "mean_ms": float(np.mean(milliseconds)),
                "p50_ms": middle,
                "p95_ms": high,
                "speedup": base / middle,
            }
        )
    return found


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        "way", "mean, ms", "p50, ms", "p95, ms", "speed-up", title=f"{rows[0]['network']}, batch {rows[0]['batch']}"
    )
    for row in rows:
        table.add_row(
            row["way"], f"{row['mean_ms']:.3f}", f"{row['p50_ms']:.3f}", f"{row['p95_ms']:.3f}", f"{row['speedup']:.2f}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
