"""What every lookup keeps to, whoever wrote it: tried before its head is written, and said in a sentence if it doesn't.

A head that breaks it could still be certified: samples are asked in batches, requests mostly one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor as Torch

from gati.errors import FamilyError, GatiError, first_line
from gati.inference.state import MEMORY_KEYS
from gati.repository.chain import Tensor
from gati_export.families.family import Found, Lookup

ROWS = 4
"""Rows that a lookup is tried on: together, then each by itself."""
APART = 0.1
"""How far two answers to one row may lie apart, as a share of their range: integers round, and sums have an order."""
BROKEN = np.nan, np.inf, -np.inf


@contextmanager
def blamed(name: str, doing: str) -> Iterator[None]:
    """Says of what a family's own code raises whose it was, and what it was doing.

    Raises:
        FamilyError: In place of any error that is none of gati's.
    """
    try:
        yield
    except (GatiError, CancelledError, MemoryError):
        raise
    except Exception as error:
        raise FamilyError(f"Head {name!r} can't {doing} ({type(error).__name__}: {first_line(error)}).") from error


def check_untrained(lookups: Sequence[Lookup], cut: Tensor) -> None:
    """Checks lookups of one family for one cut tensor: their names, and how they reduce activations.

    Raises:
        FamilyError: If they have no name or view, share a name, or reduce activations otherwise than row by row, or so
            that a NaN or an infinity is lost.
    """
    named = set[str]()
    for lookup in lookups:
        missing = [given for given in ("name", "view") if not isinstance(getattr(lookup, given, None), str)]
        if missing:
            raise FamilyError(f"A lookup of class {type(lookup).__name__} has no {missing[0]}; set it in __init__.")
        if lookup.name in named:
            raise FamilyError(
                f"Two lookups for the cut tensor {cut.name!r} are called {lookup.name!r}; name them apart."
            )
        named.add(lookup.name)
        with blamed(lookup.name, f"reduce activations of {list(cut.shape)}"), torch.no_grad():
            _check_reduction(lookup, cut)


def _check_reduction(lookup: Lookup, cut: Tensor) -> None:
    shape = cut.zeros(ROWS).shape
    hidden = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    features = lookup.reduce(hidden)
    _check_shape(lookup, "reduce", features, (ROWS, *features.shape[1:]))
    _check_alone(lookup, "reduce", features, lambda row: lookup.reduce(hidden[row]))
    for place, value in zip((0, -1, shape[-1] // 2), BROKEN, strict=True):
        broken = hidden[:1].clone()
        broken.view(-1)[place] = value
        if torch.isfinite(lookup.reduce(broken)).all():
            raise FamilyError(
                f"Head {lookup.name!r} loses {value} on the way to its features, and might hit on a broken activation; "
                "let `reduce` keep it."
            )


def check_trained(lookup: Lookup, features: np.ndarray, classes: int) -> None:
    """Checks what a lookup that has learned finds.

    Args:
        lookup: The lookup.
        features: Of some samples, [n, ...]; with n = 0 there is nothing to check.
        classes: Of the backbone, or how many numbers it gives.

    Raises:
        FamilyError: If that is not what `Found` says, or depends on what else is in the batch.
    """
    rows = torch.from_numpy(features[:ROWS].astype(np.float32))
    count = len(rows)
    if not count:
        return
    state = {name: torch.zeros(shape) for name, shape in lookup.state.items()}
    with blamed(lookup.name, "look features up"), torch.no_grad():
        found = lookup(rows, state)
        if not isinstance(found, Found):
            raise FamilyError(f"Head {lookup.name!r} gives a {type(found).__name__}; `forward` has to give a `Found`.")
        _check_shape(lookup, "logits", found.logits, (count, classes))
        _check_shape(lookup, "score", found.score, (count,))
        if found.score.lt(0).any() or found.score.gt(1 + 1e-6).any():
            raise FamilyError(f"Head {lookup.name!r} scores {found.score.max():g}; a score lies between 0 and 1.")
        if (found.key is not None) != (MEMORY_KEYS in lookup.state):
            raise FamilyError(f"Head {lookup.name!r} has to give a key if, and only if, it asks for {MEMORY_KEYS!r}.")
        _check_alone(lookup, "forward", found.logits, lambda row: lookup(rows[row], state).logits)
        _check_alone(lookup, "forward", found.score, lambda row: lookup(rows[row], state).score)


def _check_shape(lookup: Lookup, what: str, value: Torch, shape: tuple[int, ...]) -> None:
    if value.dtype != torch.float32 or value.shape != shape:
        kind = str(value.dtype).removeprefix("torch.")
        raise FamilyError(
            f"Head {lookup.name!r} gives {kind} {list(value.shape)} as its {what}, not float32 {list(shape)}."
        )


def _check_alone(lookup: Lookup, step: str, together: Torch, alone: Callable[[slice], Torch]) -> None:
    each = torch.cat([alone(slice(row, row + 1)) for row in range(len(together))])
    span = float(together.max() - together.min())
    if (each - together).abs().max() > APART * span + 1e-4:
        raise FamilyError(
            f"What `{step}` of head {lookup.name!r} makes of a row depends on the other rows; every row is by itself."
        )
