"""What chains cost, as it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import mixing_head, remembering_head
from networks import export_onnx
from torch import nn

from gati.inference.device import DeviceRunner
from gati.inference.inline import cut_as_run
from gati.inference.session import CPU
from gati.inference.substitute import TO_PLANES
from gati.repository.chain import Chain
from gati_export.backbones.backbone import load_backbone
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.segments import cut, write_segments
from gati_export.composition import latency
from gati_export.composition.gpu_latency import GpuLatency
from gati_export.composition.latency import _Halves as Halves
from gati_export.composition.latency import _undisturbed as undisturbed
from gati_export.composition.latency import measure_heads

CHANNELS = 32


@pytest.fixture
def convolutions(tmp_path: Path) -> tuple[Chain, list[Path], dict[str, np.ndarray]]:
    """A chain cut where what passes is blocks of channels (gati.inference.layout), its files, and samples."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)).eval()
    samples = {"input": np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)}
    backbone = load_backbone(str(export_onnx(network, samples, tmp_path / "network.onnx")), samples, tmp_path)
    chain = Chain("conv", "inline", backbone.inputs, backbone.output, (), 0.01, 0.05, 8)
    graphs = cut(backbone, choose_cutpoints(find_cutpoints(backbone), 1))
    segments = write_segments(graphs, lambda index: chain.segment_path(tmp_path, index).parent)
    chain = replace(chain, segments=segments)
    return chain, [chain.segment_path(tmp_path, segment.index) for segment in segments], samples


def test_heads_with_state_are_measured_on_blocks(
    convolutions: tuple[Chain, list[Path], dict[str, np.ndarray]],
) -> None:
    chain, paths, samples = convolutions
    one = {name: rows[:1] for name, rows in samples.items()}
    passed = cut_as_run(chain, [path.read_bytes() for path in paths], [range(1), range(1, 2)], one).substitutes
    assert [node.op_type for node in passed[chain.segments[0].output.name].nodes] == [TO_PLANES]
    heads = [(0, remembering_head(chain, 0)), (0, mixing_head(chain, 0))]
    assert all(seconds > 0 for seconds in measure_heads(chain, paths, heads, samples))


def test_what_was_disturbed_is_measured_again_and_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the network seemed to be before the second cut, while something else ran; so all behind it did, too."""
    monkeypatch.setattr(latency, "PAUSE", 0.0)
    seen = {0: [0.2], 1: [0.93, 0.95, 0.41], 2: [0.7], 3: [0.99, 1.3, 1.2, 1.1]}
    asked: list[int] = []

    def measured(index: int) -> Halves:
        asked.append(index)
        return Halves(seen[index].pop(0), 0.4 if index in (1, 3) else 0.3, 0.05)

    found = undisturbed(range(4), measured)
    assert [halves.before for halves in found] == [0.2, 0.41, 0.7, 0.99]
    assert asked == [0, 1, 2, 3, 1, 3, 1, 3, 3], "and four times at most"
    assert found[3].added == pytest.approx(0.34) and found[0].added == 0


def test_rungs_are_measured_on_a_device(
    convolutions: tuple[Chain, list[Path], dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor's, by the same bindings as a GPU's."""
    chain, paths, samples = convolutions
    one = {name: rows[:1] for name, rows in samples.items()}
    monkeypatch.setattr("gati_export.composition.gpu_latency.ROUNDS", 3)
    gpu = GpuLatency(chain, [path.read_bytes() for path in paths], one, DeviceRunner(CPU))
    segments, cuts = gpu.segments()
    assert len(segments) == 2 and segments.sum() > 0 and (segments >= 0).all()
    assert len(cuts) == 1 and cuts[0] >= 0
    heads = [(0, remembering_head(chain, 0)), (0, mixing_head(chain, 0))]
    assert len(gpu.heads(heads)) == 2
    paces = iter([[0.001, 0.002, 0.003, 0.002], [0.001, 0.002, 0.0015, 0.002]] * 3)
    monkeypatch.setattr(GpuLatency, "_compare", lambda *_: next(paces))
    np.testing.assert_allclose(gpu.heads(heads), [0.002, 0.0005])


def test_what_can_not_be_captured_is_measured_stage_by_stage(
    convolutions: tuple[Chain, list[Path], dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(GpuLatency):
        def segments(self) -> tuple[np.ndarray, np.ndarray]:
            raise RuntimeError("not a kernel")

        def heads(self, heads: Sequence[tuple[int, bytes]]) -> list[float]:
            raise RuntimeError("not a kernel")

    chain, paths, samples = convolutions
    monkeypatch.setattr(latency, "_gpu_latency", lambda *_: Broken(chain, [], samples, DeviceRunner(CPU)))
    assert latency.measure_segments(chain, paths, samples).segments.sum() > 0
    (seconds,) = measure_heads(chain, paths, [(0, mixing_head(chain, 0))], samples)
    assert seconds > 0
