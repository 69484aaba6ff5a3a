"""Which networks can be cut, and where: scripts/zoo.py [--exporter traced|dynamo] LIBRARY:NAME...

Builds networks of Hugging Face's transformers, timm or torchvision with random weights (install these first, pip
install transformers timm torchvision; transformers' are built small), exports them to ONNX as their users do, cuts them
as `gati export` does, and compares the segments with the whole network. Prints a line of a table each.
"""

from __future__ import annotations

import importlib
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from gati.errors import GatiError
from gati_export.backbones.backbone import load_backbone
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import check_segments
from gati_export.backbones.exporter import exporting
from gati_export.backbones.prepare import prepare
from gati_export.backbones.segments import cut, write_segments

ROWS, LENGTH, WORDS = 16, 32, 100
SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Of configurations for texts and sounds; names that one has otherwise are translated by it."""
TEXT = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
SHARED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
FITTING = {**dict.fromkeys(("llama", "mistral", "qwen3", "gemma2", "phi3"), SHARED), "xlnet": {"d_head": 16}}
"""What has to fit the smaller size besides, by kind."""
TASKS = {
    "text": ("SequenceClassification", SMALL | TEXT),
    "image": ("ImageClassification", {}),
    "audio": ("AudioClassification", SMALL),
}
"""What a kind may be made for, by what it reads, and how it is configured; the first that it can be."""

Built = tuple[nn.Module, dict[str, np.ndarray]]


class Logits(nn.Module):
    """A network of transformers with scores as its only result."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """Gives the scores of inputs in the order of their names."""
        return self.network(**dict(zip(self.names, values, strict=True))).logits


def of_transformers(kind: str) -> Built:
    """A network of a kind (`model_type`), and what it reads."""
    library: Any = importlib.import_module("transformers")
    classes: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    for reads, (task, sizes) in TASKS.items():
        words = re.findall("[A-Z][a-z]+", task)
        if kind in getattr(classes, f"MODEL_FOR_{'_'.join(words).upper()}_MAPPING_NAMES"):
            config = library.AutoConfig.for_model(kind, num_labels=4, **sizes, **FITTING.get(kind, {}))
            network = getattr(library, f"AutoModelFor{task}").from_config(config)
            inputs = _inputs(reads, config)
            return Logits(network.eval(), [*inputs]), inputs
    raise click.ClickException(f"transformers has no classifier of kind {kind!r}.")


def _inputs(reads: str, config: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if reads == "text":
        mask = np.arange(LENGTH) < LENGTH - np.arange(ROWS)[:, None]
        words = rng.integers(3, WORDS, mask.shape)
        return {"input_ids": words * mask, "attention_mask": mask.astype(np.int64)}
    if reads == "image":
        size = getattr(config, "image_size", 224)
        size = size if isinstance(size, int) else max(size)
        return {"pixel_values": rng.normal(size=(ROWS, 3, size, size)).astype(np.float32)}
    return {"input_values": rng.normal(size=(ROWS, 8000)).astype(np.float32)}


def of_timm(name: str) -> Built:
    """A network of timm's, and images of the size that it takes."""
    library: Any = importlib.import_module("timm")
    network = library.create_model(name, num_classes=10)
    size = network.pretrained_cfg["input_size"]
    return network.eval(), {"image": np.random.default_rng(0).normal(size=(ROWS, *size)).astype(np.float32)}


def of_torchvision(name: str) -> Built:
    """A network of torchvision's, and images."""
    library: Any = importlib.import_module("torchvision.models")
    network = library.get_model(name, num_classes=10)
    return network.eval(), {"image": np.random.default_rng(0).normal(size=(ROWS, 3, 224, 224)).astype(np.float32)}


LIBRARIES: dict[str, Callable[[str], Built]] = {
    "transformers": of_transformers,
    "timm": of_timm,
    "torchvision": of_torchvision,
}


def write(built: Built, exporter: str, path: Path) -> None:
    """Exports as users do: any batch, and texts of any length."""
    network, inputs = built
    free = {name: {0: "batch"} | ({1: "length"} if rows.dtype == np.int64 else {}) for name, rows in inputs.items()}
    tensors = tuple(torch.from_numpy(rows[:2]) for rows in inputs.values())
    names: dict[str, Any] = {"input_names": [*inputs], "output_names": ["scores"]}
    with exporting(), warnings.catch_warnings(action="ignore"):
        if exporter == "traced":
            axes = free | {"scores": {0: "batch"}}
            torch.onnx.export(network, tensors, str(path), **names, dynamic_axes=axes, opset_version=17, dynamo=False)
        else:
            shapes = tuple(free.values())
            program: Any = torch.onnx.export(
                network, tensors, **names, dynamic_shapes=shapes, dynamo=True, verbose=False
            )
            program.save(path)


def cut_up(path: Path, inputs: dict[str, np.ndarray], folder: Path) -> str:
    """What comes of cutting a network, as cells of the table."""
    backbone = prepare(load_backbone(str(path), inputs, folder), inputs)
    found = find_cutpoints(backbone, inputs)
    chosen = choose_cutpoints(found, 6)
    segments = write_segments(cut(backbone, chosen), lambda index: folder / str(index))
    apart = check_segments(backbone, [folder / str(s.index) / "model.onnx" for s in segments], inputs)
    shares = ", ".join(f"{point.share:.0%}" for point in chosen)
    return f"{len(found)} | {shares} | {apart:.1e}"


@click.command(help=__doc__)
@click.argument("names", nargs=-1, required=True, metavar="LIBRARY:NAME...")
@click.option("--exporter", type=click.Choice(["traced", "dynamo"]), default="traced", show_default=True)
def main(names: tuple[str, ...], exporter: str) -> None:
    """Prints the table."""
    click.echo("| network | exporter | cut points | compute done at those chosen | largest difference |")
    click.echo("| --- | --- | --- | --- | --- |")
    for name in names:
        library, _, kind = name.partition(":")
        if library not in LIBRARIES or not kind:
            raise click.UsageError(f"{name!r} is not of the form LIBRARY:NAME; libraries are {', '.join(LIBRARIES)}.")
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            try:
                built = LIBRARIES[library](kind)
                write(built, exporter, path)
                cells = cut_up(path, built[1], Path(folder))
            except GatiError as error:
                cells = f"{error} | |"
            except Exception as error:  # of the library or the exporter
                cells = f"not exported: {type(error).__name__} | |"
        click.echo(f"| {name} | {exporter} | {cells} |")


if __name__ == "__main__":
    main()
