"""The families of heads, by name. A new one is a module with `lookups` and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from gati.chain import Tensor
from gati.errors import BackboneError, SamplesError
from gati_export.families import gati, nearest, pooled, recent, selfxit, spatial
from gati_export.families.family import Family, Lookup

FAMILIES: dict[str, Family] = {
    "pooled": pooled.lookups,
    "spatial": spatial.lookups,
    "recent": recent.lookups,
    "gati": gati.lookups,
    "selfxit": selfxit.lookups,
    "nearest": nearest.lookups,
}
AUTO = "auto"


def chosen_families(names: str, runs: bool) -> tuple[str, ...]:
    """Which families to try.

    Args:
        names: Names with commas between, or `auto`: our own, with the memory only where it can be of use.
        runs: Whether samples come in runs of near-duplicates, or traffic is expected to.

    Raises:
        SamplesError: If there is no family of that name.
    """
    if names == AUTO:
        return ("pooled", "spatial", "recent") if runs else ("pooled", "spatial")
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown or not chosen:
        raise SamplesError(f"There is no family of heads {names!r}; there are {AUTO}, {', '.join(FAMILIES)}.")
    return chosen


def lookups(families: Sequence[str], cut: Tensor, classes: int) -> tuple[list[Lookup], list[str]]:
    """Untrained lookups of all these families for a cut tensor, and why others have none, in a sentence each."""
    found: list[Lookup] = []
    notes: list[str] = []
    for family in families:
        try:
            found += FAMILIES[family](cut, classes)
        except BackboneError as error:
            notes.append(str(error))
    return found, notes
