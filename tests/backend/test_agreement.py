"""Agreements: what counts as the backbone's answer, and what is said where that can't be judged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gati.errors import AgreementError
from gati.repository.agreement import difference, of_numbers, parse_agreement

BACKBONE = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [5, 5, 0, 0], [0, 0, 7, 7]])
SERVED = np.array([[9.0, 0, 0, 0], [0, 0, 1, 0], [0, 9, 0, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top-1", [True, False, False, False]),
        (" top-2 ", [True, True, True, False]),
        ("top-3", [True, True, True, True]),
    ],
)
def test_served_class_is_among_the_best(text, expected):
    agree = parse_agreement(text)
    assert agree(SERVED, BACKBONE).tolist() == expected
    assert agree(SERVED.astype(np.float16), BACKBONE.astype(np.float16)).tolist() == expected
    assert agree(SERVED.astype(np.int32), BACKBONE.astype(np.int32)).tolist() == expected
    assert agree(SERVED[:0], BACKBONE[:0]).shape == (0,)


scores = arrays.arrays(np.float32, (6, 5), elements=st.sampled_from([-np.inf, -1, 0, 0.5, 2, np.inf, np.nan]))


@given(scores, scores)
def test_best_classes_are_what_argmax_and_sorting_say(served, backbone):
    known = ~(np.isnan(served).any(1) | np.isnan(backbone).any(1))
    said = parse_agreement("top-1")(served, backbone)
    assert said.tolist() == (known & (served.argmax(1) == backbone.argmax(1))).tolist()
    best = np.argsort(-backbone, axis=1, kind="stable")
    for k in (2, 4):
        said = parse_agreement(f"top-{k}")(served, backbone)
        assert said.tolist() == (known & (best[:, :k] == served.argmax(1)[:, None]).any(1)).tolist()
    assert parse_agreement("top-1")(backbone, backbone).tolist() == (~np.isnan(backbone).any(1)).tolist()
    assert parse_agreement("within 0")(backbone, backbone).tolist() == (~np.isnan(backbone).any(1)).tolist()


def test_a_class_for_every_place_must_agree_everywhere():
    served = np.array([[[1.0, 0], [0, 1]], [[1, 0], [1, 0]]])
    backbone = np.array([[[2.0, 1], [1, 2]], [[2, 1], [1, 2]]])
    assert parse_agreement("top-1")(served, backbone).tolist() == [True, False]


def test_numbers_are_within_a_distance():
    agree = parse_agreement("within 0.5")
    served = np.array([[1.0, 2], [1, 2], [1, np.nan], [np.inf, 0], [np.inf, 0]], np.float32)
    backbone = np.array([[1.5, 1.5], [1, 2.6], [1, np.nan], [np.inf, 0], [-np.inf, 0]], np.float32)
    assert agree(served, backbone).tolist() == [True, False, False, True, False]
    assert agree(served[:, 0], backbone[:, 0]).tolist() == [True, True, True, True, False]
    assert parse_agreement("within 1e-3")(np.array([[255, 0]], np.uint8), np.array([[255, 0]], np.uint8)).all()
    assert not parse_agreement("within 5")(np.array([[250]], np.uint8), np.array([[0]], np.uint8)).any()
    assert parse_agreement("within 3")(BACKBONE[:0], BACKBONE[:0]).shape == (0,)


MODULE = """
import numpy as np
SIGN = 3
def sign(served, backbone): return (served[:, 0] > 0) == (backbone[:, 0] > 0)
def listed(served, backbone): return [True] * len(served)
def numbers(served, backbone): return np.ones(len(served))
def table(served, backbone): return served == backbone
def one(served, backbone): return True
def fails(served, backbone): raise KeyError("no such class")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "ours_to_judge.py").write_text(MODULE)
    (tmp_path / "broken_to_judge.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield "ours_to_judge"
    sys.modules.pop("ours_to_judge", None)


def test_a_function_of_the_users(module):
    served, backbone = np.array([[1.0], [-1], [np.nan], [2]]), np.array([[3.0], [3], [np.nan], [np.nan]])
    assert parse_agreement(f"{module}:sign")(served, backbone).tolist() == [True, False, False, False]
    assert parse_agreement(f"{module}:listed")(served, backbone).tolist() == [True, True, False, False]
    assert parse_agreement("numpy.testing:assert_array_equal")


def test_a_function_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here_to_judge.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(AgreementError, match="'not_here_to_judge' could not be imported"):
        parse_agreement("not_here_to_judge:sign")
    assert parse_agreement("here_to_judge:listed")(SERVED, BACKBONE).all()
    assert difference("here_to_judge:sign") == "disagree with the backbone's as here_to_judge:sign judges it"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("numbers", r"must return bool \[4\] .* returned float64 \[4\]"),
        ("table", r"returned bool \[4, 4\]"),
        ("one", r"returned bool \[\]"),
        ("fails", r"failed \(KeyError: 'no such class'\)"),
    ],
)
def test_a_function_that_misbehaves_is_named(module, name, says):
    with pytest.raises(AgreementError, match=f"{module}:{name}.*{says}"):
        parse_agreement(f"{module}:{name}")(SERVED, BACKBONE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not one of"),
        ("top-0", "is not one of"),
        ("top-", "is not one of"),
        ("top-1.5", "is not one of"),
        ("top 1", "is not one of"),
        ("accuracy", "is not one of"),
        ("a:b:c", "is not one of"),
        ("within", "is not one of"),
        ("within far", "takes a number from 0 on, not 'far'"),
        ("within -1", "takes a number from 0 on"),
        ("within nan", "takes a number from 0 on"),
        ("within inf", "takes a number from 0 on"),
        ("ours_to_judge:SIGN", "'ours_to_judge' has no function or class 'SIGN'"),
        ("ours_to_judge:nothing", "'ours_to_judge' has no function or class 'nothing'"),
        ("no_such_module_here:judge", "'no_such_module_here' could not be imported"),
        ("broken_to_judge:judge", r"could not be imported \(ZeroDivisionError: division by zero\)"),
        ("..relative:judge", "is not one of"),
    ],
)
def test_what_is_no_agreement_is_refused(module, text, says):
    with pytest.raises(AgreementError, match=says) as caught:
        parse_agreement(text)
    assert "\n" not in str(caught.value)


def test_answers_that_cannot_be_judged_are_refused():
    with pytest.raises(AgreementError, match="Any answer meets top-4 of 4"):
        parse_agreement("top-4")(SERVED, BACKBONE)
    with pytest.raises(AgreementError, match=r"Any answer meets top-1 of 1;.*within X"):
        parse_agreement("top-1")(SERVED[:, :1], BACKBONE[:, :1])
    with pytest.raises(AgreementError, match="meets top-1 of 1"):
        parse_agreement("top-1")(SERVED[:, 0], BACKBONE[:, 0])
    for text in ("top-1", "within 1"):
        with pytest.raises(AgreementError, match=r"\[4, 4\] can't be compared with .* \[4, 1\]"):
            parse_agreement(text)(SERVED, BACKBONE[:, :1])
        with pytest.raises(AgreementError, match=r"\[\] can't be compared"):
            parse_agreement(text)(np.float32(1), np.float32(1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("top-1", "name another class than the backbone's"),
        ("top-3", "not among the backbone's 3 best"),
        ("within 0.1", "by more than 0.1"),
        ("ours:judge", "as ours:judge judges it"),
        ("what an older release said", "as what an older release said judges it"),
    ],
)
def test_agreements_can_be_spoken_of(text, words):
    assert words in difference(text)


def test_which_agreements_are_about_numbers():
    about = {text: of_numbers(text) for text in ("top-1", "within 0.1", "  within  2 ", "within", "a.b:within")}
    assert [text for text, numbers in about.items() if numbers] == ["within 0.1", "  within  2 "]
