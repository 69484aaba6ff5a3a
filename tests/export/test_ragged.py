"""Rows that differ in shape: kept together, and run with those that are alike."""

from __future__ import annotations

import numpy as np
import pytest

from gati_export.samples.ragged import (
    Samples,
    apart,
    batches,
    each,
    extremes,
    few,
    gathered,
    is_ragged,
    joined,
    rows_at,
    shapes,
    typical,
    varying,
)

LENGTHS = 3, 5, 3, 4, 5, 3


@pytest.fixture
def texts() -> dict[str, np.ndarray]:
    """Six texts, each with a mask and a number of its own."""
    ids = [np.full(length, place) for place, length in enumerate(LENGTHS)]
    return {"ids": gathered(ids), "mask": gathered([np.ones_like(row) for row in ids]), "loudness": np.arange(6.0)}


def test_rows_of_one_shape_are_an_array() -> None:
    rows = gathered([np.zeros((2, 3)), np.ones((2, 3))])
    assert rows.shape == (2, 2, 3) and not is_ragged(rows)
    assert shapes(rows) == {(2, 3)}


@pytest.mark.parametrize("other", [(2, 4), (3, 3), (2, 3, 1)])
def test_rows_of_several_are_objects_even_where_they_share_a_dimension(other: tuple[int, ...]) -> None:
    rows = gathered([np.zeros((2, 3)), np.ones(other)])
    assert rows.shape == (2,) and is_ragged(rows)
    assert shapes(rows) == {(2, 3), other}
    assert [row.shape for row in apart(np.zeros((4, 2, 3)))] == [(2, 3)] * 4


def test_parts_are_joined_whatever_they_are(texts: dict[str, np.ndarray]) -> None:
    assert joined([np.zeros((2, 3)), np.ones((1, 3))]).shape == (3, 3)
    both = joined([np.zeros((2, 3), np.int64), texts["ids"], np.zeros((1, 7), np.int64)])
    assert [row.shape[0] for row in both] == [3, 3, *LENGTHS, 7]


def test_each_row_is_changed_by_itself(texts: dict[str, np.ndarray]) -> None:
    assert [row.tolist() for row in each(texts["ids"], lambda rows: rows.sum(axis=1, keepdims=True))] == [
        [0], [5], [6], [12], [20], [15],
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 32])
@pytest.mark.parametrize("rows", [range(6), [5, 1, 0, 4], [3]])
def test_batches_are_of_one_shape_and_hold_each_place_once(
    texts: dict[str, np.ndarray], rows: Samples, size: int
) -> None:
    index = np.array(rows)
    seen = []
    for places in batches(texts, index, size):
        batch = rows_at(texts, index[places])
        assert 1 <= len(places) <= size
        assert batch["ids"].shape == batch["mask"].shape == (len(places), LENGTHS[index[places[0]]])
        np.testing.assert_array_equal(batch["ids"][:, 0], index[places])
        np.testing.assert_array_equal(batch["loudness"], index[places])
        seen += places.tolist()
    assert sorted(seen) == list(range(len(index)))


def test_batches_are_as_large_as_they_can_be(texts: dict[str, np.ndarray]) -> None:
    assert [places.tolist() for places in batches(texts, np.arange(6), 2)] == [[0, 2], [5], [1, 4], [3]]
    plain = {"loudness": texts["loudness"]}
    assert [places.tolist() for places in batches(plain, np.arange(6), 4)] == [[0, 1, 2, 3], [4, 5]]


def test_what_varies_is_seen(texts: dict[str, np.ndarray]) -> None:
    assert varying(texts["ids"]) == [1] and varying(texts["loudness"]) == []
    assert varying(gathered([np.zeros((3, 4, 8)), np.zeros((3, 4, 9))])) == [3]
    assert [rows["ids"].shape for rows in extremes(texts)] == [(1, 3), (1, 5)]
    assert extremes({"loudness": texts["loudness"]}) == []


def test_rows_are_measured_on_one_of_median_size(texts: dict[str, np.ndarray]) -> None:
    assert typical(texts).tolist() == [3], "of 3, 3, 3, 4, 5, 5"
    assert typical({"loudness": texts["loudness"]}).tolist() == [0, 1, 2, 3, 4, 5]
    assert few(texts, 3)["ids"].tolist() == [[3] * 4] * 3
    assert few({"loudness": texts["loudness"]}, 8)["loudness"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
