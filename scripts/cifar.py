"""Makes what the benchmarks need of the shared CIFAR-10 data: scripts/cifar.py SHARED FOLDER.

Writes `backbone.onnx` (ResNet-18), `extra.npz` (pictures that the backbone was trained on, for heads to train on too),
and for each workload `<workload>-traffic.npz` and `<workload>-evaluate.npz`: request sequences made of two disjoint
parts of the test pictures. What tunes and certifies heads comes from the first, what judges them from the second.
The backbone's weights are read with safetensors, which gati itself does not need: `pip install safetensors`.
"""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
from PIL import Image

from gati_client.workload import film, frames, hot

REQUESTS = 12_000


@click.command()
@click.argument("shared", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--extra", default=16_000, show_default=True, help="Pictures of the training set.")
@click.option("--traffic", default=3_500, show_default=True, help="Test pictures that traffic is made of.")
@click.option("--filmed", default=36_000, show_default=True, help="Frames of traffic, thirty of each scene.")
@click.option("--evaluate", default=REQUESTS, show_default=True, help="Frames to judge heads by, likewise.")
@click.option("--seed", default=0, show_default=True, help="Of which pictures are which, and of the workloads.")
def cifar(shared: Path, folder: Path, extra: int, traffic: int, filmed: int, evaluate: int, seed: int) -> None:
    """Writes the files that the benchmarks read."""
    folder.mkdir(parents=True, exist_ok=True)
    model = runpy.run_path(str(shared / "models" / "resnet_cifar10.py"))
    if not (folder / "backbone.onnx").exists():
        model["write_onnx"](str(folder / "backbone.onnx"))
    mean, std = (np.array(model[name], np.float32)[:, None, None] for name in ("MEAN", "STD"))
    random = np.random.default_rng(seed)

    def write(name: str, pictures: np.ndarray) -> None:
        np.savez(folder / f"{name}.npz", image=((pictures - mean) / std).astype(np.float32))

    data = shared / "data" / "cifar10"
    write("extra", _pictures(data / "train.parquet", random, extra))
    test = _pictures(data / "test.parquet", random)
    classes = _classes(folder / "backbone.onnx", (test - mean) / std)
    parts = ("traffic", slice(0, traffic), filmed), ("evaluate", slice(traffic, None), evaluate)
    for own, (part, rows, count) in enumerate(parts, seed):  # else both would be filmed with the same noise
        pool = test[rows]
        write(f"iid-{part}", pool)
        write(f"hot-{part}", pool[hot(classes[rows], REQUESTS, seed=own)])
        scenes, number = frames(len(pool), count, seed=own)
        write(f"frames-{part}", np.stack(list(film(pool, scenes, number, own))))


def _pictures(path: Path, random: np.random.Generator, count: int | None = None) -> np.ndarray:
    """Pictures in random order, float32 [n, 3, 32, 32], 0..1."""
    encoded = pq.read_table(path, columns=["image"])["image"].to_pylist()
    chosen = random.permutation(len(encoded))[:count]
    decoded = (np.asarray(Image.open(io.BytesIO(encoded[row]))) for row in chosen)
    return np.stack([picture.transpose(2, 0, 1) for picture in decoded]).astype(np.float32) / 255


def _classes(backbone: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(backbone), providers=["CPUExecutionProvider"])
    batches = np.array_split(images.astype(np.float32), max(1, len(images) // 64))
    return np.concatenate([np.asarray(session.run(None, {"image": batch})[0]).argmax(axis=1) for batch in batches])


if __name__ == "__main__":
    cifar()
