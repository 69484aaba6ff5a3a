"""TorchScript programs: what they are called by, what they answer as ONNX, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.backbones.backbone import load_backbone
from gati_export.backbones.signature import Signature


class Two(nn.Module):
    """Decides by its numbers, which a trace could not keep, and tells two things."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.fc(torch.cat([left, right], 1))
        if scores.shape[0] > 1:
            scores = scores * 2
        return self.drop(scores), scores.argmax(1)


pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch would rather see other formats
LEFT, RIGHT = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)


@pytest.fixture(params=["script", "trace"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = Two().eval()
    kinds = {"script": torch.jit.script, "trace": lambda m: torch.jit.trace(m, (torch.ones(2, 3), torch.ones(2, 3)))}
    torch.jit.save(kinds[request.param](module), tmp_path / "two.pt")
    return tmp_path / "two.pt"


def expected(program: Path, rows: int) -> np.ndarray:
    with torch.no_grad():
        return torch.jit.load(program)(torch.from_numpy(LEFT[:rows]), torch.from_numpy(RIGHT[:rows]))[0].numpy()


@pytest.mark.parametrize(
    ("names", "left", "right", "outputs"),
    [
        (((), ()), "left", "right", ["output_0", "output_1"]),
        ((("right", "left"), ("scores", "label")), "left", "right", ["scores", "label"]),
        ((("in__1", "in__0"), ("out__1", "out__0")), "in__0", "in__1", ["out__0", "out__1"]),
        ((("first", "second"), ("scores",)), "first", "second", ["scores", "output_1"]),
    ],
    ids=["arguments", "arguments in another order", "places", "order"],
)
def test_it_answers_as_the_program_under_the_names_that_triton_knows(
    program, tmp_path, names, left, right, outputs
) -> None:
    samples = {left: LEFT, right: RIGHT}
    signature = Signature([Tensor(name, "FP32", (3,)) for name in names[0]], names[1])
    backbone = load_backbone(str(program), samples, tmp_path, signature=signature)
    assert [tensor.name for tensor in backbone.inputs] == [left, right]
    assert backbone.tail is not None
    assert [tensor.name for tensor in backbone.tail.outputs] == outputs
    assert backbone.max_batch == 0
    for rows in (1, 2, 7):
        answer = backbone.run({left: LEFT[:rows], right: RIGHT[:rows]})
        np.testing.assert_allclose(answer, expected(program, rows), atol=1e-6)


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 3:
            raise RuntimeError("the weights are on the moon")
        return x


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.words(ids)).mean(1))


def test_what_may_vary_for_clients_may_vary(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Words().eval()), tmp_path / "words.pt")
    ids = np.random.default_rng(0).integers(0, 50, (6, 9))
    signature = Signature([Tensor("ids", "INT64", (-1,))], ["scores"])
    more = {"ids": ids.astype(np.int32), "names": np.array(["no"] * 6), "one": np.array(1)}
    backbone = load_backbone(str(tmp_path / "words.pt"), more, tmp_path, signature=signature)
    assert backbone.inputs == (Tensor("ids", "INT64", (-1,)),)
    with torch.no_grad():
        longer = torch.jit.load(tmp_path / "words.pt")(torch.from_numpy(np.hstack([ids, ids])))
    np.testing.assert_allclose(backbone.run({"ids": np.hstack([ids, ids])}), longer.numpy(), atol=1e-6)


def test_a_lone_array_is_a_lone_input(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 4))), tmp_path / "one.pt")
    (tensor,) = load_backbone(str(tmp_path / "one.pt"), {"image": LEFT}, tmp_path).inputs
    assert (tensor.name, tensor.shape) == ("input", (3,))


def test_programs_that_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("no program")
    torch.jit.save(torch.jit.script(Fails()), tmp_path / "fails.pt")
    torch.jit.save(torch.jit.script(Two().eval()), tmp_path / "two.pt")
    for name, samples, says in (
        ("none.pt", {"x": LEFT}, "There is no file .*none.pt; check the path"),
        ("text.pt", {"x": LEFT}, "text.pt is no TorchScript program, or is damaged"),
        ("weights.pt", {"x": LEFT}, "without their network, give package.module:callable"),
        ("fails.pt", {"x": LEFT}, r"fails.pt fails on the samples \(.*the weights are on the moon\); check"),
        ("two.pt", {"left": LEFT, "other": RIGHT}, "two.pt takes left, right, and is given left, other"),
        ("two.pt", None, "two.pt can only be exported with samples"),
    ):
        with pytest.raises(BackboneError, match=says) as refused:
            load_backbone(str(tmp_path / name), samples, tmp_path)
        assert len(str(refused.value).splitlines()) == 1
