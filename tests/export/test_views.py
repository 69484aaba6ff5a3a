"""Views: what is added to train on where images are few, and to nothing else."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gati.repository.chain import Tensor
from gati_export.certificates import views as module
from gati_export.certificates.splitting import Split
from gati_export.certificates.views import MOST, image_axes, with_views


def halves(count: int) -> Split:
    rows = np.arange(count)
    return Split(rows[: count // 2], rows[count // 2 : -2], rows[-2:], rows, rows)


@pytest.mark.parametrize(
    ("shape", "dtype", "axes"),
    [
        ((3, 32, 32), "FP32", (1, 2, 3)),
        ((1, 16, 24), "FP16", (1, 2, 3)),
        ((32, 32, 3), "UINT8", (3, 1, 2)),
        ((3, 4, 4), "FP32", None),
        ((64, 32, 32), "FP32", None),
        ((16, 16), "FP32", None),
        ((3, 32, 32), "INT64", None),
        ((3, -1, -1), "FP32", None),
    ],
)
def test_what_is_an_image(shape, dtype, axes) -> None:
    assert image_axes([Tensor("x", dtype, shape)]) == axes
    assert image_axes([Tensor("x", dtype, shape)] * 2) is None


@pytest.mark.parametrize(("enough", "added"), [(0, 0), (10, 0), (25, 15), (10_000, 10 * MOST)])
def test_views_are_trained_on_and_nothing_else(enough, added) -> None:
    images = np.random.default_rng(0).random((20, 3, 16, 16)).astype(np.float32)
    split = halves(20)
    samples, parts = with_views([Tensor("x", "FP32", (3, 16, 16))], {"x": images}, split, enough, seed=1)
    assert len(samples["x"]) == len(parts.groups) == 20 + added
    assert (samples["x"][:20] == images).all()
    assert parts.train.tolist() == [*range(10), *range(20, 20 + added)]
    assert (parts.tune is split.tune) and (parts.calibrate is split.calibrate)
    assert len(np.unique(parts.groups)) == 20 + added  # no view counts as one more frame of its scene


def test_a_view_is_its_image_shifted_and_perhaps_mirrored() -> None:
    image = np.zeros((2, 3, 16, 16), np.float32)
    image[0, :, 8, 7] = 1
    split = Split(np.array([0]), np.array([1]), np.array([1]), np.arange(2), np.arange(2))
    samples, _ = with_views([Tensor("x", "FP32", (3, 16, 16))], {"x": image}, split, 50, seed=0)
    spots = [np.argwhere(view[0]).tolist() for view in samples["x"][2:]]
    assert len(spots) == MOST and all(len(spot) == 1 for spot in spots)
    assert all(abs(spot[0][0] - 8) <= 2 and min(abs(spot[0][1] - 7), abs(spot[0][1] - 8)) <= 2 for spot in spots)
    assert len({tuple(spot[0]) for spot in spots}) > 3
    again, _ = with_views([Tensor("x", "FP32", (3, 16, 16))], {"x": image}, split, 50, seed=0)
    assert (again["x"] == samples["x"]).all()


def test_samples_and_views_are_in_memory_once() -> None:
    images = np.random.default_rng(0).random((60, 3, 32, 32)).astype(np.float32)
    tracemalloc.start()
    try:
        samples, _ = with_views([Tensor("x", "FP32", (3, 32, 32))], {"x": images}, halves(60), 10_000, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(samples["x"]) == 60 + 30 * MOST
    assert peak < 1.1 * samples["x"].nbytes


def test_views_take_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).random((20, 3, 16, 16)).astype(np.float32)
    given = [Tensor("x", "FP32", (3, 16, 16))], {"x": images}, halves(20), 10_000
    whole, _ = with_views(*given, seed=1)
    for room, views in ((7.5, 7), (0.5, 0)):
        monkeypatch.setattr(module, "MOST_BYTES", int(room * images[0].nbytes))
        samples, parts = with_views(*given, seed=1)
        assert len(samples["x"]) == 20 + views and len(parts.train) == 10 + views
        assert (samples["x"] == whole["x"][: 20 + views]).all()


def test_without_training_images_there_is_nothing_to_view() -> None:
    images = {"x": np.zeros((4, 3, 16, 16), np.float32)}
    split = Split(np.arange(0), np.arange(2), np.arange(2, 4), np.arange(4), np.arange(4))
    assert with_views([Tensor("x", "FP32", (3, 16, 16))], images, split, 50, seed=0) == (images, split)
