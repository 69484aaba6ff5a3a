"""Scenes: found where cameras take turns by the dozen, or are seldom seen, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from gati_client.workload import film, hot
from gati_export.certificates.runs import find_runs
from gati_export.demo.digits import pools, views
from gati_export.samples.ragged import gathered


def in_turns(cameras: int, stay: int, rounds: int, *, seed: int = 0, others: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What cameras show in turns, each with others between, and the scene of each, counted from 0; others have -1."""
    random = np.random.default_rng(seed)
    rows, truth = [], []
    for turn in range(rounds):
        if turn % stay == 0:
            shown = 2 * random.normal(size=(cameras, 16))
        frames = shown + 0.02 * random.normal(size=shown.shape)
        between = 2 * random.normal(size=(cameras, others, 16))
        rows.append(np.concatenate([frames[:, None], between], axis=1).reshape(-1, 16))
        scenes = turn // stay * cameras + np.arange(cameras)
        truth.append(np.concatenate([scenes[:, None], np.full((cameras, others), -1)], axis=1).reshape(-1))
    return np.concatenate(rows).astype(np.float32), np.concatenate(truth)


def digits(cameras: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of cameras that take turns at random, each showing two digits for 30 frames, and the digit of each."""
    pool = pools()[1]
    random = np.random.default_rng(seed)
    shown = random.permutation(len(pool.labels))[: 2 * cameras].reshape(cameras, 2)
    scenes = views(pool, np.arange(len(pool.labels)), seed).clip(0, 1)
    films = [list(film(scenes, np.repeat(each, 30), np.tile(np.arange(30), 2), seed + each[0])) for each in shown]
    turns = random.permutation(np.repeat(np.arange(cameras), 60))
    place = [int((turns[:at] == turn).sum()) for at, turn in enumerate(turns)]
    images = [films[turn][at] for turn, at in zip(turns, place, strict=True)]
    return np.stack(images), np.array([shown[turn, at // 30] for turn, at in zip(turns, place, strict=True)])


def pieces(found: np.ndarray, truth: np.ndarray) -> int:
    """Into how many groups scenes fall."""
    return np.unique([found, truth], axis=1).shape[1]


@pytest.mark.parametrize(("cameras", "stay", "rounds"), [(24, 60, 250), (24, 30, 120), (100, 20, 80)])
def test_cameras_that_take_turns_by_the_dozen(cameras, stay, rounds):
    rows, truth = in_turns(cameras, stay, rounds)
    found, scenes = find_runs({"x": rows}), truth.max() + 1
    assert 0.95 * scenes <= found.max() + 1 <= 1.05 * scenes
    assert found[0] == 0 and set(found) == set(range(found.max() + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_cameras_that_take_turns_at_random(dtype):
    images, truth = digits(30, seed=1)
    found = find_runs({"image": images if dtype == np.float32 else (images * 255).round().astype(dtype)})
    assert 0.9 * 60 <= found.max() + 1 <= pieces(found, truth) <= 2 * 60


@pytest.mark.parametrize(("others", "stay"), [(24, 60), (24, 300), (79, 40)])
def test_a_camera_that_is_seldom_seen(others, stay):
    rows, truth = in_turns(1, stay, 5 * stay, others=others)
    found = find_runs({"x": rows})
    camera = truth >= 0
    assert pieces(found[camera], truth[camera]) <= 2 * 5
    assert len(np.unique(found[~camera])) > 0.9 * (~camera).sum(), "others stay by themselves"


def test_one_wild_value_hides_no_scene():
    rows, truth = in_turns(24, 60, 250)
    rows[3000, 0] = 1e20
    assert find_runs({"x": rows}).max() <= 1.05 * (truth.max() + 1)


@pytest.mark.parametrize("padded", [True, False])
def test_conversations_that_take_turns(padded):
    random = np.random.default_rng(0)
    steps = np.add.outer(np.arange(60), random.integers(0, 20, 30))  # each of thirty begins anew after twenty
    truth = (100 * np.arange(30) + steps // 20).reshape(-1)
    words = dict(zip(np.unique(truth), random.integers(1, 5000, (len(np.unique(truth)), 32)), strict=True))
    texts = [words[talk][: 12 + step] for talk, step in zip(truth, (steps % 20).reshape(-1), strict=True)]
    samples = {"ids": gathered(texts)}
    if padded:
        samples = {"ids": np.stack([np.pad(text, (0, 32 - len(text))) for text in texts])}
    found = find_runs(samples)
    assert pieces(found, truth) == len(words) and 0.9 * len(words) <= found.max() + 1


@pytest.mark.parametrize(("dwell", "repeats"), [(500, True), (1000, False), (2000, False)])
def test_popular_digits_are_no_scenes(dwell, repeats):
    pool = pools()[1]
    index = hot(pool.labels, 4000, seed=dwell, dwell=dwell, repeats=repeats)
    assert find_runs({"image": views(pool, index, seed=2)}).max() == 3999
    assert find_runs({"image": views(pool, np.arange(len(pool.labels)), seed=2)[index]}).max() == 3999


def test_copies_that_come_apart_are_no_scenes():
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 16)).astype(np.float32)
    popular = np.concatenate([40 * part + random.integers(0, 40, 400) for part in range(10)])
    assert find_runs({"x": rows[popular]}).max() == 3999


@pytest.mark.parametrize("width", [1, 3, 16])
def test_numbers_that_drift_are_no_scenes(width):
    drift = np.sin(np.arange(4000) / 300)[:, None]
    assert find_runs({"x": np.random.default_rng(0).normal(size=(4000, width)) + drift}).max() == 3999


def test_too_few_samples_hold_no_scenes():
    rows, _ = in_turns(24, 10, 10)
    assert find_runs({"x": rows}).max() == 239
