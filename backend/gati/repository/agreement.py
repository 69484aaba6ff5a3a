"""Agreement: what it means that a served answer is as good as the backbone's.

    top-1                     the largest score is at the same place (the default)
    top-K                     the served best class is among the backbone's K best
    within X                  every number is within X of the backbone's: for regression
    package.module:function   a function of your own, called as an `Agreement` is

Equal scores rank by their place, as `argmax` has it. An answer with a NaN in it, or a backbone's, agrees with nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from gati.errors import AgreementError
from gati.imports import import_callable

Agreement = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From what was served and what the backbone says, [n, classes] each, to where they agree, bool [n]."""

DEFAULT = "top-1"
_TOP = re.compile(r"top-([1-9]\d{0,8})")
_WITHIN = re.compile(r"within\s+(\S+)")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def parse_agreement(text: str) -> Agreement:
    """Reads an agreement, see above; a function of the user's is imported.

    The agreement raises AgreementError where it can't judge: answers of two shapes, a top-K that every answer meets,
    or a function that fails or does not return bool [n].

    Raises:
        AgreementError: If the text is none of the four, or its function can't be imported.
    """
    name = text.strip()
    rule = _rule(name)

    def agree(served: np.ndarray, backbone: np.ndarray) -> np.ndarray:
        if served.shape != backbone.shape or not served.ndim:
            raise AgreementError(
                f"Answers of shape {list(served.shape)} can't be compared with the backbone's, of shape "
                f"{list(backbone.shape)}; give both as [n, classes]."
            )
        return rule(served, backbone) & ~_each(np.any, np.isnan(served) | np.isnan(backbone))

    return agree


def check_classes(text: str, classes: int) -> None:
    """Refuses an agreement that any answer with so many scores would meet.

    Raises:
        AgreementError: If it is one.
    """
    if top := _TOP.fullmatch(text.strip()):
        _check_top(int(top[1]), classes)


def of_numbers(text: str) -> bool:
    """Whether an agreement is about numbers, and not about which class has the largest score."""
    return _WITHIN.fullmatch(text.strip()) is not None


def difference(text: str) -> str:
    """How answers that don't agree are spoken of, after "answers": "name another class than the backbone's"."""
    name = text.strip()
    if name == DEFAULT:
        return "name another class than the backbone's"
    if top := _TOP.fullmatch(name):
        return f"name a class that is not among the backbone's {top[1]} best"
    if within := _WITHIN.fullmatch(name):
        return f"differ from the backbone's by more than {within[1]}"
    return f"disagree with the backbone's as {name} judges it"


def _rule(name: str) -> Agreement:
    if top := _TOP.fullmatch(name):
        return _top(int(top[1]))
    if within := _WITHIN.fullmatch(name):
        return _within(within[1])
    if _FUNCTION.fullmatch(name):
        return _checked(name, import_callable(name, AgreementError))
    raise AgreementError(f"Agreement {name!r} is not one of top-1, top-K, within X and package.module:function.")


def _check_top(k: int, classes: int) -> None:
    if k >= classes:
        raise AgreementError(
            f"Any answer meets top-{k} of {classes}; take fewer, or say within X where outputs are no scores."
        )


def _top(k: int) -> Agreement:
    def agree(served: np.ndarray, backbone: np.ndarray) -> np.ndarray:
        classes = served.shape[-1] if served.ndim > 1 else 1
        _check_top(k, classes)
        best = served.argmax(-1)[..., None]
        score = np.take_along_axis(backbone, best, -1)
        ahead = (backbone > score) | ((backbone == score) & (np.arange(classes) < best))
        return _each(np.all, ahead.sum(-1) < k)

    return agree


def _within(limit: str) -> Agreement:
    try:
        most = float(limit)
    except ValueError:
        most = math.nan
    if not 0 <= most < math.inf:
        raise AgreementError(f"Agreement 'within X' takes a number from 0 on, not {limit!r}.")

    def agree(served: np.ndarray, backbone: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # ∞ − ∞, which are equal
            near = np.abs(served.astype(np.float64) - backbone.astype(np.float64)) <= most
        return _each(np.all, near | (served == backbone))

    return agree


def _checked(name: str, function: Agreement) -> Agreement:
    def agree(served: np.ndarray, backbone: np.ndarray) -> np.ndarray:
        try:
            said = np.asarray(function(served, backbone))
        except Exception as error:  # whatever the user's function raises
            raise AgreementError(f"Agreement {name!r} failed ({type(error).__name__}: {error}).") from error
        if said.dtype != np.bool_ or said.shape != (len(served),):
            raise AgreementError(
                f"Agreement {name!r} must return bool [{len(served)}] for as many answers, and it returned "
                f"{said.dtype} {list(said.shape)}."
            )
        return said

    return agree


def _each(reduce: Callable[..., np.ndarray], told: np.ndarray) -> np.ndarray:
    """Reduces what is told of every number to one bool a row, [n]."""
    return reduce(told, axis=tuple(range(1, told.ndim)))
