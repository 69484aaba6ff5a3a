from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_client.workload import film, frames, hot, iid, jitter

CLASSES = np.repeat(np.arange(10), 50)
seeds = st.integers(0, 2**32 - 1)


@given(st.integers(1, 40), st.integers(0, 200), seeds)
def test_iid_uses_the_pool_up_before_it_repeats(pool: int, n: int, seed: int) -> None:
    sequence = iid(pool, n, seed)
    assert sequence.shape == (n,) and sequence.dtype == np.int64
    for start in range(0, n, pool):
        part = sequence[start : start + pool]
        assert len(set(part.tolist())) == len(part)
        assert set(part.tolist()) <= set(range(pool))


def test_iid_with_repeats_draws_independently() -> None:
    assert len(set(iid(100, 100, 0, repeats=True).tolist())) < 100


@settings(deadline=None)
@given(st.integers(1, 4), st.floats(0.5, 1), st.integers(50, 900), seeds)
def test_hot_classes_carry_their_share_for_their_dwell_time(k: int, share: float, dwell: int, seed: int) -> None:
    asked = CLASSES[hot(CLASSES, 3 * dwell, hot=k, share=share, dwell=dwell, seed=seed)]
    before: set[int] = set()
    for start in range(0, len(asked), dwell):
        period = asked[start : start + dwell]
        counts = np.bincount(period, minlength=10)
        top = set(np.argsort(-counts)[:k].tolist())
        slack = 6 * np.sqrt(0.25 / dwell)  # six standard deviations, at most
        assert counts[list(top)].sum() / dwell >= share - slack
        if share > 0.9 and dwell >= 500:
            assert not top & before, "the next hot classes are others"
            assert counts[list(top)].sum() / dwell <= share + slack
            assert counts[list(top)].min() >= dwell * share / k * 0.5
        before = top


@given(seeds)
@settings(deadline=None)
def test_hot_uses_a_class_up_before_it_repeats(seed: int) -> None:
    sequence = hot(CLASSES, 400, hot=2, share=0.9, dwell=100, seed=seed)
    for c in range(10):
        of_class = sequence[CLASSES[sequence] == c]
        for start in range(0, len(of_class), 50):
            part = of_class[start : start + 50]
            assert len(set(part.tolist())) == len(part)


def test_hot_where_other_classes_do_not_suffice() -> None:
    classes = np.array([5, 5, 9, 9, 11])
    assert set(hot(classes, 100, hot=2, share=1, dwell=10, seed=0).tolist()) == set(range(5))
    assert set(hot(classes, 100, hot=3, share=0.1, dwell=10, seed=0).tolist()) == set(range(5))


@pytest.mark.parametrize("options", [{"hot": 0}, {"hot": 11}, {"share": 1.1}, {"share": -0.1}, {"dwell": 0}, {"n": -1}])
def test_hot_refuses_what_makes_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"`(hot|share|dwell|n)`.*\.$"):
        hot(CLASSES, **{"n": 10, "seed": 0, **options})  # type: ignore[arg-type]


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="`pool_size` must be at least 1, not 0"):
        iid(0, 1, 0)
    with pytest.raises(ValueError, match="`classes` must be at least 1"):
        hot(np.array([], int), 1, seed=0)


@pytest.mark.parametrize("repeats", [False, True])
def test_a_seed_is_a_sequence(repeats: bool) -> None:
    for make in (
        lambda seed: iid(100, 300, seed, repeats=repeats),
        lambda seed: hot(CLASSES, 300, dwell=50, seed=seed, repeats=repeats),
        lambda seed: frames(100, 300, run=7, seed=seed, repeats=repeats)[0],
    ):
        np.testing.assert_array_equal(make(1), make(1))
        assert (make(1) != make(2)).any()


@given(st.integers(1, 20), st.integers(0, 100), st.integers(1, 40), seeds)
def test_frames_show_each_scene_for_a_run(pool: int, n: int, run: int, seed: int) -> None:
    index, frame = frames(pool, n, run=run, seed=seed)
    assert index.shape == frame.shape == (n,)
    for start in range(0, n, run):
        assert len(set(index[start : start + run].tolist())) == 1
        assert frame[start : start + run].tolist() == list(range(len(frame[start : start + run])))


def test_jitter_walks_within_two_pixels_and_by_one() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((1, 21, 21), np.float32)
    image[0, 10, 10] = 0.9
    places = [
        np.array(np.unravel_index(np.argmax(picture[0]), (21, 21)))
        for picture in itertools.islice(jitter(image, rng), 300)
    ]
    assert places[0].tolist() == [10, 10]
    assert np.abs(np.array(places) - 10).max() == 2
    assert np.abs(np.diff(places, axis=0)).max() == 1


def test_jitter_flickers_and_is_noisy_by_as_much_as_it_says() -> None:
    image = np.full((3, 32, 32), 0.5, np.float32)
    pictures = np.stack(list(itertools.islice(jitter(image, np.random.default_rng(0)), 400)))
    assert pictures.dtype == np.float32 and pictures.min() >= 0 and pictures.max() <= 1
    assert pictures.mean((1, 2, 3)).std() / 0.5 == pytest.approx(0.05, rel=0.15)
    assert pictures.std((1, 2, 3)).mean() * 255 == pytest.approx(2, rel=0.1)


def test_film_begins_each_scene_anew() -> None:
    pool = np.stack([np.full((1, 4, 4), value, np.float32) for value in (0.2, 0.8)])
    index, frame = frames(2, 10, run=5, seed=0)
    pictures = list(film(pool, index, frame, seed=0))
    assert len(pictures) == 10
    for i, picture in zip(index, pictures, strict=True):
        assert picture.mean() == pytest.approx(pool[i].mean(), rel=0.3)
    assert len({picture.tobytes() for picture in pictures}) == 10, "no frame is an exact repeat"
