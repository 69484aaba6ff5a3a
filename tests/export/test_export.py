"""`gati export` as a command: what it takes, what it writes and says, and what it refuses in one sentence."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from graphs import Graph
from handmade import write_shard
from onnx import TensorProto
from PIL import Image

from gati.cli import main
from gati.inference.device import usable
from gati.inference.session import Device
from gati.recording.shard import Sample, shard
from gati.repository.chain import Chain, Segment, Tensor, read_chain
from gati.repository.release import head_path, valid_releases
from gati_export.commands import common
from gati_export.learning.heads import weights_of
from gati_export.releases.mode import CLEARLY, faster
from gati_export.releases.repository import head_config
from gati_export.samples.images import parse_decode
from gati_export.staging import staging_area
from gati_export.terms import Terms

SHAPE, CLASSES = (3, 4, 5), 4
FEW = 20


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Gati = Callable[..., Ended]


@pytest.fixture
def gati(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Gati]:
    """Runs `gati export` in an empty working directory that has `net.onnx` and `samples.npz`."""
    network().save(tmp_path / "net.onnx", "scores")
    np.savez(tmp_path / "samples.npz", image=images(FEW))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def run(backbone: str = "net.onnx", *options: str, **named: str) -> Ended:
        asked = {"samples": "samples.npz", "repository": "models", "mode": "inline"} | named
        arguments = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", value)]
        with pytest.raises(SystemExit) as end:
            main(["export", backbone, *arguments, *options])
        return Ended(int(end.value.code or 0), *capfd.readouterr())

    yield run
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def network(width: int = 6) -> Graph:
    graph = Graph()
    h = graph.node("Flatten", graph.input("image", ["batch", *SHAPE]))
    for inner in (60, width):
        h = graph.node("Relu", graph.linear(h, inner, width))
    graph.linear(h, width, CLASSES, name="scores")
    return graph


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, *SHAPE)).astype(np.float32)


def one_error(ended: Ended) -> str:
    """The one sentence of a command that failed with exit code 1 and left nothing behind in the working directory."""
    assert ended.code == 1
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("Error: ")
    assert "this should not happen" not in lines[0]
    return lines[0].removeprefix("Error: ")


def wrong_use(ended: Ended) -> str:
    """What a command said of an option that is wrong, under how it is used."""
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: gati export ")
    return ended.err.splitlines()[-1].removeprefix("Error: Invalid value for ")


def left_in(folder: Path) -> list[str]:
    """What a failed export has left in a repository and in the workspace beside it."""
    return [str(path) for root in ("models", "models.gati/exports") for path in (folder / root).glob("*")]


def exported_json(gati: Gati, *arguments: str, **named: str) -> dict:
    ended = gati(*arguments, **named, json="result.json")
    assert ended.code == 0, ended.err
    return json.loads(Path("result.json").read_text())


# What it takes


def encoded(rows: np.ndarray) -> list[bytes]:
    files = []
    for row in rows:
        file = io.BytesIO()
        Image.fromarray(row).save(file, "PNG")
        files.append(file.getvalue())
    return files


def write_npz(folder: Path) -> tuple[str, list[str]]:
    np.savez(folder / "s.npz", image=images(7), label=np.arange(7))
    return "s.npz", []


def write_flat_rows(folder: Path) -> tuple[str, list[str]]:
    np.savez(folder / "s.npz", image=images(7).reshape(7, -1))
    return "s.npz", []


def write_npy(folder: Path) -> tuple[str, list[str]]:
    np.save(folder / "s.npy", images(7).astype(np.float64))
    return "s.npy", []


def write_lists(folder: Path) -> tuple[str, list[str]]:
    pq.write_table(pa.table({"image": images(7).reshape(7, -1).tolist(), "label": range(7)}), folder / "s.parquet")
    return "s.parquet", []


def write_folder(folder: Path) -> tuple[str, list[str]]:
    (folder / "s").mkdir()
    for name, rows in {"a": images(4), "b": images(3, seed=1)}.items():
        pq.write_table(pa.table({"image": rows.tolist()}), folder / "s" / f"{name}.parquet")
    return "s", []


def write_images(folder: Path) -> tuple[str, list[str]]:
    rows = np.random.default_rng(0).integers(0, 256, (7, 9, 8, 3)).astype(np.uint8)
    pq.write_table(pa.table({"picture": encoded(rows), "label": range(7)}), folder / "s.parquet")
    return "s.parquet", ["--image", "5x4 rgb mean=0.4 std=0.2,0.3,0.3"]


def write_images_for_a_callable(folder: Path) -> tuple[str, list[str]]:
    (folder / "own_images.py").write_text(
        "import numpy as np\ndef read(encoded):\n    return np.full((3, 4, 5), len(encoded) / 100, np.float32)\n"
    )
    return write_images(folder)[0], ["--image", "own_images:read"]


def write_recorded(folder: Path) -> tuple[str, list[str]]:
    output = Tensor("scores", "FP32", (CLASSES,))
    segment = Segment(0, ("image",), output, "0" * 64, 1.0)
    chain = Chain("net", "inline", (Tensor("image", "FP32", SHAPE),), output, (segment,), 0.01, 0.05, 8)
    number = np.zeros(7, np.int64)
    rows = [Sample({"image": images(7)}, None, number.astype(np.int32), number, 0.0)]
    write_shard(str(folder / "store" / "net"), shard(chain, rows), 1 << 30)
    return "store/net", []


KINDS = [
    write_npz,
    write_flat_rows,
    write_npy,
    write_lists,
    write_folder,
    write_images,
    write_images_for_a_callable,
    write_recorded,
]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_samples_of_every_kind(gati, tmp_path, write):
    path, options = write(tmp_path)
    result = exported_json(gati, "net.onnx", *options, samples=path)
    assert result["compared_samples"] == 7
    assert result["largest_difference"] <= 1e-5


def test_real_photos_as_the_example_in_the_help_has_them(gati, tmp_path):
    photos = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10" / "test.parquet"
    if not photos.is_file():
        pytest.skip(f"CIFAR-10 is not at {photos}")
    few = pq.ParquetFile(photos).read_row_group(0).slice(0, 60)
    pq.write_table(few, tmp_path / "photos.parquet")
    how = "5x4 rgb mean=0.4914,0.4822,0.4465 std=0.2470,0.2435,0.2616"
    result = exported_json(gati, "net.onnx", "--image", how, samples="photos.parquet")
    assert result["compared_samples"] == 60
    assert parse_decode(how)(few.column("image")[0].as_py()).shape == SHAPE


def test_weights_beside_the_file_come_into_the_plain_model(gati, tmp_path):
    model = network().model("scores")
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert gati("net.onnx", "--plain").code == 0
    plain = onnx.load(tmp_path / "models" / "net-plain" / "1" / "model.onnx", load_external_data=False)
    assert [w.data_location for w in plain.graph.initializer] == [TensorProto.DEFAULT] * len(model.graph.initializer)


# What it writes and says


def test_segments_are_prepared_for_tensorrt(gati, tmp_path):
    ended = gati("net.onnx", "--plain", mode="auto", engine="tensorrt", engines="/var/cache", json="result.json")
    assert ended.code == 0, ended.err
    said = json.loads((tmp_path / "result.json").read_text())
    assert (said["engine"], said["mode"]) == ("tensorrt", "bls")
    assert all(note in ended.out for note in said["notes"])
    assert "gati refresh --measure" in said["notes"][1]
    chain = read_chain(tmp_path / "models", "net")
    assert chain.engine == "tensorrt"
    for model in ("net-segment-0", "net-plain"):
        text = (tmp_path / "models" / model / "config.pbtxt").read_text()
        assert any(way in text for way in ("/var/cache/engines-net-", 'backend: "tensorrt"'))
    assert "accelerator" not in str(head_config(chain, 0))


@pytest.mark.skipif(usable(Device("cuda")), reason="there is a GPU here")
@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_gpu_that_is_asked_for_and_not_there(gati, tmp_path, monkeypatch, way):
    if way == "environment":
        monkeypatch.setenv("GATI_DEVICE", "cuda:7")
    assert "can't use cuda:7" in one_error(gati(**({"device": "cuda:7"} if way == "option" else {})))
    assert left_in(tmp_path) == []


def test_what_is_no_device_is_refused(gati):
    assert "'gpu' is no device to run on: cpu is one" in wrong_use(gati(device="gpu"))


def test_samples_to_train_on_may_be_of_other_shapes(gati, tmp_path):
    graph = Graph()
    h = graph.node(
        "ReduceMean", graph.input("image", ["batch", "length", 6]), graph.constant([1], np.int64), keepdims=0
    )
    graph.linear(graph.node("Relu", graph.linear(h, 6, 6)), 6, CLASSES, name="scores")
    graph.save(tmp_path / "any.onnx", "scores")
    for name, length in (("eight.npz", 8), ("twelve.npz", 12)):
        np.savez(tmp_path / name, image=np.random.default_rng(0).normal(size=(FEW, length, 6)).astype(np.float32))
    assert gati("any.onnx", samples="eight.npz", train_samples="twelve.npz").code == 0
    chain = read_chain(tmp_path / "models", "any")
    assert len(Terms.of(chain, 0, chain.read_trained(tmp_path / "models")).trained) == FEW, "they certify nothing later"


BAG = """
import torch
from torch import nn

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(50, 16), nn.Linear(16, 4)
        self.layers = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(16, 16), nn.ReLU())))

    def forward(self, ids):
        return self.last(self.layers(self.words(ids)).mean(1))

class Told(Bag):
    def forward(self, ids):
        return super().forward(ids if float(ids.sum()) >= 0 else -ids)  # torch.export can't decide that
"""


@pytest.mark.parametrize("form", ["own_bag:Bag", "own_bag:Told", "bag.pt"])
def test_a_module_is_exported_for_the_lengths_that_samples_have(gati, tmp_path, form):
    (tmp_path / "own_bag.py").write_text(BAG)
    if form == "bag.pt":
        make = "import own_bag, torch; torch.jit.save(torch.jit.script(own_bag.Bag()), 'bag.pt')"
        subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    random = np.random.default_rng(0)
    texts = [random.integers(0, 50, length).tolist() for length in (3, 5, 9, 17, 5) for _ in range(4)]
    pq.write_table(pa.table({"ids": texts}), tmp_path / "texts.parquet")
    ended = gati(form, samples="texts.parquet", name="bag")
    assert ended.code == 0, ended.err
    assert "Samples differ in shape: times, also of budgets, are those of one of median size, 'ids' [5]." in ended.out
    assert read_chain(tmp_path / "models", "bag").inputs == (Tensor("ids", "INT64", (-1,)),)


def test_a_sample_of_a_shape_that_the_network_can_not_take_is_told(gati, tmp_path):
    graph = Graph()
    x = graph.input("x", ["batch", "length"])
    places = graph.node("Shape", x, start=1)
    table = graph.constant(np.ones(16, np.float32))  # as positions of a text have one
    h = graph.node("Mul", x, graph.node("Slice", table, graph.constant([0], np.int64), places))
    h = graph.node("ReduceMean", h, graph.constant([1], np.int64), keepdims=1)
    graph.linear(graph.node("Relu", graph.linear(h, 1, 6)), 6, CLASSES, name="scores")
    graph.save(tmp_path / "short.onnx", "scores")
    pq.write_table(pa.table({"x": [[1.0] * length for length in (4, 9, 17, 5)]}), tmp_path / "texts.parquet")
    said = one_error(gati("short.onnx", samples="texts.parquet"))
    assert "The backbone can't take 1 of 4 samples, such as 'x' [17] (" in said


def test_integers_for_floats_are_taken_as_they_are_and_said(gati, tmp_path):
    np.savez(tmp_path / "bytes.npz", image=np.arange(FEW * 60).reshape(FEW, *SHAPE).clip(0, 255).astype(np.uint8))
    said = gati(samples="bytes.npz").out
    assert "Samples of 'image' are uint8, 0 to 255, and taken as FP32 as they are" in said
    assert "and taken as" not in gati("net.onnx", "--name", "again").out


def test_tensorrt_is_not_for_inline_chains(gati):
    ended = gati(engine="tensorrt", mode="inline")
    assert ended.code == 2
    assert "--engine tensorrt is for Triton models: leave --mode out" in ended.err


def test_an_export_that_is_told_to_end_leaves_nothing(gati: Gati, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from gati.cli import main; main()", "export", "net.onnx"]
    process = subprocess.Popen([*command, "--samples", "samples.npz", "--repository", "models"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not left_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not left_in(tmp_path)


def test_what_an_export_that_was_killed_has_left_goes_with_the_next(gati, tmp_path):
    command = [sys.executable, "-c", "from gati.cli import main; main()", "export", "net.onnx"]
    options = ["--samples", "samples.npz", "--repository", "models", "--mode", "inline"]
    area = tmp_path / "models.gati" / "exports"
    killed = subprocess.Popen([*command, *options], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list(area.glob("*/repository/*")):
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    (left,) = area.iterdir()
    assert gati("net.onnx", "--name", "other").code == 0
    assert left.exists(), "it may be at work: it is too young to be taken for dead"
    for age, dead in ((60, False), (3600, True)):
        with FileLock(left / ".lock") if not dead else nullcontext():
            os.utime(left, (time.time() - age,) * 2)
            staging_area(tmp_path / "models")
        assert left.exists() != dead, "it is at work"
    assert gati("net.onnx").code == 0
    assert not list(area.iterdir())


def test_what_may_be_at_work_elsewhere_is_left_for_a_day(tmp_path):
    area = staging_area(tmp_path / "models")
    for name, files in {"other-host": {".lock": "", ".host": "elsewhere"}, "older-release": {}}.items():
        (area / name).mkdir()
        for file, text in files.items():
            (area / name / file).write_text(text)
    for age, left in ((3600, {"other-host", "older-release"}), (90_000, set())):
        for folder in area.iterdir():
            os.utime(folder, (time.time() - age,) * 2)
        staging_area(tmp_path / "models")
        assert {folder.name for folder in area.iterdir()} == left


def test_a_chain_that_was_moved_in_part_is_taken_back(gati, tmp_path):
    assert gati("net.onnx", "--plain").code == 0
    assert gati("net.onnx", "--name", "net-plain-other").code == 0
    models, staged = tmp_path / "models", tmp_path / "models.gati" / "exports" / "net-dead" / "repository"
    staged.mkdir(parents=True)
    moved = [folder.name for folder in models.glob("net*") if not folder.name.startswith("net-plain")]
    (staged.parent / ".moved").write_text(json.dumps(moved))
    for last in ("net", "net-segment-1"):  # killed before these were moved
        (models / last).rename(staged / last)
    os.utime(staged.parent, (0, 0))
    ended = gati("net.onnx")
    assert ended.code == 0, ended.err
    assert (models / "net-plain").exists(), "it is not of what was moved"
    chain = read_chain(models, "net")
    for segment in chain.segments:
        chain.check_segment(models, segment.index)
    assert not list(staged.parent.parent.iterdir())
    assert read_chain(models, "net-plain-other").model == "net-plain-other"
    staged.mkdir(parents=True)
    shutil.copytree(models / "net", staged / "net")
    (staged.parent / ".moved").write_text(json.dumps(moved))
    os.utime(staged.parent, (0, 0))
    staging_area(models)
    assert all((models / name).exists() for name in moved), "the chain that is there now is another one's"
    (models / "net").rename(tmp_path / "elsewhere")
    assert "holds 'net-" in one_error(gati("net.onnx")), "what nobody left there is not touched"


def test_few_samples_give_a_chain_that_waits_for_a_refresh(gati, tmp_path):
    ended = gati("net.onnx", cut_points="1", max_batch="1", json="made/here/result.json")
    assert ended.code == 0
    assert ended.err == ""
    assert "No head serves yet, the backbone answers every request: Too few samples" in ended.out
    *_, following, learning = ended.out.rstrip().splitlines()
    assert following == "Next: gati serve models"
    assert learning == "Then: gati refresh net --repository models --server localhost:8001 --watch"
    assert len(ended.out.splitlines()) <= 16
    chain = read_chain(tmp_path / "models", "net")
    assert (len(chain.segments), chain.max_batch, chain.mode) == (2, 1, "inline")
    assert not list(valid_releases(tmp_path / "models", chain))
    assert list((tmp_path / "models.gati" / "exports").iterdir()) == []
    result = json.loads((tmp_path / "made" / "here" / "result.json").read_text())
    assert result["release"] is None
    assert result["report"]["why_not"].startswith("Too few samples")
    assert result["cut_points_found"] >= 1
    assert [s["sha256"] for s in result["segments"]] == list(chain.digests())
    assert result["segments"][-1]["share"] == pytest.approx(1)


def test_progress_is_shown_on_a_terminal(gati, tmp_path):
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from gati.cli import main; main()", "export", "net.onnx", "--mode", "inline"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [*program, "--samples", "samples.npz", "--repository", "models"]
    shown = b""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        while chunk := read_terminal(ours):
            shown += chunk
        assert process.stdout is not None
        assert b"Compare segments" not in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert b"Compare segments with backbone" in shown
    assert b"100 %" in shown


def test_elsewhere_a_line_now_and_then_shows_that_work_goes_on(gati, monkeypatch):
    monkeypatch.setattr(common, "EVERY", 0.0)
    ended = gati("net.onnx")
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert "Compare segments with backbone: 100 %" in lines
    assert all(re.fullmatch(r"[A-Z][a-z ]+: \d{1,3} %", line) for line in lines), lines


def read_terminal(descriptor: int) -> bytes:
    """What was written to a terminal; nothing when its other end is closed."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


def test_one_number_is_a_regression(gati, tmp_path):
    graph = Graph()
    h = graph.node("Flatten", graph.input("image", ["batch", *SHAPE]))
    for inner in (60, 6):
        h = graph.node("Relu", graph.linear(h, inner, 6))
    graph.linear(h, 6, 1, name="price")
    graph.save(tmp_path / "price.onnx", "price")
    assert "'price' is one number" in one_error(gati("price.onnx"))
    assert gati("price.onnx", agreement="within 0.1").code == 0
    assert read_chain(tmp_path / "models", "price").output.shape == (1,)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("net.onnx", "net"), ("./sub/my.net-2.onnx", "my.net-2"), ("own_pack.resnet18:build", "resnet18")],
)
def test_a_chain_is_named_after_its_backbone(gati, tmp_path, backbone, name):
    (tmp_path / "sub").mkdir()
    network().save(tmp_path / "sub" / "my.net-2.onnx", "scores")
    (tmp_path / "own_pack").mkdir()
    (tmp_path / "own_pack" / "resnet18.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(60, 6), nn.ReLU(), nn.Linear(6, 4))\n"
    )
    assert gati(backbone).code == 0
    assert read_chain(tmp_path / "models", name).model == name


def test_the_table_says_what_the_json_says(gati):
    ended = gati(json="result.json", cut_points="2")
    result = json.loads(Path("result.json").read_text())
    rows = re.findall(r"^ +(\d) +(\S+) +(\d+)%", ended.out, re.MULTILINE)
    assert [(tensor, f"{share}%") for _, tensor, share in rows[:-1]] == [
        (s["output"]["name"], f"{s['share']:.0%}") for s in result["segments"][:-1]
    ]
    assert rows[-1] == (str(len(result["segments"]) - 1), "backbone", "100")
    assert f"of {result['cut_points_found']} cut points" in ended.out


def test_a_repository_takes_several_chains(gati, tmp_path):
    assert gati().code == gati(name="second").code == 0
    assert {"net", "second"} <= {path.name for path in (tmp_path / "models").iterdir()}


CLUSTERS = """
import torch
from torch import nn

class Wide(nn.Module):
    '''Costly enough that a head behind its first layer pays on any machine.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(24, 1024)
        self.layers = nn.ModuleList(nn.Linear(1024, 1024) for _ in range(4))
        self.last = nn.Linear(1024, 4)
    def forward(self, point):
        h = torch.relu(self.first(point))
        for layer in self.layers:
            h = torch.relu(layer(h)) * 2 ** 0.5
        return self.last(h) * 10
"""


@pytest.fixture(scope="module")
def clusters(tmp_path_factory) -> Path:
    """A folder with a network that is costly, easy to foresee, and named `own_wide:Wide`; and 1,400 samples of it."""
    folder = tmp_path_factory.mktemp("clusters")
    (folder / "own_wide.py").write_text(CLUSTERS)
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(12, 24))
    np.savez(folder / "p.npz", point=(centres[np.arange(1400) % 12] + 0.1 * rng.normal(size=(1400, 24))).astype("f"))
    return folder


def export_in_a_process(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does: everything that is written on stdout and stderr counts."""
    program = [sys.executable, "-c", "from gati.cli import main; main()", "export", "own_wide:Wide"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.run(
        [*program, "--samples", "p.npz", "--cut-points", "1", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def twice(clusters) -> list[tuple[Path, subprocess.CompletedProcess[str], dict]]:
    """The same export in two processes; the second one measures which mode is faster, and adds the plain model."""
    made = []
    for number, options in {"1": ["--mode", "inline"], "2": ["--plain"]}.items():
        named = ["--name", "wide", "--seed", "5", "--repository", number, "--json", f"{number}.json"]
        ended = export_in_a_process(clusters, *named, *options)
        assert ended.returncode == 0, ended.stderr
        made.append((clusters / number, ended, json.loads((clusters / f"{number}.json").read_text())))
    return made


def test_nothing_but_the_result_reaches_the_user(twice):
    for _, ended, _ in twice:
        assert not re.sub(r"^.+: \d+ %\n", "", ended.stderr, flags=re.M), "but progress, after a minute"
        assert "pooled" in ended.stdout
        assert "Release 1: expected speed-up" in ended.stdout
        assert len(ended.stdout.splitlines()) <= 16


def test_the_json_has_all_that_a_program_could_ask_for(twice):
    _, _, result = twice[0]
    assert result["model"] == "wide"
    assert result["mode"] == "inline"
    assert result["mode_seconds"] == {}
    (cut,) = result["report"]["cuts"]
    assert cut["used"] == "pooled"
    (option,) = [option for option in cut["options"] if option["used"]]
    assert option["agreement"] > 0.9
    assert 0 < cut["hits"] <= 1
    assert result["report"]["speedup"] > 1
    assert len(result["report"]["exits"]) == len(result["segments"]) == 2
    certificate = result["release"]["certificate"]
    assert certificate["bound"] <= certificate["epsilon"] == 0.01
    assert certificate["n"] >= 299
    assert (result["release"]["number"], result["release"]["window"]["samples"]) == (1, 1400)


def test_the_same_seed_gives_the_same_files(twice):
    first, second = (read_chain(repository, "wide") for repository, _, _ in twice)
    assert first.digests() == second.digests()
    heads = [weights_of(head_path(repository, first, 0, 1).read_bytes()) for repository, _, _ in twice]
    assert heads[0].keys() == heads[1].keys()  # thresholds depend on measured times
    assert all((weights == heads[1][name]).all() for name, weights in heads[0].items())


def test_a_repository_holds_the_chains_models_and_nothing_else(twice):
    models = ["wide", "wide-head-0", "wide-segment-0", "wide-segment-1"]
    repositories = [repository for repository, _, _ in twice]
    assert [sorted(path.name for path in repository.iterdir()) for repository in repositories] == [
        models,
        sorted([*models, "wide-plain"]),
    ]


def test_the_mode_is_the_one_measured_to_be_faster(twice):
    from conftest import no_triton

    repository, ended, result = twice[1]
    if reason := no_triton():
        pytest.skip(reason)
    assert set(result["mode_seconds"]) == {"inline", "bls"}
    faster = "bls" if result["mode_seconds"]["bls"] < CLEARLY * result["mode_seconds"]["inline"] else "inline"
    assert result["mode"] == faster == read_chain(repository, "wide").mode
    assert f"Mode {faster} (mean of a request here:" in ended.stdout


@pytest.mark.parametrize(
    ("seconds", "mode"),
    [
        ({"inline": 1.0, "bls": 0.95}, "inline"),
        ({"inline": 1.0, "bls": 0.8}, "bls"),
        ({"inline": 1.0}, "inline"),
        ({"bls": 1.0}, "bls"),
        ({}, "inline"),
    ],
)
def test_bls_mode_is_taken_where_it_is_clearly_faster(seconds, mode):
    assert faster(seconds) == mode


# What it refuses


def cut_short(folder: Path) -> str:
    whole = (folder / "net.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(whole[: len(whole) // 2])
    return "bad.onnx"


def text(folder: Path) -> str:
    (folder / "bad.onnx").write_text("This is a letter, not a network.\n")
    return "bad.onnx"


def two_outputs(folder: Path) -> str:
    graph = network()
    graph.linear("scores", CLASSES, 3, name="embedding")
    return graph.save(folder / "bad.onnx", "scores", "embedding").name


def batch_of_four(folder: Path) -> str:
    graph = Graph()
    h = graph.node("Relu", graph.linear(graph.input("x", [4, 60]), 60, 6))
    graph.linear(h, 6, CLASSES, name="scores")
    return graph.save(folder / "bad.onnx", "scores").name


def two_towers(folder: Path) -> str:
    """Two networks side by side, whose scores are added."""
    graph = Graph()
    flat = graph.node("Flatten", graph.input("image", ["batch", *SHAPE]))
    towers = [graph.linear(graph.node("Relu", graph.linear(flat, 60, 6)), 6, CLASSES) for _ in range(2)]
    graph.node("Add", *towers, name="scores")
    return graph.save(folder / "bad.onnx", "scores").name


def custom_operator(folder: Path) -> str:
    graph = Graph()
    h = graph.node("Magic", graph.input("image", ["batch", *SHAPE]), domain="com.example")
    graph.node("Flatten", h, name="scores")
    return graph.save(folder / "bad.onnx", "scores").name


MODULES = """
from torch import nn

def raises():
    raise OSError("no weights here")

def number():
    return 3

class Wrong(nn.Module):
    def forward(self, image):
        return image @ image.flatten()
"""


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        (cut_short, "bad.onnx is not an ONNX file, or was cut short"),
        (text, "bad.onnx is not an ONNX file, or was cut short"),
        ("none.onnx", "There is no file none.onnx"),
        ("none.pt2", "There is no file none.pt2"),
        ("samples.npz", "give an .onnx, .pt2 or .pt file, package.module:function, or a model's folder"),
        (two_outputs, "several outputs (scores, embedding)"),
        (batch_of_four, "batch fixed at 4"),
        (two_towers, "can't be cut"),
        (custom_operator, "com.example"),
        ("letter.pt2", "letter.pt2 is not a program"),
        ("own_bad:nothing", "no function or class 'nothing'"),
        ("own_absent:build", "'own_absent' could not be imported"),
        ("own_bad:raises", "own_bad:raises() failed (no weights here)"),
        ("own_bad:number", "must return a torch.nn.Module"),
        ("own_bad:Wrong", "own_bad:Wrong fails on the samples"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_backbones_that_are_refused(gati, tmp_path, backbone, says):
    (tmp_path / "own_bad.py").write_text(MODULES)
    (tmp_path / "letter.pt2").write_text("Dear reader")
    error = one_error(gati(backbone(tmp_path) if callable(backbone) else backbone))
    assert says in error
    assert str(tmp_path) not in error
    assert left_in(tmp_path) == []


def with_nan() -> np.ndarray:
    rows = images(FEW)
    rows[3, 1, 2, 3] = np.nan
    rows[5] = np.inf
    return rows


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"left": images(3), "right": images(3)}, "lack the model's input 'image' and hold 'left', 'right'"),
        ({"image": images(3)[:, :2]}, "has shape [2, 4, 5], and the model takes [3, 4, 5]"),
        ({"image": images(3).reshape(3, 1, -1)}, "has shape [1, 60], and the model takes [3, 4, 5]"),
        ({"image": images(3).astype(np.complex64)}, "complex64 in the samples and float32 in the model"),
        ({"image": images(3).astype(str)}, "float32 in the model"),
        ({"image": with_nan()}, "2 of 20 rows of input 'image' hold NaN or Inf"),
        ({"image": images(0)}, "no rows in the samples"),
        ({"image": np.array([{}, 1], object)}, "holds more than plain arrays"),
    ],
    ids=["names", "shape", "rank", "dtype", "text", "not finite", "none", "objects"],
)
def test_samples_that_are_refused(gati, tmp_path, arrays, says):
    np.savez(tmp_path / "samples.npz", **arrays)
    assert says in one_error(gati())
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none.npz", "no samples at none.npz"),
        ("none", "not a kind of samples"),
        ("net.onnx", "not a kind of samples"),
        ("damaged.npz", "damaged.npz is damaged"),
        ("damaged.parquet", "damaged.parquet is not a Parquet file"),
        ("empty", "Folder 'empty' holds no Parquet files"),
        ("pictures.parquet", "say with --image"),
    ],
)
def test_files_that_are_no_samples(gati, tmp_path, path, says):
    (tmp_path / "empty").mkdir()
    for name in ("damaged.npz", "damaged.parquet"):
        (tmp_path / name).write_bytes(b"PK\x03\x04" + b"PAR1" * 9)
    picture = np.zeros((4, 5, 3), np.uint8)
    pq.write_table(pa.table({"image": encoded(picture[None])}), tmp_path / "pictures.parquet")
    assert says in one_error(gati(samples=path))
    assert left_in(tmp_path) == []


def test_floats_are_no_words(gati, tmp_path):
    graph = Graph()
    h = graph.node("Gather", graph.weight(9, 6), graph.input("ids", ["batch", 5], np.int64))
    h = graph.node("Relu", graph.linear(graph.node("ReduceMax", h, graph.constant([1]), keepdims=0), 6, 6))
    graph.linear(h, 6, CLASSES, name="scores")
    graph.save(tmp_path / "text.onnx", "scores")
    np.save(tmp_path / "ids.npy", np.ones((3, 5), np.float32))
    assert "float32 in the samples and int64 in the model" in one_error(gati("text.onnx", samples="ids.npy"))
    np.save(tmp_path / "ids.npy", np.full((3, 5), 99))
    assert "text.onnx fails on the samples" in one_error(gati("text.onnx", samples="ids.npy"))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("huge", "--image does not know the word 'huge'"),
        ("rgb mean=a", "--image can't read 'mean=a'"),
        ("own_none:read", "'own_none' could not be imported"),
    ],
)
def test_ways_to_read_images_that_are_none(gati, image, says):
    assert says in wrong_use(gati("net.onnx", "--image", image))


def test_images_that_the_model_does_not_take_are_refused(gati, tmp_path):
    path, _ = write_images(tmp_path)
    said = one_error(gati("net.onnx", "--image", "8x8", samples=path))
    assert "has shape [3, 8, 8], and the model takes [3, 4, 5]" in said
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--agreement", "top-0", "is not one of top-1, top-K, within X"),
        ("--agreement", "own_none:agree", "'own_none' could not be imported"),
        ("--families", "pooled,best", "no family of heads 'pooled,best'"),
    ],
)
def test_terms_that_are_none_are_wrong_use(gati, option, value, says):
    assert says in wrong_use(gati("net.onnx", option, value))


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "with space", "", "-", "ümlaut", "a\nb"], ids=repr)
def test_names_that_are_refused(gati, tmp_path, name):
    assert "can't be a model's name" in wrong_use(gati("net.onnx", f"--name={name}"))
    assert left_in(tmp_path) == []


def test_a_name_that_is_taken_stays_with_its_model(gati, tmp_path):
    assert gati().code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    for name in ([], ["--name", "net-segment-0"]):
        assert "already; choose another --name" in one_error(gati("net.onnx", *name))
    assert "is a name for a part of 'net'" in one_error(gati("net.onnx", "--name", "net-head-1"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    (tmp_path / "models" / "other-plain").mkdir()
    assert "'other-plain' already" in one_error(gati("net.onnx", "--plain", name="other"))
    assert gati(name="other").code == 0


def test_a_repository_that_is_a_file(gati, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = gati(repository="file")
    assert ended.code == 2  # as every option that is used wrongly
    assert "Directory 'file' is a file" in ended.err
    assert "Not a directory" in one_error(gati(repository="file/models"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        (images(1), "give about 1400 in all that differ."),
        (np.repeat(images(1), 1400, axis=0), "give about 1400 in all that differ."),
    ],
    ids=["one sample", "copies of one"],
)
def test_samples_that_teach_little_still_give_a_chain(gati, tmp_path, rows, advice):
    np.savez(tmp_path / "samples.npz", image=rows)
    result = exported_json(gati)
    assert result["release"] is None
    assert result["report"]["why_not"].endswith(advice)
    assert read_chain(tmp_path / "models", "net").segments


@pytest.mark.parametrize(
    ("constant", "gain", "message"),
    [([0, 1, 0, 0], 0, "the same output for all"), ([0, 1e6, 0, 0], 1, "the same answer, class 1, to all")],
    ids=["constant", "one class"],
)
def test_a_backbone_that_always_says_the_same_is_refused(gati, tmp_path, constant, gain, message):
    graph = network()
    little = graph.node("Mul", "scores", graph.constant(gain, np.float32))
    graph.node("Add", little, graph.constant(constant, np.float32), name="constant")
    graph.save(tmp_path / "net.onnx", "constant")
    np.savez(tmp_path / "samples.npz", image=images(1400))
    assert message in one_error(gati(cut_points="1"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets no file grow larger, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "options"),
    [(40_000, []), (200, []), (130_000, ["--plain"])],
    ids=["a segment", "a configuration", "the plain backbone"],
)
def test_a_disk_that_is_full(gati, tmp_path, size, options):
    network(width=100).save(tmp_path / "net.onnx", "scores")  # segments of 24, 40 and 2 KB; 66 KB together
    if options:
        size = (tmp_path / "net.onnx").stat().st_size - 1
    with files_of_at_most(size):
        ended = gati("net.onnx", *options)
    assert "File too large" in one_error(ended)
    assert left_in(tmp_path) == []
