"""Splitting: groups stay together, nothing else changes, and runs are found where there are some and only there."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_client.workload import film, frames, hot
from gati_export.certificates.certificate import certify
from gati_export.certificates.runs import find_runs
from gati_export.certificates.splitting import MARK, Split, digests, fingerprint, marks, split
from gati_export.demo.digits import pools, views
from gati_export.samples.ragged import gathered, joined
from gati_export.terms import Terms

RUN = 30


@pytest.fixture(scope="module")
def scenes() -> np.ndarray:
    """Digits, each seen once, [1097, 1, 64, 64] in 0..1."""
    theirs = pools()[1]
    return views(theirs, np.arange(len(theirs.labels)), seed=2).clip(0, 1)


def camera(scenes: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a camera that shows so many scenes, and the scene of each."""
    index, frame = frames(len(scenes), RUN * count, seed=seed, run=RUN)
    return np.stack(list(film(scenes, index, frame, seed))), np.cumsum(frame == 0) - 1


def exactly_found(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true runs that were found as they are, and with nothing else in them."""
    pairs, counts = np.unique([found, truth], axis=1, return_counts=True)
    whole = (counts == np.bincount(found)[pairs[0]]) & (
        counts == np.unique(truth, return_counts=True)[1][_rank(pairs[1])]
    )
    return whole.sum() / len(np.unique(truth))


def _rank(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.randoms())
def test_copies_are_dealt_out_to_the_part_of_their_input_and_those_behind_it_in_any_order(values, random):
    samples = {"a": np.array(values)[:, None], "b": np.array(values)[:, None] * 2.0}
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = {name: array[order] for name, array in samples.items()}
    parts, again = split(samples), split(shuffled)
    used = np.concatenate([parts.train, parts.tune, parts.calibrate])
    assert len(np.unique(used)) == len(used)
    for part in ("train", "tune", "calibrate"):
        first, second = getattr(parts, part), getattr(again, part)
        assert sorted(samples["a"][first, 0]) == sorted(shuffled["a"][second, 0])
        assert fingerprint(samples, first) == fingerprint(shuffled, second)
    first = split({"a": np.unique(values)[:, None], "b": np.unique(values)[:, None] * 2.0})
    own = {value: part for part in range(3) for value in np.unique(values)[parts_of(first)[part]]}
    for part, rows in enumerate(parts_of(parts)):
        assert all(own[values[row]] <= part for row in rows)
    for value in set(values):
        assert samples["a"][used, 0].tolist().count(value) >= 1
    assert np.array_equal(np.equal.outer(parts.inputs, parts.inputs), np.equal.outer(values, values))
    assert np.array_equal(parts.groups, np.arange(len(values)))
    fresh = samples["a"][parts.calibrate[parts.fresh.turns == 1], 0].tolist()
    assert sorted(fresh) == sorted(value for value in set(values) if own[value] == 2)


def parts_of(split: Split) -> tuple[np.ndarray, ...]:
    return split.train, split.tune, split.calibrate


@pytest.mark.parametrize("extra", [False, True])
def test_copies_stay_together_where_inputs_that_count_once_certify_enough(extra):
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(1500), 4))
    parts = split({"x": values[:, None]}, extra=extra, terms=Terms(epsilon=0.05))
    assert np.array_equal(np.equal.outer(parts.groups, parts.groups), np.equal.outer(values, values))
    assert sorted(np.concatenate(parts_of(parts))) == list(range(6000)) and (parts.fresh.turns > 0).all()
    held_out = len(parts.calibrate)
    verdict = certify(np.zeros((1, held_out), bool), parts.groups[parts.calibrate], 0.05, 0.05, parts.fresh)
    assert verdict is not None and (verdict.n, verdict.observations) == (held_out, held_out // 4)
    assert "no training" not in verdict.method, "none of them is any other's copy"
    again = split(
        {"x": values[values < 1000][:, None]}, extra=extra, terms=Terms(epsilon=0.05)
    )  # a part stays a content's own
    for part, later in zip(parts_of(parts), parts_of(again), strict=True):
        assert set(values[values < 1000][later]) == {value for value in values[part] if value < 1000}


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (np.full(200, 4), "too few inputs"),
        (np.array([400, *np.full(1400, 4)]), "one is popular, and may be of those that do not calibrate"),
    ],
)
def test_copies_are_dealt_out_where_they_would_leave_too_little(times, why):
    parts = split({"x": np.repeat(np.arange(len(times)), times)[:, None]}, terms=Terms(epsilon=0.05))
    assert np.array_equal(parts.groups, np.arange(times.sum())), why


def test_what_is_asked_again_and_again_is_in_all_parts_as_often_as_in_all():
    random = np.random.default_rng(0)
    popular = np.repeat(np.arange(20), 200)
    values = random.permutation(np.concatenate([popular, np.arange(1000, 5000)]))
    parts = split({"x": values[:, None]})
    shares_of = {value: [(values[rows] == value).sum() / 200 for rows in parts_of(parts)] for value in range(20)}
    trained = [shares for shares in shares_of.values() if shares[0]]
    assert 6 <= len(trained) <= 18
    for shares in shares_of.values():
        assert shares[2] == pytest.approx(0.25, abs=0.02)
    for shares in trained:
        np.testing.assert_allclose(shares, [0.60, 0.15, 0.25], atol=0.02)
    once = [(values[rows] >= 1000).sum() / 4000 for rows in parts_of(parts)]
    np.testing.assert_allclose(once, [0.60, 0.15, 0.25], atol=0.03)
    fresh = values[parts.calibrate[parts.fresh.turns == 1]]
    alone = {value for value, (train, tune, _) in shares_of.items() if train == tune == 0}
    assert len(np.unique(fresh)) == len(fresh) and {value for value in fresh if value < 20} == alone


def test_rows_of_other_shapes_are_other_inputs():
    blank = gathered([np.zeros((3, 4, 8)), np.zeros((3, 8, 4)), np.zeros((3, 4, 8))])
    assert split({"x": blank}).inputs.tolist() == [0, 1, 0]


def test_a_text_is_the_same_whatever_it_is_padded_to():
    texts = [[5, 6, 7], [5, 6, 7, 0, 0], [5, 6, 7, 0], [5, 6], [5, 6, 7, 0, 0]]
    masks = [[1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0], [1, 1], [1, 1, 1, 1, 0]]
    ids, mask = (gathered([np.array(row) for row in rows]) for rows in (texts, masks))
    assert split({"ids": ids, "mask": mask}).inputs.tolist() == [0, 0, 0, 1, 2]
    assert split({"ids": ids}).inputs.tolist() == [0, 1, 2, 3, 1], "nothing says that it is padding"
    flags = gathered([np.array(row) for row in ([1, 0, 1, 0], [1, 0, 1], [0, 0], [0])])
    assert split({"flags": flags}).inputs.tolist() == [0, 1, 2, 3], "these are no masks"


def test_each_content_draws_its_part_by_its_digest():
    samples = {"x": np.arange(500, dtype=np.float32)[:, None]}
    digests = [hashlib.sha256(row.tobytes() + b"(1,)").digest() for row in samples["x"]]
    keyed = [hashlib.blake2b(digest, key=b"secret", digest_size=32).digest() for digest in digests]
    drawn = [int.from_bytes(digest[:8]) / 2**64 for digest in keyed]
    parts = split(samples, np.arange(500), terms=Terms(key=b"secret"))
    assert parts.train.tolist() == [i for i, share in enumerate(drawn) if share < 0.6]
    assert parts.calibrate.tolist() == [i for i, share in enumerate(drawn) if share >= 0.75]
    assert np.array_equal(parts.groups, np.arange(500)) and (parts.fresh.turns == 1).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 15)), min_size=1, max_size=60))
def test_runs_with_an_input_in_common_go_to_one_part_unless_it_is_in_many(rows):
    contents, runs = np.array(rows).T
    runs = np.concatenate([runs, [99, 99]])  # there are runs
    contents = np.concatenate([contents, [98, 99]])
    parts = split({"x": contents[:, None]}, runs)
    groups = np.arange(len(runs))
    rare = {label for label in contents if len(set(runs[contents == label])) < 5}
    for _ in runs:  # the slow way: spread the least name until nothing changes
        for labels, joining in ((contents, rare), (runs, set(runs))):
            for label in joining:
                groups[labels == label] = groups[labels == label].min()
    assert np.array_equal(np.equal.outer(parts.groups, parts.groups), np.equal.outer(groups, groups))
    part = np.full(len(runs), -1)
    for which, index in enumerate(parts_of(parts)):
        part[index] = which
    assert all(len(set(part[groups == group])) == 1 for group in groups)
    held_out = parts.calibrate[parts.fresh.turns == 1]
    assert not set(contents[held_out]) & set(contents[np.concatenate([parts.train, parts.tune])])


def test_an_input_of_many_runs_does_not_decide_where_they_go():
    """A blank picture begins all runs, and its digest is the least of all, as that of one in many may be."""
    blank = min(range(10_000, 10_200), key=lambda value: hashlib.sha256(np.int64(value).tobytes()).digest()[8:])
    contents = np.stack([np.full(2000, blank), np.arange(2000), np.arange(2000, 4000)], 1).reshape(-1)
    parts, later = (split({"x": contents[start:, None]}, np.arange(6000)[start:] // 3) for start in (0, 300))
    np.testing.assert_allclose([len(part) / 6000 for part in parts_of(parts)], [0.60, 0.15, 0.25], atol=0.04)
    trained = set(contents[parts.train]) - {blank}
    assert not trained & set(contents[300:][np.concatenate([later.tune, later.calibrate])])


@pytest.mark.parametrize(
    ("size", "extra", "expected"),
    [
        (1, False, [0.60, 0.15, 0.25]),
        (10, False, [0.60, 0.15, 0.25]),
        (1, True, [0.00, 0.30, 0.70]),
        (10, True, [0.10, 0.27, 0.63]),  # what varies within a run is to be seen in runs alone
    ],
)
def test_parts_have_their_shares_whatever_the_size_of_groups(size, extra, expected):
    parts = split({"x": np.arange(4000 * size)[:, None]}, np.arange(4000 * size) // size, extra=extra)
    shares = [len(part) / (4000 * size) for part in (parts.train, parts.tune, parts.calibrate)]
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_fingerprint_is_of_the_rows_and_their_number():
    samples = {"x": np.arange(4000)[:, None]}
    assert len(fingerprint(samples, np.arange(2000))) == 64
    assert fingerprint(samples, np.array([1, 2])) != fingerprint(samples, np.array([1, 3]))
    assert fingerprint(samples, np.array([1])) != fingerprint(samples, np.array([1, 1]))


def independent(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Samples drawn one by one, of kinds in which some are alike by chance."""
    random = np.random.default_rng(seed)
    if kind == "digits":
        pool = pools()[1]
        return {"image": views(pool, random.integers(0, len(pool.labels), 2000), seed)}
    if kind == "popular digits":
        pool = pools()[1]
        return {"image": views(pool, hot(pool.labels, 2400, seed=seed, dwell=800), seed)}
    if kind == "clusters":
        return {"x": random.normal(size=(12, 16))[random.integers(0, 12, 1600)] * 3 + random.normal(size=(1600, 16))}
    if kind == "one number":
        return {"x": random.normal(size=(1000, 1))}
    if kind == "categories":
        return {"x": random.integers(0, 4, (1000, 5))}
    return {"ids": random.zipf(1.3, (1000, 20)).clip(max=30_000), "length": random.random((1000, 1), np.float32)}


def test_texts_draw_the_same_part_whatever_texts_there_are_beside_them():
    """What trained heads must not calibrate later, among texts of other lengths than those that it came with."""
    random = np.random.default_rng(0)
    texts = random.integers(1, 30_000, (1000, 16))
    padded = np.pad(texts, ((0, 0), (0, 8)))
    ones = np.ones_like(texts)
    alone = {"ids": texts, "mask": ones}
    among = {
        "ids": joined([texts, random.integers(1, 30_000, (100, 24))]),
        "mask": joined([ones, np.ones((100, 24), int)]),
    }
    filled = {"ids": padded, "mask": np.pad(ones, ((0, 0), (0, 8)))}
    first = split(alone)
    for other in (split(among), split(filled)):
        assert other.way == first.way
        for part in ("train", "tune", "calibrate"):
            known = getattr(other, part)
            np.testing.assert_array_equal(known[known < 1000], getattr(first, part))


@pytest.mark.parametrize("size", [1, 3], ids=["samples", "runs"])
def test_what_was_given_to_train_on_alone_certifies_nothing_later(size):
    random = np.random.default_rng(0)
    given, served = (random.normal(size=(300, 4)) for _ in range(2))
    terms = Terms(key=b"a network's")
    terms = replace(terms, trained=marks({"x": given}, range(300), terms))
    assert len(terms.trained) == 300 and {len(mark) for mark in terms.trained} == {MARK}
    both = {"x": np.concatenate([given, served])[random.permutation(600)]}
    runs = np.arange(600) // size
    parts = split(both, runs, terms=terms)
    known = set(digests({"x": given}, range(300)))
    assert not known & set(digests(both, parts.held_out))
    assert len(parts.calibrate) > 10
    for part in (parts.train, parts.tune, parts.calibrate):
        assert not set(runs[part]) & set(runs[np.setdiff1d(np.arange(600), part)]), "a run came apart"
    before = split(both, runs, terms=replace(terms, trained=frozenset()))
    assert set(parts.calibrate) < set(before.calibrate)


@pytest.mark.parametrize("kind", ["digits", "popular digits", "clusters", "one number", "categories", "text"])
@pytest.mark.parametrize("seed", range(4))
def test_independent_samples_are_each_their_own_run(kind, seed):
    samples = independent(kind, seed)
    assert np.array_equal(find_runs(samples), np.arange(len(samples[min(samples)])))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_frames_of_a_scene_are_a_run(scenes, dtype):
    images, truth = camera(scenes, 120, seed=0)
    found = find_runs({"image": images if dtype == np.float32 else (images * 255).round().astype(dtype)})
    assert exactly_found(found, truth) >= 0.95
    assert split({"image": images}, found).together == pytest.approx(np.bincount(truth)[truth].mean(), rel=0.1)
    assert split({"image": images}).together == 1
    assert found[0] == 0 and set(found) == set(range(found.max() + 1))


@pytest.mark.parametrize("turns", ["one after the other", "at random"])
def test_two_cameras_on_one_server_are_told_apart(scenes, turns):
    (first, ours), (second, theirs) = camera(scenes[:500], 50, seed=1), camera(scenes[500:], 50, seed=2)
    which = np.arange(len(ours) * 2) % 2
    if turns == "at random":
        which = np.random.default_rng(0).permutation(which)
    images, truth = np.empty((2 * len(first), *first.shape[1:]), np.float32), np.empty(2 * len(ours), int)
    images[which == 0], images[which == 1] = first, second
    truth[which == 0], truth[which == 1] = ours, theirs + 1000
    assert exactly_found(find_runs({"image": images}), truth) >= 0.9


def test_a_camera_among_other_traffic(scenes):
    random = np.random.default_rng(0)
    images, truth = camera(scenes[:500], 30, seed=1)
    others = scenes[random.integers(500, len(scenes), 600)]
    place = np.sort(random.permutation(len(images) + 600)[: len(images)])
    mixed = np.empty((len(images) + 600, 1, 64, 64), np.float32)
    rest = np.setdiff1d(np.arange(len(mixed)), place)
    mixed[place], mixed[rest] = images, others
    found = find_runs({"image": mixed})
    assert exactly_found(found[place], truth) >= 0.9
    assert len(np.unique(found[rest])) > 0.85 * 600


@pytest.mark.parametrize("padded", [True, False])
def test_texts_that_grow_word_by_word_are_runs(padded):
    random = np.random.default_rng(0)
    texts = []
    for _ in range(40):
        words = random.integers(1, 5000, 32)
        texts += [words[: 12 + step] for step in range(20)]
    if padded:
        ids = np.stack([np.pad(text, (0, 32 - len(text))) for text in texts])
        samples = {"ids": ids, "mask": (ids > 0).astype(np.int32)}
    else:
        samples = {"ids": gathered(texts), "mask": gathered([np.ones(len(text), np.int32) for text in texts])}
    assert exactly_found(find_runs(samples), np.arange(800) // 20) >= 0.95


def test_texts_of_any_length_are_their_own_runs_unless_they_are_alike():
    random = np.random.default_rng(0)
    texts = [random.zipf(1.3, random.integers(1, 60)).clip(max=30_000) for _ in range(1000)]
    assert np.array_equal(find_runs({"ids": gathered(texts)}), np.arange(1000))
    often = [text for text in texts[:100] for _ in range(10)]  # a word is mistyped each time
    often = [np.where(np.arange(len(text)) == random.integers(len(text)), -1, text) for text in often]
    found = find_runs({"ids": gathered(often)})
    assert exactly_found(found, np.arange(1000) // 10) >= 0.85  # of two words, one is half of them


def test_signals_of_any_length_are_runs_where_they_are_alike():
    random = np.random.default_rng(0)
    signals = [random.normal(size=(2, random.integers(500, 3000))).astype(np.float32) for _ in range(80)]
    assert np.array_equal(find_runs({"x": gathered(signals)}), np.arange(80))
    noisy = [signal + 0.1 * random.normal(size=signal.shape).astype(np.float32) for signal in signals for _ in range(9)]
    assert exactly_found(find_runs({"x": gathered(noisy)}), np.arange(720) // 9) >= 0.95


def test_samples_must_be_close_in_numbers_and_in_words():
    random = np.random.default_rng(0)
    still = np.repeat(random.normal(size=(40, 50)), 20, axis=0) + random.normal(size=(800, 50)) * 0.05
    assert find_runs({"x": still}).max() == 39
    words = random.integers(0, 1000, (800, 8))
    assert np.array_equal(find_runs({"x": still, "words": words}), np.arange(800))


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param({"x": np.zeros((1, 3), np.float32)}, id="one"),
        pytest.param({"x": np.arange(2.0)[:, None]}, id="two"),
        pytest.param({"x": np.ones((50, 3), np.float32)}, id="all the same"),
        pytest.param({"x": np.zeros((50, 0), np.int64)}, id="empty"),
        pytest.param({"x": np.random.default_rng(0).normal(size=(20, 4)).astype(np.float16)}, id="few"),
        pytest.param({"x": np.random.default_rng(0).random((99, 4)) < 0.5}, id="bits"),
        pytest.param({"x": np.random.default_rng(0).normal(size=(99, 4)) * 1e300}, id="large numbers"),
    ],
)
def test_samples_that_hold_no_runs(samples):
    assert np.array_equal(find_runs(samples), np.arange(len(samples["x"])))


def test_ten_thousand_pictures_take_seconds():
    images = np.random.default_rng(0).random((10_000, 3, 32, 32), dtype=np.float32)
    start = time.process_time()
    find_runs({"image": images})
    assert time.process_time() - start < 9  # about 2.5, on a machine that has nothing else to do
