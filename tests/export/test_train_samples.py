"""Extra samples: more to train on, and nothing that tunes or calibrates."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_export.certificates.splitting import Split, split
from gati_export.certificates.train_samples import with_train_samples


def some(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, 3)).astype(np.float32),
        "ids": random.integers(0, 5, (rows, 2)),
    }


def picked(samples: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in samples.items()}


def rows_of(samples: dict[str, np.ndarray], index: np.ndarray) -> set[tuple[bytes, ...]]:
    return {tuple(array[row].tobytes() for array in samples.values()) for row in index}


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 80), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_extra_samples_train_and_copies_of_held_out_ones_are_left_out(count: int, known: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = some(count, seed)
    parts = split(samples, np.arange(count) // 3)
    copies = random.integers(0, count, known)
    new = some(15, seed + 1)
    more = {name: np.concatenate([picked(samples, copies)[name], new[name]]) for name in samples}
    order = random.permutation(known + 15)
    joined, joint = with_train_samples(samples, parts, picked(more, order))

    added = np.arange(count, len(joined["x"]))
    assert len(added) == 15 + np.isin(copies, parts.train).sum()
    assert rows_of(joined, added) >= rows_of(new, np.arange(15))
    held_out = np.concatenate([parts.tune, parts.calibrate])
    assert not rows_of(joined, joint.train) & rows_of(samples, held_out)
    np.testing.assert_array_equal(joint.train, np.concatenate([parts.train, added]))
    np.testing.assert_array_equal(joint.tune, parts.tune)
    np.testing.assert_array_equal(joint.calibrate, parts.calibrate)
    np.testing.assert_array_equal(joint.groups[:count], parts.groups)
    assert len(np.unique(joint.groups[count:])) == len(added)  # each is its own
    assert not set(joint.groups[count:]) & set(parts.groups)
    np.testing.assert_array_equal(joint.fresh.turns, parts.fresh.turns)
    for name, array in samples.items():
        np.testing.assert_array_equal(joined[name][:count], array)
        assert joined[name].dtype == array.dtype and len(joined[name]) == len(joint.groups)


def test_nothing_new_changes_nothing() -> None:
    samples = some(10, 0)
    every = np.arange(10)
    parts = Split(every[:4], every[4:6], every[6:], every, every)
    joined, joint = with_train_samples(samples, parts, picked(samples, every[4:]))
    assert len(joined["x"]) == 10
    np.testing.assert_array_equal(joint.train, parts.train)
    np.testing.assert_array_equal(joint.groups, every)


def test_a_sample_is_the_same_only_in_all_of_its_inputs() -> None:
    samples = some(4, 0)
    every = np.arange(4)
    parts = Split(every[:1], every[1:2], every[2:], every, every)
    other = {"x": samples["x"][3:], "ids": samples["ids"][3:] + 1}
    assert len(with_train_samples(samples, parts, other)[0]["x"]) == 5
    assert len(with_train_samples(samples, parts, picked(samples, every[3:]))[0]["x"]) == 4
