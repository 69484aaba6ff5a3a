"""Heads: one ONNX file that does what the trained module does, refuses what is not finite, and has its threshold."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import CLASSES, CUTS, OUTPUT, auc, hidden_rows, threshold_of

from gati.errors import BackboneError
from gati.inference.session import open_session
from gati.repository.chain import Tensor
from gati_export.composition.latency import measure
from gati_export.families import pooled
from gati_export.families.blocks.distillation import Predictor, Scale, distil
from gati_export.families.blocks.selector import Confidence, Learned, Scores, Selector
from gati_export.families.family import Distilled
from gati_export.families.pooled import VIEW, PooledPredictor
from gati_export.families.spatial import Tower
from gati_export.learning.headfile import stamp, with_threshold
from gati_export.learning.heads import Head, head_model, weights_of


def make_head(cut: Tensor, output: Tensor = OUTPUT, scale: Scale | None = None) -> Head:
    torch.manual_seed(0)
    predictor = PooledPredictor(cut, output.shape[-1])
    with torch.no_grad():
        predictor.adapt(predictor.reduce(torch.from_numpy(hidden_rows(cut, 64, seed=1)).float()))
    selector = Learned(output.shape[-1])
    selector.weight.copy_(torch.tensor([0.5, -0.5, 1, 0]))
    selector.bias.copy_(torch.linspace(-1, 1, output.shape[-1])[:, None])
    return as_head(predictor, selector, output, scale)


def as_head(predictor: Predictor, selector: Selector, output: Tensor = OUTPUT, scale: Scale | None = None) -> Head:
    return Head(Distilled("pooled", VIEW, predictor, selector), scale or Scale("logits"), output).eval()


@cache
def file_of(kind: str) -> bytes:
    """A head's file, exported once for all tests that ask it."""
    return head_model(make_head(CUTS[kind]), CUTS[kind], OUTPUT)


@pytest.mark.parametrize("kind", CUTS)
def test_file_answers_as_the_module_does(kind):
    cut, head = CUTS[kind], make_head(CUTS[kind])
    session = open_session(with_threshold(file_of(kind), 0.6))
    for rows in (1, 5):
        hidden = hidden_rows(cut, rows)
        with torch.no_grad():
            answer, score, _ = head(torch.from_numpy(hidden))
        said = dict(zip((o.name for o in session.get_outputs()), session.run(None, {cut.name: hidden}), strict=True))
        np.testing.assert_allclose(said["output"], answer.numpy(), atol=1e-5)
        np.testing.assert_allclose(said["score"], score.numpy(), atol=1e-5)
        assert said["score"].shape == said["hit"].shape == (rows,)
        np.testing.assert_array_equal(said["hit"], said["score"] >= np.float32(0.6))

    for value in (np.nan, np.inf, -np.inf):
        hidden = hidden_rows(cut, 5)
        hidden.reshape(5, -1)[3, -1] = value
        _, score, hit = session.run(None, {cut.name: hidden})
        assert np.isnan(score[3]) and not hit[3]
        assert (np.delete(score, 3) >= 0).all()


def test_every_value_of_an_activation_is_looked_at():
    cut = CUTS["overlapping_windows"]
    session = open_session(with_threshold(file_of("overlapping_windows"), 0))
    count = int(np.prod(cut.shape))
    hidden = np.repeat(hidden_rows(cut, 1), count, axis=0)
    hidden.reshape(count, -1)[np.arange(count), np.arange(count)] = -np.inf  # maximum pooling would drop it
    assert np.isnan(session.run(["score"], {cut.name: hidden})[0]).all()


def test_numbers_that_overflow_are_no_hit():
    cut = CUTS["double"]
    session = open_session(with_threshold(file_of("double"), 0))
    score, hit = session.run(["score", "hit"], {cut.name: np.full((2, 12), 1e300)})
    assert np.isnan(score).all() and not hit.any()


@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities"])
def test_head_answers_in_the_backbones_kind_and_dtype(kind):
    cut, output = CUTS["vector"], Tensor("p", "FP16", (CLASSES,))
    session = open_session(head_model(make_head(cut, output, Scale(kind)), cut, output))
    answer, _, hit = session.run(None, {cut.name: hidden_rows(cut, 5)})
    assert answer.dtype == np.float16 and not hit.any()
    assert Scale.of(answer.astype(np.float32)).kind == kind


def test_output_scales_are_told_apart():
    logits = np.random.default_rng(0).normal(size=(50, CLASSES)) * 9
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert Scale.of(logits).kind == "logits"
    assert Scale.of(p.astype(np.float32)).kind == "probabilities"
    assert Scale.of(np.log(p)).kind == "log-probabilities"
    cosines = logits / 100
    scale = Scale.of(cosines)
    assert scale.spread > 1
    np.testing.assert_allclose(scale.answer(scale.logits(cosines)).numpy(), cosines, rtol=1e-5)


def test_threshold_and_metadata_change_without_retraining():
    cut, model = CUTS["vector"], file_of("vector")
    assert threshold_of(model) == np.inf
    score, hit = open_session(model).run(["score", "hit"], {cut.name: hidden_rows(cut, 5)})
    assert not hit.any()
    threshold = float(np.sort(score)[2])
    stamped = stamp(with_threshold(model, threshold), {"gati.version": "7", "gati.segments": json.dumps(["ab"])})
    stamped = stamp(stamped, {"gati.version": "8"})
    session = open_session(stamped)
    assert session.get_modelmeta().custom_metadata_map == {"gati.version": "8", "gati.segments": '["ab"]'}
    again, hit = session.run(["score", "hit"], {cut.name: hidden_rows(cut, 5)})
    np.testing.assert_array_equal(again, score)
    assert hit.sum() == 3
    onnx.checker.check_model(stamped, full_check=True)
    with pytest.raises(ValueError, match="at least 0"):
        with_threshold(model, float("nan"))


def test_file_is_reproducible_and_names_no_machine():
    first, second = file_of("vector"), file_of.__wrapped__("vector")
    assert first == second
    assert b".py" not in first and b"pkg.torch" not in first


def test_colliding_names_are_refused():
    with pytest.raises(BackboneError, match="rename"):
        head_model(make_head(CUTS["vector"]), Tensor("score", "FP32", (24,)), OUTPUT)
    with pytest.raises(BackboneError, match="no dimension of a fixed size"):
        PooledPredictor(Tensor("x", "FP32", (-1, -1)), CLASSES)


def test_standardisation_inside_the_first_layer_changes_nothing(monkeypatch):
    monkeypatch.setattr(pooled, "DROPOUT", 0)
    predictor = PooledPredictor(CUTS["image"], CLASSES)
    features = predictor.reduce(torch.from_numpy(hidden_rows(CUTS["image"], 64)))
    predictor.adapt(features)
    shouting = torch.cat([features, 100 * features])
    with torch.no_grad():
        torch.testing.assert_close(predictor.eval()(shouting), predictor.train()(shouting), atol=1e-4, rtol=1e-4)


def test_lookup_is_quick():
    cuts = [CUTS["image"], CUTS["vector"]]
    sessions = [open_session(file_of(kind)) for kind in ("image", "vector")]
    seconds = measure(sessions, [{c.name: hidden_rows(c, 1)} for c in cuts])
    assert max(seconds) < 2e-3  # 20 to 50 µs on an idle machine


def learnable(rows: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 24)).astype(np.float32)
    return features, torch.from_numpy(features[:, :CLASSES] * 4)


def test_distillation_learns_is_deterministic_and_starts_warm():
    features, logits = learnable(800, 0)
    predictors = [PooledPredictor(CUTS["vector"], CLASSES) for _ in range(2)]
    for predictor in predictors:
        torch.rand(3)  # whatever ran before must not matter
        distil(predictor, features, logits, seed=5)
    first, second = (p.state_dict() for p in predictors)
    assert all(torch.equal(first[name], second[name]) for name in first)
    fresh, truth = learnable(500, 1)
    with torch.no_grad():
        right = predictors[0](torch.from_numpy(fresh)).argmax(1) == truth.argmax(1)
    assert right.float().mean() > 0.85

    model = head_model(as_head(predictors[0], Learned(CLASSES)), CUTS["vector"], OUTPUT)
    start = {name.removeprefix("predictor."): tensor for name, tensor in weights_of(model).items()}
    warm = PooledPredictor(CUTS["vector"], CLASSES)
    distil(warm, features[:40], logits[:40], seed=6, start={name: start[name] for name in warm.state_dict()})
    with torch.no_grad():
        right = warm(torch.from_numpy(fresh)).argmax(1) == truth.argmax(1)
    assert right.float().mean() > 0.8


def test_planes_are_learned_from_where_they_lie():
    class Seen(Exception):
        pass

    class Watching(Tower):
        def adapt(self, features: torch.Tensor) -> None:
            raise Seen(features.data_ptr())  # training would take a minute, and tell no more

    features = np.random.default_rng(0).normal(size=(300, *CUTS["image"].shape)).astype(np.float16)
    with pytest.raises(Seen) as seen:
        distil(Watching(CUTS["image"], CLASSES), features, learnable(300, 0)[1], seed=0)
    assert seen.value.args == (features.ctypes.data,)


SELECTORS = {"confidence": Confidence, "scores": Scores, "learned": Learned}


def selector_of(kind: str) -> Selector:
    return SELECTORS[kind](CLASSES) if kind in ("scores", "learned") else SELECTORS[kind]()


def judged(rows: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Logits, and where their answers are right: more often the further they are ahead, and some classes more often."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(rows, CLASSES)).astype(np.float32)) * 3
    best = logits.topk(2, 1)
    odds = (best.values[:, 0] - best.values[:, 1]).numpy() - 1 + np.linspace(-1, 1, CLASSES)[best.indices[:, 0]]
    return logits, random.random(rows) < 1 / (1 + np.exp(-odds))


def surer(logits: torch.Tensor) -> torch.Tensor:
    """The same logits with their best one ahead by more."""
    shifted = logits.clone()
    shifted[torch.arange(len(shifted)), shifted.argmax(1)] += 1
    return shifted


@pytest.mark.parametrize("kind", SELECTORS)
def test_selectors_tell_right_from_wrong(kind):
    selector = selector_of(kind)
    selector.fit(*judged(2000, 0))
    logits, agree = judged(4000, 1)
    score = selector(logits).numpy()
    assert ((score >= 0) & (score <= 1 + 1e-6)).all()
    assert auc(score, agree) > (0.57 if kind == "scores" else 0.7)  # scores' one weight a class can tell little


@pytest.mark.parametrize("kind", ["scores", "learned"])
def test_fitted_selectors_are_calibrated(kind):
    selector = selector_of(kind)
    selector.fit(*judged(4000, 0))
    logits, agree = judged(8000, 1)
    score = selector(logits).numpy()
    assert abs(score.mean() - agree.mean()) < 0.03
    if kind == "learned":  # scores can't tell how sure an answer is, only which answers are wrong more often
        for group in np.array_split(np.argsort(score), 5):
            assert abs(score[group].mean() - agree[group].mean()) < 0.04


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_scores_are_valid_and_never_fall_when_the_best_answer_is_surer(seed, size):
    fitted = selector_of("learned")
    fitted.fit(*judged(200, 2))
    logits = torch.from_numpy((np.random.default_rng(seed).normal(size=(20, CLASSES)) * size).astype(np.float32))
    for selector in (Confidence(), fitted):
        score = selector(logits)
        assert ((score >= 0) & (score <= 1 + 1e-6)).all()
        assert (selector(surer(logits)) >= score - 1e-5).all()


def test_confidence_is_the_largest_probability():
    rows = torch.tensor([[0.0] * CLASSES, [200.0] + [0.0] * (CLASSES - 1)])
    torch.testing.assert_close(Confidence()(rows), torch.tensor([1 / CLASSES, 1.0]))


@pytest.mark.parametrize("kind", SELECTORS)
@pytest.mark.parametrize("agree", [np.ones(20, bool), np.zeros(20, bool), np.ones(1, bool), np.ones(0, bool)])
def test_selectors_survive_samples_of_one_kind(kind, agree):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(len(agree), CLASSES)).astype(np.float32))
    selector = selector_of(kind)
    selector.fit(logits, agree)
    score = selector(torch.zeros(1, CLASSES)).item()
    assert 0 <= score <= 1
    if kind in ("scores", "learned"):
        assert 0 < score < 1
        assert len(agree) < 20 or (score > 0.8 if agree.all() else score < 0.2)


def test_samples_that_all_agree_leave_the_surer_answers_ahead():
    selector = selector_of("learned")
    logits, agree = judged(2000, 0)
    selector.fit(logits[agree][:200], np.ones(200, bool))
    logits, agree = judged(4000, 1)
    assert auc(selector(logits).numpy(), agree) > 0.7


def test_a_head_that_cannot_be_traced_says_so_in_a_sentence():
    class Branching(PooledPredictor):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            logits = super().forward(features)
            return 2 * logits if logits.sum() > 0 else logits

    cut = CUTS["vector"]
    head = as_head(Branching(cut, CLASSES), Confidence())
    with pytest.raises(
        BackboneError, match=r"^PyTorch can't write the head 'pooled' on 'vector' as ONNX: .*guard.*\.$"
    ):
        head_model(head, cut, OUTPUT)
