"""Cut tensors of every kind, and activations at them that a head can learn to foresee the backbone's answers by."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from scipy.stats import rankdata

from gati.inference.head import SEGMENTS_KEY, THRESHOLD
from gati.repository.chain import Chain, Segment, Tensor
from gati_export.families.blocks.layout import channel_axis
from gati_export.families.family import Lesson, Lookup
from gati_export.learning.headfile import stamp

CLASSES = 6
OUTPUT = Tensor("output", "FP32", (CLASSES,))
CUTS = {
    "image": Tensor("relu_2", "FP32", (8, 16, 16)),
    "overlapping_windows": Tensor("relu", "FP32", (6, 9, 7)),
    "channels_last": Tensor("nhwc", "FP32", (7, 7, 12)),
    "any_size": Tensor("linear", "FP32", (8, -1, -1)),
    "tokens": Tensor("head/linear", "FP32", (-1, 16)),
    "signal": Tensor("signal", "FP32", (3, -1)),
    "vector": Tensor("vector", "FP32", (24,)),
    "video": Tensor("video", "FP32", (5, 3, 4, 4)),
    "half": Tensor("half", "FP16", (4, 4, 4)),
    "double": Tensor("double", "FP64", (12,)),
}


class Course(NamedTuple):
    """Activations [n, ...], the backbone's logits [n, classes], and the run of each sample, [n]."""

    hidden: np.ndarray
    logits: torch.Tensor
    groups: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.logits.argmax(1).numpy()

    def lesson(self, lookup: Lookup) -> Lesson:
        return Lesson(lookup.reduce(torch.from_numpy(self.hidden).float()).numpy(), self.logits, self.groups)

    def part(self, start: int, end: int) -> Course:
        return Course(self.hidden[start:end], self.logits[start:end], self.groups[start:end])


def hidden_rows(cut: Tensor, rows: int, seed: int = 0) -> np.ndarray:
    """Noise at a cut point."""
    shape = (rows, *(5 if size < 0 else size for size in cut.shape))
    return np.random.default_rng(seed).normal(size=shape).astype(cut.numpy)


def course(cut: Tensor, count: int, seed: int, run: int = 1) -> Course:
    """Samples of a task: each class has a pattern over the channels, under noise.

    The last two classes are faint, and the backbone itself is not sure of them: no head can foresee all of its answers.

    Args:
        cut: The cut tensor.
        count: How many samples.
        seed: Of the samples; the task is the same for all.
        run: How many samples in a row are frames of one scene.
    """
    shape = [5 if size < 0 else size for size in cut.shape]
    along = [size if axis == channel_axis(cut) else 1 for axis, size in enumerate(shape)]
    patterns = np.random.default_rng(99).normal(size=(CLASSES, *along)) * 2
    random = np.random.default_rng(seed)
    scene = np.arange(count) // run
    scenes = scene[-1] + 1
    label = random.integers(0, CLASSES, scenes)
    strength = np.where(label < CLASSES - 2, random.uniform(0.6, 1.0, scenes), random.uniform(0.0, 0.3, scenes))
    picture = strength.reshape(-1, *[1] * len(shape)) * patterns[label] + random.normal(size=(scenes, *shape))
    logits = 8 * strength[:, None] * np.eye(CLASSES)[label] + random.normal(size=(scenes, CLASSES)) / 2
    shaking = 0.1 if run > 1 else 0.0
    hidden = picture[scene] + shaking * random.normal(size=(count, *shape))
    said = logits[scene] + shaking * random.normal(size=(count, CLASSES))
    return Course(hidden.astype(cut.numpy), torch.from_numpy(said.astype(np.float32)), scene)


def auc(score: np.ndarray, right: np.ndarray) -> float:
    """The chance that a right answer scores higher than a wrong one; ties count half."""
    ranks, hits, misses = rankdata(score), int(right.sum()), int((~right).sum())
    return float((ranks[right].sum() - hits * (hits + 1) / 2) / (hits * misses))


def one_cut_chain(cut: Tensor, output: Tensor = OUTPUT) -> Chain:
    """A chain with this cut point and no files."""
    x = Tensor("x", "FP32", (4,))
    segments = (Segment(0, ("x",), cut, "0" * 64, 0.5), Segment(1, (cut.name,), output, "1" * 64, 1.0))
    return Chain("m", "inline", (x,), output, segments, 0.01, 0.05, 5)


def fitted_to(chain: Chain, model: bytes) -> bytes:
    """A head's file, stamped as one that was trained behind this chain's segments."""
    return stamp(model, {SEGMENTS_KEY: json.dumps(list(chain.digests()))})


def threshold_of(model: bytes) -> float:
    """The threshold inside a head's file."""
    tensors = onnx.ModelProto.FromString(model).graph.initializer
    return next(float(numpy_helper.to_array(tensor)) for tensor in tensors if tensor.name == THRESHOLD)
