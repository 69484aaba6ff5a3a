"""Towers in integers: trained as others are, they say nearly the same, are smaller, and are run in integers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lessons import CLASSES, OUTPUT, course, one_cut_chain
from torch import nn

from gati.inference.session import DEVICE, open_session, run
from gati.repository.chain import Tensor
from gati_export.families import spatial
from gati_export.families.blocks.distillation import Scale, Schedule
from gati_export.families.blocks.integers import LARGEST, Integers, weights_before
from gati_export.families.family import Distilled
from gati_export.learning import candidates
from gati_export.learning.heads import Head, head_model

CUTS = [
    Tensor("early", "FP32", (12, 32, 32)),
    Tensor("middle", "FP32", (16, 16, 16)),
    Tensor("late", "FP32", (80, 4, 4)),
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
def test_a_tower_in_integers_is_smaller_and_says_nearly_the_same(
    cut: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spatial.Tower, "schedule", Schedule(epochs=1, least=40, most=40, batch=64, peak=6e-3))
    train, tune, fresh = course(cut, 400, 0), course(cut, 200, 1), course(cut, 300, 2)
    (lookup,) = spatial.lookups(cut, CLASSES)
    lookup.integers = True
    lookup.learn(train.lesson(lookup), tune.lesson(lookup), 0, None)
    assert isinstance(lookup, Distilled)
    tower = lookup.eval().predictor
    assert isinstance(tower, spatial.Tower)
    file = tmp_path / "head.onnx"
    file.write_bytes(head_model(Head(lookup, Scale("logits"), OUTPUT), cut, OUTPUT))
    session = open_session(file, optimised=tmp_path / "optimised.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["QLinearConv"] == sum(isinstance(layer, nn.Conv2d) for layer in tower.layers)
    assert not operators["Conv"] + operators["FusedConv"]
    assert file.stat().st_size < 0.45 * 4 * sum(weights.numel() for weights in tower.parameters())
    said = run(session, [OUTPUT.name], {cut.name: fresh.hidden})[0]
    tower.integers = None
    with torch.no_grad():
        exact = tower(tower.reduce(torch.from_numpy(fresh.hidden))).numpy()
    assert (said.argmax(1) == exact.argmax(1)).mean() > 0.97
    assert 0 < np.abs(said - exact).mean() < 0.05 * exact.std()


def layers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2))
    made.extend([nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()])
    for norm in (made[1], made[5]):
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        nn.init.normal_(norm.weight)  # of either sign
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 2.0)
    return made.eval()


def test_inputs_of_either_sign_and_channels_turned_round_are_rounded_and_no_more() -> None:
    made, examples = layers(0), torch.randn(64, 3, 8, 8)
    integers = Integers(made, examples)
    with torch.no_grad():
        expected, found = made(examples), integers(made, examples)
        assert torch.equal(integers(made, 3 * examples), integers(made, 3 * examples.clamp(-9, 9)))
    assert (found - expected).abs().max() < 0.04 * expected.abs().max()
    assert int(integers.get_buffer("weight_0").abs().max()) == LARGEST
    assert len(found.unique()) <= 256


def test_layers_that_give_nothing_stay_so() -> None:
    made = layers(0)
    with torch.no_grad():
        made[1].weight.zero_()
        made[1].bias.zero_()
        integers = Integers(made, torch.zeros(4, 3, 8, 8))
        assert torch.isfinite(integers(made, torch.randn(4, 3, 8, 8))).all()


def test_the_weights_before_come_back_of_the_integers() -> None:
    made = layers(1)
    integers = Integers(made, torch.randn(16, 3, 8, 8))
    state = {f"layers.{name}": value for name, value in made.state_dict().items() if not name.endswith("0.weight")}
    state.pop("layers.4.weight")
    state |= {f"integers.{name}": value for name, value in integers.named_buffers()} | {"last.bias": torch.ones(2)}
    found = weights_before(state, made, "layers")
    assert {name for name in found if not name.endswith("batches_tracked")} == {
        *(f"layers.{name}" for name, _ in made.named_parameters()),
        *(f"layers.{place}.running_{what}" for place in (1, 5) for what in ("mean", "var")),
        "last.bias",
    }
    for place in (0, 4):
        weight = made[place].weight.detach()
        assert torch.allclose(found[f"layers.{place}.weight"], weight, atol=float(weight.abs().max()) / LARGEST)


@pytest.mark.parametrize(
    ("mode", "device", "integers"), [("inline", "cpu", True), ("inline", "cuda", False), ("bls", "cuda", True)]
)
def test_heads_for_a_gpu_stay_in_floating_point(
    mode: str, device: str, integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In BLS mode, heads run on the processor whatever segments do."""
    monkeypatch.setenv(DEVICE, device)
    monkeypatch.setattr(candidates, "learnable", lambda *_: {0})
    plan, _ = candidates._plan(replace(one_cut_chain(CUTS[1]), mode=mode), {}, ["spatial"])
    assert [lookup.integers for lookup in plan[0]] == [integers]
