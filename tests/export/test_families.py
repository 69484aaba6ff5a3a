"""Families of heads: each learns, knows how sure it is, and as a file answers as it did when it was trained."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from copy import deepcopy

import numpy as np
import pytest
import torch
from lessons import CLASSES, CUTS, OUTPUT, Course, auc, course, fitted_to, hidden_rows, one_cut_chain

from gati.errors import BackboneError, SamplesError
from gati.inference.head import KEY, open_head
from gati.inference.state import CLASS_MIX, FORGET, MEMORY_KEYS, HeadState
from gati.repository.chain import Tensor
from gati_export.families import (
    FAMILIES,
    chosen_families,
    family_of,
    gati,
    lookups,
    pooled,
    recent,
    selfxit,
    spatial,
)
from gati_export.families.adaptive import FLOOR, TEMPERATURES, Adaptable, Adaptive, mixes_before, temperature
from gati_export.families.blocks import layout
from gati_export.families.blocks.distillation import Predictor, Scale, Schedule
from gati_export.families.blocks.selector import Certainty, Confidence, Learned
from gati_export.families.family import Distilled, Found, Lesson, Lookup, logits_of
from gati_export.learning.headfile import with_threshold
from gati_export.learning.heads import Head, head_model, weights_of

CHANCE = 1 / CLASSES
LOGITS = Scale("logits")
SCHEDULED = (spatial.Tower, gati.Flat, selfxit.Exit)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def schedule(monkeypatch: pytest.MonkeyPatch, steps: Mapping[type, int], peaks: Mapping[type, float]) -> None:
    """Real schedules take seconds; the task here is easy."""
    for predictor in SCHEDULED:
        count = steps.get(predictor, 10)
        planned = Schedule(epochs=1, least=count, most=count, batch=64, peak=peaks.get(predictor, 1e-2))
        monkeypatch.setattr(predictor, "schedule", planned)


def taught(lookup: Lookup, train: Course, tune: Course, seed: int = 0) -> list[Lookup]:
    """The lookup and its adaptive one, if there can be one, trained."""
    students = [lookup, Adaptive(lookup)] if isinstance(lookup, Adaptable) else [lookup]
    for student in students:
        student.learn(train.lesson(lookup), tune.lesson(lookup), seed, None)
        student.eval()
    return students


def look(lookup: Lookup, hidden: np.ndarray, state: Mapping[str, np.ndarray]) -> Found:
    with torch.no_grad():
        features = lookup.reduce(torch.from_numpy(hidden).float())
        return lookup(features, {name: torch.from_numpy(value) for name, value in state.items()})


def answers(lookup: Lookup, seen: Course, state: Mapping[str, np.ndarray]) -> np.ndarray:
    return look(lookup, seen.hidden, state).logits.argmax(1).numpy()


def warm_state(lookup: Lookup, seen: Course) -> dict[str, np.ndarray]:
    """What the orchestrator would keep for a lookup if the first row of each run of these had been a miss."""
    state = HeadState(dict(lookup.state))
    if MEMORY_KEYS in lookup.state:
        key = look(lookup, seen.hidden, state.feeds()).key
        assert key is not None
        first = np.unique(seen.groups, return_index=True)[1]
        state.remember(key.numpy()[first], seen.logits.numpy()[first])
    return state.feeds()


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_branchynets_exits_are_selfxits_and_judge_themselves_otherwise(cut: Tensor) -> None:
    ours, theirs = (lookups([family], cut, CLASSES)[0] for family in ("branchynet", "selfxit"))
    for exit_, other in zip(ours, theirs, strict=True):
        assert isinstance(exit_, Distilled) and isinstance(other, Distilled)
        assert str(exit_.predictor) == str(other.predictor) and exit_.view == other.view
        assert isinstance(exit_.selector, Certainty) and isinstance(other.selector, Confidence)


TAUGHT = [
    (family, kind)
    for kind in CUTS
    for family in FAMILIES
    if family != "regression" and (family != "branchynet" or kind in ("image", "vector"))  # elsewhere as SelfXit's
]


@pytest.mark.parametrize(("family", "kind"), TAUGHT)
def test_each_family_learns_at_each_cut_or_refuses(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = CUTS[kind]
    schedule(
        monkeypatch, {spatial.Tower: 60, gati.Flat: 150, selfxit.Exit: 150}, {spatial.Tower: 6e-3, selfxit.Exit: 3e-2}
    )
    run = 8 if family == "recent" else 1
    train, tune, fresh = (course(cut, count, seed, run) for seed, count in enumerate((400, 240, 480)))
    found, notes = lookups([family], cut, CLASSES)
    if not found:
        assert len(notes) == 1 and repr(cut.name) in notes[0] and notes[0].endswith(".")
        assert family in ("spatial", "gati")
    asked = (np.arange(480) % run > 0) | (run == 1)  # of a run, the first is what is remembered
    for student in [each for lookup in found for each in taught(lookup, train, tune)]:
        said = look(student, fresh.hidden, warm_state(student, fresh))
        score, right = said.score.numpy(), said.logits.argmax(1).numpy() == fresh.labels
        assert right[asked].mean() > 2 * CHANCE, student.name
        assert ((score >= 0) & (score <= 1 + 1e-6)).all()
        assert auc(score[asked], right[asked]) > 0.6, student.name
        assert (said.key is None) == (MEMORY_KEYS not in student.state)


FILES = [
    ("pooled", "tokens"),
    ("spatial", "overlapping_windows"),
    ("spatial", "channels_last"),
    ("recent", "image"),
    ("recent", "signal"),
    ("gati", "vector"),
    ("selfxit", "half"),
    ("selfxit", "any_size"),
    ("selfxit", "channels_last"),
    ("branchynet", "image"),
    ("nearest", "channels_last"),
    ("regression", "image"),
    ("integers", "half"),
]
FILES += [(family, "half") for family in FAMILIES if family not in dict(FILES)]


@pytest.mark.parametrize(("family", "kind"), FILES)
def test_files_answer_as_the_modules_do_and_keep_the_contract(
    family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule(monkeypatch, {}, {})
    cut, apart = CUTS[kind], 1e-4
    if family == "integers":
        monkeypatch.setattr(Lookup, "integers", True)
        family, apart = "spatial", 0.05  # a number in the middle of two integers becomes either
    train, tune, fresh = (course(cut, 120, seed, run=4) for seed in range(3))
    chain = one_cut_chain(cut)
    for student in [each for lookup in family_of(family)(cut, CLASSES) for each in taught(lookup, train, tune)]:
        head = Head(student, LOGITS, OUTPUT).eval()
        model = fitted_to(chain, with_threshold(head_model(head, cut, OUTPUT), 0.6))
        session, spec = open_head(model, chain, 0)
        assert spec.state == student.state
        assert spec.outputs == (OUTPUT.name, "score", "hit") + (KEY,) * (MEMORY_KEYS in student.state)
        state = warm_state(student, fresh)
        for rows in (1, 5):
            said = session.run(None, {cut.name: fresh.hidden[-rows:], **state})
            with torch.no_grad():
                asked = [torch.from_numpy(value) for value in (fresh.hidden[-rows:], *state.values())]
                expected = [value.numpy() for value in head(*asked)]
            expected[2] = said[1] >= np.float32(0.6)  # the module's threshold is out of reach
            for value, known in zip(said, expected, strict=True):
                np.testing.assert_allclose(value, known, rtol=1e-3, atol=apart, err_msg=student.name)
        for value in (np.nan, np.inf, -np.inf):
            broken = fresh.hidden[-5:].copy()
            broken.reshape(5, -1)[3, -1] = value
            again = session.run(None, {cut.name: broken, **state})
            assert np.isnan(again[1][3]) and not again[2][3]
            np.testing.assert_allclose(np.delete(again[1], 3), np.delete(said[1], 3), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule(monkeypatch, {}, {})
    cut = CUTS["half"]
    train, tune = (course(cut, 150, seed, run=3) for seed in range(2))
    for place in range(len(family_of(family)(cut, CLASSES))):
        weights = []
        for seed in (5, 5, 6):
            lookup = family_of(family)(cut, CLASSES)[place]
            torch.rand(3)  # whatever ran before must not matter
            weights.append([each.state_dict() for each in taught(lookup, train, tune, seed)])
        first, second, other = weights
        for one, same, third in zip(first, second, other, strict=True):
            assert all(torch.equal(one[name], same[name]) for name in one)
            if isinstance(lookup, Distilled):
                assert any(not torch.equal(one[name], third[name]) for name in one)


@pytest.mark.parametrize(
    ("family", "derived", "integers"),
    [("pooled", 0, False), ("pooled", 1, False), ("spatial", 0, False), ("spatial", 0, True)],
)
def test_a_warm_start_keeps_what_was_learned(
    family: str, derived: int, integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule(monkeypatch, {spatial.Tower: 60}, {})
    monkeypatch.setattr(Lookup, "integers", integers)
    cut = CUTS["half"]
    train, tune, fresh = (course(cut, count, seed) for seed, count in enumerate((500, 200, 500)))
    few = train.part(0, 60)
    first = taught(family_of(family)(cut, CLASSES)[0], train, tune)
    weights = weights_of(head_model(Head(first[derived], LOGITS, OUTPUT), cut, OUTPUT))
    schedule(monkeypatch, {spatial.Tower: 6}, {spatial.Tower: 2e-3})
    shares = {}
    for start in ("warm", "cold", "misfit"):
        lookup = family_of(family)(cut, CLASSES)[0]
        given = {
            "warm": weights,
            "cold": None,
            "misfit": {name: tensor.reshape(-1)[:1] for name, tensor in weights.items()},
        }[start]
        lookup.learn(few.lesson(lookup), tune.lesson(lookup), 1, given)
        shares[start] = (answers(lookup.eval(), fresh, {}) == fresh.labels).mean()
    before = (answers(first[0], fresh, {}) == fresh.labels).mean()
    assert shares["warm"] > before - 0.05
    assert shares["warm"] > shares["cold"] + 0.05
    assert shares["misfit"] == shares["cold"]


class Shift:
    """A pooled lookup on noisy activations, and traffic in which two classes of ten are 95 % of the requests."""

    def __init__(self) -> None:
        self.cut, self.classes = Tensor("noisy", "FP32", (12,)), 10
        self.patterns = np.random.default_rng(1).normal(size=(10, 12))
        even = np.full(10, 0.1)
        train, tune = self.traffic(1500, even, 0), self.traffic(600, even, 1)
        base, adaptive = taught(pooled.lookups(self.cut, 10)[0], train, tune)
        assert isinstance(adaptive, Adaptive)
        self.base, self.adaptive, self.even = base, adaptive, even

    def traffic(self, count: int, mix: np.ndarray, seed: int) -> Course:
        random = np.random.default_rng(seed)
        labels = random.choice(10, count, p=mix)
        hidden = self.patterns[labels] + 1.2 * random.normal(size=(count, 12))
        logits = torch.from_numpy(6 * np.eye(10, dtype=np.float32)[labels])
        return Course(hidden.astype(np.float32), logits, np.arange(count))


@pytest.fixture(scope="module")
def shift() -> Shift:
    return Shift()


def test_an_adaptive_head_follows_the_mix(shift: Shift) -> None:
    mix = np.where(np.arange(10) < 2, 0.475, 0.05 / 8)
    shifted = shift.traffic(1500, mix, 2)
    rows = torch.from_numpy(shifted.hidden)
    with torch.no_grad():
        plain = shift.base(rows, {}).logits.argmax(1).numpy() == shifted.labels
        state = HeadState({CLASS_MIX: (10,)})
        right = np.empty(len(rows), bool)
        for row in range(len(rows)):  # it is fed with its own answers, wrong ones too
            said = look(shift.adaptive, shifted.hidden[row : row + 1], state.feeds()).logits.numpy()
            state.count(said)
            right[row] = said.argmax() == shifted.labels[row]
    assert right[300:].mean() > plain[300:].mean() + 0.1


def test_an_adaptive_head_is_its_base_where_nothing_has_shifted(shift: Shift) -> None:
    same = shift.traffic(400, shift.even, 3)
    base = look(shift.base, same.hidden, {}).logits
    uniform = look(shift.adaptive, same.hidden, {CLASS_MIX: np.full(10, 0.1, np.float32)}).logits
    moved = torch.log((0.1 + FLOOR / 10) / (shift.adaptive.prior + FLOOR / 10)) * shift.adaptive.temperature
    torch.testing.assert_close(uniform, base + moved)
    prior = look(shift.adaptive, same.hidden, {CLASS_MIX: shift.adaptive.prior.numpy()}).logits
    torch.testing.assert_close(prior, base)
    assert abs(float(shift.adaptive.prior.sum()) - 1) < 1e-5


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_a_shift_is_scaled_as_logits_are(scale: float) -> None:
    random = np.random.default_rng(0)
    logits, mix = 2 * random.normal(size=(4000, 5)), np.array([0.7, 0.2, 0.06, 0.03, 0.01])
    shifts = np.tile(np.log(mix), (len(logits), 1))
    odds = np.exp(logits + shifts)
    labels = np.array([random.choice(5, p=p / p.sum()) for p in odds])
    found = temperature(logits * scale, shifts, labels)
    assert found == pytest.approx(scale, rel=0.1)
    assert temperature(logits[:0], shifts[:0], labels[:0]) == pytest.approx(1, abs=1e-3)
    assert TEMPERATURES[0] <= temperature(logits[:3], 0 * shifts[:3], logits[:3].argmax(1)) < 1


def test_there_is_an_adaptive_head_only_where_the_mix_foretells_answers(shift: Shift) -> None:
    few = np.where(np.arange(10) < 2, 0.475, 0.05 / 8)
    train = shift.traffic(1000, shift.even, 4).lesson(shift.base)
    shifted, same = (shift.traffic(600, mix, 5).lesson(shift.base) for mix in (few, shift.even))
    (found,) = shift.base.derived(train, shifted)
    assert found.name == "pooled+mix"
    assert shift.base.derived(train, same) == []


def test_the_mix_before_an_answer_does_not_know_it() -> None:
    said = np.eye(4)[[2, 2, 0, 1]]
    mixes = mixes_before(said)
    np.testing.assert_allclose(mixes[0], 0.25)
    np.testing.assert_allclose(mixes[1], [0.25 * FORGET] * 2 + [0.25 * FORGET + 1 - FORGET, 0.25 * FORGET], rtol=1e-5)
    np.testing.assert_allclose(mixes.sum(1), 1, rtol=1e-5)
    assert mixes[2, 2] > mixes[1, 2] and mixes[3, 0] > mixes[2, 0]


def serve(memory: Lookup, seen: Course, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Asks a memory about rows in order, and lets it remember what it misses: where it hits, and where it is right."""
    state = HeadState(dict(memory.state))
    hits, right = np.zeros(len(seen.hidden), bool), np.zeros(len(seen.hidden), bool)
    for row in range(len(seen.hidden)):
        said = look(memory, seen.hidden[row : row + 1], state.feeds())
        hits[row] = float(said.score) >= threshold
        right[row] = int(said.logits.argmax()) == seen.labels[row]
        if not hits[row]:
            assert said.key is not None
            state.remember(said.key.numpy(), seen.logits[row : row + 1].numpy())
    return hits, right


@pytest.fixture(scope="module")
def memory() -> recent.Recent:
    """A memory that has learned from frames of scenes."""
    cut = CUTS["vector"]
    (lookup,) = taught(recent.lookups(cut, CLASSES)[0], course(cut, 800, 0, run=8), course(cut, 400, 1, run=8))
    assert isinstance(lookup, recent.Recent)
    return lookup


def test_a_memory_hits_within_runs_and_errs_little(memory: recent.Recent) -> None:
    film = course(CUTS["vector"], 640, 2, run=8)
    hits, right = serve(memory, film, 0.95)
    first = np.arange(640) % 8 == 0
    assert hits[~first].mean() > 0.6  # not of scenes that the backbone itself is in doubt of
    assert hits[first].mean() < 0.3
    assert (hits & ~right).mean() < 0.01


def test_a_memory_learns_from_runs_also_among_many_other_samples() -> None:
    cut = CUTS["vector"]
    film, views = course(cut, 400, 0, run=8), course(cut, 9000, 1)
    hidden, logits = np.concatenate([film.hidden, views.hidden]), torch.cat([film.logits, views.logits])
    train = Course(hidden, logits, np.concatenate([film.groups, 1000 + views.groups]))
    (lookup,) = taught(recent.lookups(cut, CLASSES)[0], train, course(cut, 240, 2, run=8))
    keys = look(lookup, film.hidden, HeadState(dict(lookup.state)).feeds()).key
    assert keys is not None
    shaking = np.diff(keys.numpy().reshape(-1, 8, keys.shape[1]), axis=1)
    np.testing.assert_allclose(shaking.var(axis=(0, 1)), 1, atol=0.3)  # what doesn't matter has variance 1


def test_a_memory_answers_with_a_single_number() -> None:
    cut = CUTS["vector"]
    film = course(cut, 240, 2, run=8)
    (lookup,) = recent.lookups(cut, 1)
    lesson = Lesson(lookup.reduce(torch.from_numpy(film.hidden)).numpy(), film.logits[:, :1], film.groups)
    lookup.learn(lesson, lesson, 0, None)
    state = HeadState(dict(lookup.state))
    key = look(lookup, film.hidden[:1], state.feeds()).key
    assert key is not None
    state.remember(key.numpy(), film.logits[:1, :1].numpy())
    found = look(lookup, film.hidden[:9], state.feeds())
    assert found.logits.shape == (9, 1) and torch.isfinite(found.score).all()
    assert found.score[0] > found.score[8], "it is surer within the scene"


def test_selectors_of_many_classes_take_little() -> None:
    random = np.random.default_rng(0)
    logits, agree = torch.from_numpy(random.normal(size=(300, 12)).astype(np.float32)), random.random(300) < 0.8
    few, many = Learned(12), Learned(30_000)
    few.fit(logits, agree)
    tracemalloc.start()
    many.fit(torch.nn.functional.pad(logits, (0, 30_000 - 12), value=-9.0), agree)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # in NumPy's hands
    torch.testing.assert_close(many.weight, few.weight)
    torch.testing.assert_close(many.bias[:12], few.bias)


def test_predictors_are_asked_about_few_samples_at_a_time() -> None:
    features, sizes = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float16), []

    class Double(Predictor):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            sizes.append(len(features))
            return 2 * features

    np.testing.assert_allclose(logits_of(Double(), features).numpy(), 2 * features.astype(np.float32))
    assert sizes == [64, 64, 22]


def test_a_memory_of_samples_without_runs_hardly_hits() -> None:
    cut = CUTS["tokens"]
    (lookup,) = taught(recent.lookups(cut, CLASSES)[0], course(cut, 400, 0), course(cut, 240, 1))
    hits, right = serve(lookup, course(cut, 400, 2), 0.95)
    assert hits.mean() < 0.05 and (hits & ~right).mean() < 0.01


def test_an_empty_memory_is_sure_of_nothing_and_a_full_one_forgets_the_oldest(memory: recent.Recent) -> None:
    scenes = course(CUTS["vector"], 69, 4)
    state = HeadState(dict(memory.state))
    assert (look(memory, scenes.hidden, state.feeds()).score == 0).all()
    key = look(memory, scenes.hidden, state.feeds()).key
    assert key is not None and key.shape == (69, memory.state[MEMORY_KEYS][1])
    state.remember(key.numpy(), scenes.logits.numpy())
    said = look(memory, scenes.hidden, state.feeds())
    same = (said.logits == scenes.logits).all(1)
    assert same[5:].all() and not same[:5].any()


def test_a_memory_that_knows_one_answer_is_no_surer_than_one_that_knows_another_further_off(
    memory: recent.Recent,
) -> None:
    """Else it answers so whatever comes, and for ever: it learns from nothing that it answers."""
    scenes, memory = course(CUTS["vector"], 200, 6), deepcopy(memory)
    memory.weight.fill_(1 / recent.SIGNALS)
    keys = look(memory, scenes.hidden, HeadState(dict(memory.state)).feeds()).key
    assert keys is not None
    other = int(np.flatnonzero(scenes.labels != scenes.labels[0])[0])
    said = []
    for known in ([0], [0, other]):
        state = HeadState(dict(memory.state))
        state.remember(keys[known].numpy(), scenes.logits[known].numpy())
        said.append(look(memory, scenes.hidden, state.feeds()))
    nearer = said[1].logits.argmax(1) == int(scenes.labels[0])
    assert nearer.sum() > 20
    assert (said[0].score <= said[1].score)[nearer].all()


def test_a_memory_that_learned_from_one_answer_hardly_gives_it_to_others() -> None:
    cut, (lookup,) = CUTS["vector"], recent.lookups(CUTS["vector"], CLASSES)
    tune, usual = (alike(course(cut, 2400, seed, run=8)) for seed in (1, 2))
    taught(lookup, course(cut, 800, 0, run=8), tune)
    state, scores = HeadState(dict(lookup.state)), []
    for row in range(len(usual.hidden)):
        said = look(lookup, usual.hidden[row : row + 1], state.feeds())
        scores.append(float(said.score))
        if usual.groups[row] != usual.groups[row - 1]:
            assert said.key is not None
            state.remember(said.key.numpy(), usual.logits[row : row + 1].numpy())
    threshold = float(np.quantile(scores, 0.25))
    hits, _ = serve(lookup, usual, threshold)
    assert hits.mean() > 0.5
    hits, right = serve(lookup, course(cut, 640, 3, run=8), threshold)
    assert (hits & ~right).mean() < 0.1


def alike(film: Course) -> Course:
    """What the backbone answers with the first class."""
    same = film.labels == 0
    return Course(film.hidden[same], film.logits[same], film.groups[same])


def test_a_memory_is_the_surer_the_further_off_another_answer_is(memory: recent.Recent) -> None:
    """However far that is: what is beyond the cut-off is known all the same."""
    scene, memory = course(CUTS["vector"], 1, 7), deepcopy(memory)
    memory.weight.fill_(0.1)
    key = look(memory, scene.hidden, HeadState(dict(memory.state)).feeds()).key
    assert key is not None
    step, answers, scores = np.eye(1, key.shape[1]), np.eye(2, CLASSES), []
    for off in (10, 100, recent.FAR - 1, recent.FAR + 1, 1e6):
        state = HeadState(dict(memory.state))
        state.remember(np.concatenate([key.numpy() + 5 * step, key.numpy() - off * step]), answers)
        scores.append(float(look(memory, scene.hidden, state.feeds()).score))
    assert scores == sorted(scores) and scores[0] < scores[1] < scores[3]


def test_a_memory_is_surer_of_what_is_nearer_and_of_what_was_further_ahead(memory: recent.Recent) -> None:
    scene = course(CUTS["vector"], 1, 7)
    key = look(memory, scene.hidden, HeadState(dict(memory.state)).feeds()).key
    assert key is not None
    scores = np.empty((4, 4))
    for i, away in enumerate((0.0, 1.0, 2.0, 4.0)):
        for j, margin in enumerate((0.0, 1.0, 2.0, 4.0)):
            state = HeadState(dict(memory.state))
            state.remember(key.numpy() + away * np.eye(1, key.shape[1]), margin * np.eye(1, CLASSES))
            scores[i, j] = float(look(memory, scene.hidden, state.feeds()).score)
    assert (np.diff(scores, axis=0)[:, 1:] < 0).all()
    assert (np.diff(scores, axis=1) > 0).all()
    odds = np.log(scores / (1 - scores))
    assert (np.diff(odds[:, 3] - odds[:, 0]) < 0).all()  # a lead counts for less the further away it was


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log-probabilities"])
def test_a_memory_answers_as_the_backbone_did(memory: recent.Recent, kind: str) -> None:
    scenes = course(CUTS["vector"], 40, 5)
    outputs = {
        "logits": scenes.logits / 50,
        "probabilities": torch.softmax(scenes.logits, 1),
        "log-probabilities": torch.log_softmax(scenes.logits, 1),
    }[kind]
    scale = Scale.of(outputs.numpy())
    assert scale.kind == kind and (scale.spread > 1) == (kind == "logits")
    head = Head(memory, scale, OUTPUT).eval()
    state = HeadState(dict(memory.state))
    hidden = torch.from_numpy(scenes.hidden)
    with torch.no_grad():
        empty = [torch.from_numpy(value) for value in state.feeds().values()]
        state.remember(head(hidden, *empty)[3].numpy(), outputs.numpy())
        answer, score, *_ = head(hidden, *(torch.from_numpy(value) for value in state.feeds().values()))
    torch.testing.assert_close(answer, outputs, rtol=1e-5, atol=1e-7)
    assert (score > 0.5).all()


def test_a_broken_activation_leaves_no_trace_in_a_memory(memory: recent.Recent) -> None:
    scenes = course(CUTS["vector"], 12, 6)
    broken = scenes.hidden[:3].copy()
    broken[0, 0], broken[1, 23], broken[2] = np.nan, np.inf, 3e38
    state = HeadState(dict(memory.state))
    key = look(memory, broken, state.feeds()).key
    assert key is not None
    state.remember(key.numpy(), scenes.logits[:3].numpy())
    assert np.isfinite(state.feeds()[MEMORY_KEYS]).all()
    state.remember(look(memory, scenes.hidden, state.feeds()).key.numpy(), scenes.logits.numpy())  # type: ignore[union-attr]
    assert (look(memory, scenes.hidden, state.feeds()).score > 0.5).all()


def test_copies_are_no_trouble_to_the_nearest_neighbours() -> None:
    cut = CUTS["vector"]
    train = course(cut, 120, 0)
    first = np.unique(train.labels, return_index=True)[1]
    train.hidden[:] = train.hidden[first[train.labels]]
    for lookup in family_of("nearest")(cut, CLASSES):
        taught(lookup, train, train)
        assert (answers(lookup, train, {}) == train.labels).all()


def test_gatis_heads_are_as_large_as_the_paper_has_them() -> None:
    def names(*shape: int) -> list[str]:
        return [lookup.name for lookup in gati.lookups(Tensor("x", "FP32", shape), CLASSES)]

    assert names(64, 32, 32) == ["gati-pool", "gati-conv"]  # FC would take 268 MB
    assert names(9, 31, 31) == ["gati-fc", "gati-pool", "gati-conv"]
    assert names(512) == ["gati-fc", "gati-conv"]  # nothing to average
    assert names(7) == ["gati-fc"]  # one filter would leave a single number


def test_gatis_pool_averages_neighbours() -> None:
    lookup = gati.lookups(Tensor("x", "FP32", (9, 31, 31)), CLASSES)[1]
    hidden = hidden_rows(Tensor("x", "FP32", (9, 31, 31)), 2)
    pooled_ = lookup.reduce(torch.from_numpy(hidden)).numpy()
    flat = hidden.reshape(2, -1)
    assert pooled_.shape == (2, gati.POOLED)
    np.testing.assert_allclose(pooled_[:, :4324], flat[:, :8648].reshape(2, -1, 2).mean(2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled_[:, 4324], flat[:, 8648] / 2, rtol=1e-5)


def test_families_are_chosen_by_name() -> None:
    assert chosen_families("auto", runs=False) == ("pooled", "spatial")
    assert chosen_families("auto", runs=True) == ("pooled", "spatial", "recent")
    assert chosen_families(" gati , nearest,gati ", runs=True) == ("gati", "nearest")
    for wrong in ("pooled,best", "", " , "):
        with pytest.raises(SamplesError, match=r"no family of heads .* auto, pooled, spatial, recent"):
            chosen_families(wrong, runs=False)


def test_numbers_are_answered_by_other_families_than_classes() -> None:
    assert chosen_families("auto", runs=False, numbers=True) == ("regression",)
    assert chosen_families("auto", runs=True, numbers=True) == ("regression", "recent")
    with pytest.raises(SamplesError, match=r"'gati' can't answer with numbers \(agreement 'within X'\); leave it out"):
        chosen_families("regression,gati", runs=False, numbers=True)
    with pytest.raises(SamplesError, match="'regression' can't answer with classes"):
        chosen_families("pooled,regression", runs=False)


@pytest.mark.parametrize(
    ("cut", "scales"), [(CUTS["vector"], [1, 100, 1000]), (CUTS["image"], [100])], ids=["vector", "image"]
)
def test_regression_is_near_where_it_is_sure(cut: Tensor, scales: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    schedule(monkeypatch, {spatial.Tower: 150}, {spatial.Tower: 6e-3})

    def numbers(count: int, seed: int) -> Course:
        """Numbers that the activations tell, some of them large, and worse where the fourth value is high."""
        random = np.random.default_rng(seed)
        told = random.normal(size=(count, 3)).astype(np.float32)
        noisy = random.random(count) < 0.5
        flat = np.column_stack([told, np.where(noisy, 3, -3)]).astype(np.float32)
        shape = (4, *cut.shape[1:]) if len(cut.shape) > 1 else (4,)
        hidden = np.broadcast_to(flat.reshape(count, 4, *[1] * (len(shape) - 1)), (count, *shape))
        hidden = np.concatenate([hidden] * (cut.shape[0] // 4), 1)
        outputs = told + np.where(noisy, 1.0, 0.01)[:, None] * random.normal(size=told.shape)
        outputs = outputs[:, : len(scales)] * scales
        return Course(hidden.astype(np.float32), torch.from_numpy(outputs.astype(np.float32)), np.arange(count))

    train, tune, fresh = numbers(1500, 0), numbers(200, 1), numbers(400, 2)
    found, _ = lookups(["regression"], cut, len(scales))
    assert [lookup.name for lookup in found] == ["regression-pooled", "regression-spatial"][: len(cut.shape)]
    for lookup in found:
        lookup.learn(train.lesson(lookup), tune.lesson(lookup), 0, None)
        said = look(lookup.eval(), fresh.hidden, {})
        near = ((said.logits - fresh.logits).abs() < 0.3 * torch.tensor(scales)).all(1).numpy()
        score = said.score.numpy()
        assert ((score > 0) & (score <= 1)).all()
        assert auc(score, near) > 0.8
        assert near.mean() < 0.7 and near[score > np.median(score)].mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_of_no_fixed_size_is_refused(family: str) -> None:
    found, notes = lookups([family], Tensor("x", "FP32", (-1, -1)), CLASSES)
    assert not found and len(notes) == 1 and "'x'" in notes[0]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((64, 8, 8), 0),
        ((7, 7, 96), 2),
        ((16, 16, 16), 0),
        ((197, 768), 1),
        ((12, 16000), 0),
        ((-1, 768), 1),
        ((3, -1), 0),
        ((8, -1, -1), 0),
        ((-1, -1, 8), 2),
        ((10,), 0),
        ((5, 3, 4, 4), 0),
    ],
)
def test_channels_are_found_by_the_sizes(shape: tuple[int, ...], axis: int) -> None:
    assert layout.channel_axis(Tensor("x", "FP32", shape)) == axis


def test_small_planes_have_no_tower() -> None:
    with pytest.raises(BackboneError, match="smaller than 4×4"):
        spatial.lookups(Tensor("x", "FP32", (8, 3, 9)), CLASSES)
    for side in (4, 5, 8, 9, 16, 33):
        lookup = spatial.lookups(Tensor("x", "FP32", (6, side, side + 3)), CLASSES)[0].eval()
        assert look(lookup, np.zeros((2, 6, side, side + 3), np.float32), {}).logits.shape == (2, CLASSES)


@pytest.mark.parametrize(("side", "few", "many"), [(4, 64, 128), (8, 128, 128), (32, 128, 128)])
def test_a_tower_on_the_smallest_planes_is_narrow_where_classes_are_few(side: int, few: int, many: int) -> None:
    cut = Tensor("x", "FP32", (256, side, side))
    for classes, channels in ((10, few), (spatial.NARROW, few), (spatial.NARROW + 1, many)):
        tower = spatial.Tower(cut, classes).eval()
        assert tower.layers(torch.zeros(2, 256, min(side, 16), min(side, 16))).shape == (2, channels, 4, 4)


@pytest.mark.parametrize("family", ["pooled", "spatial", "selfxit", "branchynet", "regression", "nearest"])
def test_no_pixel_of_a_plane_is_left_out(family: str) -> None:
    cut = Tensor("x", "FP32", (4, 19, 37))  # sizes that no grid divides
    hidden = torch.from_numpy(hidden_rows(cut, 1)).requires_grad_()
    for lookup in family_of(family)(cut, CLASSES):
        (seen,) = torch.autograd.grad(lookup.reduce(hidden).sum(), hidden)
        assert (seen != 0).all(), lookup.name


@pytest.mark.parametrize("family", ["spatial", "selfxit"])
def test_images_are_seen_alike_with_their_channels_first_or_last(family: str) -> None:
    first, last = (Tensor("x", "FP32", shape) for shape in ((24, 20, 20), (20, 20, 24)))
    hidden = torch.from_numpy(hidden_rows(first, 3))
    for one, other in zip(family_of(family)(first, CLASSES), family_of(family)(last, CLASSES), strict=True):
        assert one.name == other.name
        torch.testing.assert_close(one.reduce(hidden), other.reduce(hidden.permute(0, 2, 3, 1)))
