"""What a family's code does wrong is said in a sentence that names it, before a head of it is certified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from lessons import CLASSES, CUTS, course
from torch import Tensor as Torch

from gati.errors import FamilyError
from gati.inference.state import MEMORY_ANSWERS, MEMORY_KEYS
from gati.repository.chain import Tensor
from gati_export import families
from gati_export.families.contract import blamed, check_trained, check_untrained
from gati_export.families.family import Found, Lookup
from gati_export.learning.lessons import Lessons

CUT = CUTS["vector"]


class Plain(Lookup):
    """A lookup that keeps to everything."""

    name, view = "plain", "as it is"

    def learn(self, train: object, tune: object, seed: int, start: Mapping[str, Torch] | None) -> None:
        """Knows all from the first."""

    def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
        logits = features[:, :CLASSES]
        return Found(logits, torch.softmax(logits, 1).amax(1))


def plain() -> Plain:
    return Plain().eval()


def reducing(how: Callable[[Torch], Torch]) -> Plain:
    lookup = plain()
    lookup.reduce = how  # type: ignore[method-assign]
    return lookup


def finding(how: Callable[[Found], object], state: Mapping[str, tuple[int, ...]] | None = None) -> Plain:
    """A plain lookup whose finds are changed."""

    class Changed(Plain):
        def forward(self, features: Torch, state: Mapping[str, Torch]) -> Found:
            return how(super().forward(features, state))  # type: ignore[return-value]

    lookup = Changed().eval()
    lookup.state = state or {}
    return lookup


def nameless() -> Plain:
    lookup = plain()
    lookup.name = None  # type: ignore[assignment]
    return lookup


UNTRAINED = {
    "no name": ([nameless()], "class Plain has no name"),
    "one name": ([plain(), plain()], "Two lookups .* 'vector' are called 'plain'"),
    "other rows": ([reducing(lambda hidden: hidden - hidden.mean(0))], "What `reduce` of head 'plain'"),
    "one row": ([reducing(lambda hidden: hidden[:1])], r"gives float32 \[1, 24\] as its reduce, not .* \[4, 24\]"),
    "double": ([reducing(lambda hidden: hidden.double())], "gives float64"),
    "not seen": ([reducing(lambda hidden: hidden[:, :-1])], "'plain' loses inf"),
    "hidden NaN": ([reducing(torch.nan_to_num)], "'plain' loses nan"),
    "no image": ([reducing(lambda hidden: hidden.mean((2, 3)))], r"can't reduce activations of \[24\] \(IndexError"),
}


@pytest.mark.parametrize(("lookups", "message"), UNTRAINED.values(), ids=UNTRAINED)
def test_lookups_are_checked_before_they_learn(lookups: list[Lookup], message: str) -> None:
    check_untrained([plain()], CUT)
    with pytest.raises(FamilyError, match=message):
        check_untrained(lookups, CUT)


MEMORY = {MEMORY_KEYS: (4, 3), MEMORY_ANSWERS: (4, CLASSES)}
TRAINED = {
    "tuple": (finding(tuple), "gives a tuple; `forward` has to give a `Found`"),
    "more classes": (finding(lambda it: it._replace(logits=it.logits.repeat(1, 2))), r"\[4, 12\] as its logits"),
    "double": (finding(lambda it: it._replace(logits=it.logits.double())), "gives float64"),
    "column": (finding(lambda it: it._replace(score=it.score[:, None])), r"\[4, 1\] as its score, not float32 \[4\]"),
    "percent": (finding(lambda it: it._replace(score=it.score * 100)), "a score lies between 0 and 1"),
    "other rows": (finding(lambda it: it._replace(logits=it.logits - it.logits.mean(0))), "What `forward` of head"),
    "others' score": (finding(lambda it: it._replace(score=it.score / it.score.sum())), "depends on the other rows"),
    "no key": (finding(lambda it: it, MEMORY), "has to give a key if"),
    "a key": (finding(lambda it: it._replace(key=it.logits)), "has to give a key if"),
    "failure": (finding(lambda it: it.none), r"can't look features up \(AttributeError"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize(("lookup", "message"), TRAINED.values(), ids=TRAINED)
def test_what_lookups_find_is_checked_when_they_have_learned(lookup: Lookup, message: str) -> None:
    seen = course(CUT, 9, 0).lesson(lookup).features
    check_trained(plain(), seen, CLASSES)
    check_trained(finding(lambda it: it._replace(score=it.score * np.nan)), seen, CLASSES)  # that is a miss
    check_trained(lookup, seen[:0], CLASSES)
    with pytest.raises(FamilyError, match=message):
        check_trained(lookup, seen, CLASSES)


def test_a_family_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Singular(Plain):
        def learn(self, train: object, tune: object, seed: int, start: Mapping[str, Torch] | None) -> None:
            raise ValueError("singular matrix\nand more")

    seen = course(CUT, 20, 0)
    lesson = seen.lesson(plain())
    lessons = Lessons(np.arange(15), np.arange(15, 20), np.arange(20), 0, {(3, plain().view): lesson.features})
    lessons.logits = seen.logits
    with pytest.raises(FamilyError, match=r"^Head 'plain' can't learn at exit 3 \(ValueError: singular matrix\)\.$"):
        lessons.train_all([(3, Singular())], {}, lambda _: None)
    with pytest.raises(FamilyError, match="What `forward` of head"):
        lessons.train_all([(3, TRAINED["other rows"][0])], {}, lambda _: None)
    with pytest.raises(CancelledError), blamed("plain", "learn"):
        raise CancelledError  # that is no fault of it

    def picky(_cut: Tensor, _classes: int) -> list[Lookup]:
        raise ValueError("images only")

    monkeypatch.setattr(families, "family_of", lambda _: picky)
    with pytest.raises(FamilyError, match=r"'gati' can't be made for the cut tensor 'vector' \(ValueError: images"):
        families.lookups(["gati"], CUT, CLASSES)
    monkeypatch.undo()
    with pytest.raises(FamilyError, match=r"gati_export\.families\.contract has no function lookups\(cut, classes\)"):
        families.lookups(["contract"], CUT, CLASSES)
