"""The families of heads, by name. A new one is a module with `lookups`, and its name here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from gati.errors import BackboneError, FamilyError, SamplesError
from gati.repository.chain import Tensor

if TYPE_CHECKING:
    from gati_export.families.family import Family, Lookup

FAMILIES = "pooled", "spatial", "recent", "gati", "selfxit", "branchynet", "nearest", "regression"
AUTO = "auto"
ONLY_NUMBERS = "regression"
FOR_NUMBERS = ONLY_NUMBERS, "recent"
"""Those that can answer where outputs are numbers, not scores of classes."""


def family_of(name: str) -> Family:
    """A family. Its module is imported now: what only names families need not wait for PyTorch.

    Raises:
        FamilyError: If its module has no `lookups`.
    """
    module = import_module(f"{__name__}.{name}")
    if not hasattr(module, "lookups"):
        raise FamilyError(f"{module.__name__} has no function lookups(cut, classes).")
    return module.lookups


def named_families(names: str) -> tuple[str, ...]:
    """The families of these names, with commas between, each once; `auto` names itself.

    Raises:
        SamplesError: If there is no family of a name.
    """
    named = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if named != (AUTO,) and not (named and {*named} <= {*FAMILIES}):
        raise SamplesError(f"There is no family of heads {names!r}; there are {AUTO}, {', '.join(FAMILIES)}.")
    return named


def chosen_families(names: str, runs: bool, numbers: bool = False) -> tuple[str, ...]:
    """Which families to try.

    Args:
        names: Names with commas between, or `auto`: our own, with the memory only where it can be of use.
        runs: Whether samples come in runs of near-duplicates, or traffic is expected to.
        numbers: Whether answers are numbers and not classes.

    Raises:
        SamplesError: If there is no family of that name, or it can't give such answers.
    """
    chosen = named_families(names)
    if chosen == (AUTO,):
        learned = ("regression",) if numbers else ("pooled", "spatial")
        return (*learned, "recent") if runs else learned
    unfit = [name for name in chosen if (name not in FOR_NUMBERS if numbers else name == ONLY_NUMBERS)]
    if unfit:
        answers = "numbers (agreement 'within X')" if numbers else "classes"
        raise SamplesError(f"Heads of the family {unfit[0]!r} can't answer with {answers}; leave it out.")
    return chosen


def lookups(families: Sequence[str], cut: Tensor, classes: int) -> tuple[list[Lookup], list[str]]:
    """Untrained lookups of all these families for a cut tensor, and why others have none, in a sentence each.

    Raises:
        FamilyError: If a family fails, or its lookups are not as they must be.
    """
    from gati_export.families.contract import blamed, check_untrained

    found: list[Lookup] = []
    notes: list[str] = []
    for family in families:
        try:
            with blamed(family, f"be made for the cut tensor {cut.name!r}"):
                fitting = family_of(family)(cut, classes)
            check_untrained(fitting, cut)
            found += fitting
        except BackboneError as error:
            notes.append(str(error))
    return found, notes
