"""Descents: local search for a good composition. Heads are exchanged, and allowed errors moved between cut points.

Each step takes the neighbour that helps most, until none does. The search for a proven best one is in
gati_export.composition.tree.
"""

from __future__ import annotations

import math

import numpy as np

from gati_export.composition.tree import PROOF, Choice, Tree

STARTS, KICKS, DESCENT = 4, 8, 500
"""Most descents from random heads, and then from the best composition with some heads drawn anew; and the effort that
each of them counts for."""
KICKED = 2 / 3
"""Share of the cut points at which heads are drawn anew."""
EXCHANGES = (1, -2, 4)
"""How many errors are moved together with an exchange of heads; all powers of 2 take longer and find nothing better."""
TRIES = 128
"""How many neighbours of a composition are evaluated together."""


def descend(
    tree: Tree, heads: np.ndarray, errors: np.ndarray, must: int | None = None
) -> tuple[Choice, np.ndarray, np.ndarray]:
    """Follows what helps most, among exchanging a head and moving errors between cut points, until nothing helps.

    Args:
        tree: The options and limits.
        heads: Numbers of the heads to begin with, -1 for none, [cut points].
        errors: How many errors there may be up to each cut point, [cut points], rising.
        must: A cut point whose head has to stay, and has to hit something.

    Returns:
        The best choice that was found, and its heads and errors. Its time is infinite if that head never hit anything.
    """
    (best,), (choice,) = _play_all(tree, heads[None], errors[None], must)
    while True:
        around = _neighbours(tree, heads, errors, must)
        seconds, choices = _play_all(tree, *around, must)
        pick = int(seconds.argmin())
        if not seconds[pick] < best * (1 - PROOF):
            return tree.read(best, choice), heads, errors
        best, choice, heads, errors = seconds[pick], choices[pick], around[0][pick], around[1][pick]


def _play_all(tree: Tree, heads: np.ndarray, errors: np.ndarray, must: int | None) -> tuple[np.ndarray, np.ndarray]:
    """`Tree.play`, a few at a time. Times are infinite if the head that has to hit something does not."""
    starts = range(0, len(heads), TRIES)
    played = [tree.play(heads[start : start + TRIES], errors[start : start + TRIES]) for start in starts]
    seconds, choices = (np.concatenate(parts) for parts in zip(*played, strict=True))
    if must is not None:
        seconds[choices[:, must] < 0] = math.inf
    return seconds, choices


def _neighbours(tree: Tree, heads: np.ndarray, errors: np.ndarray, must: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours: errors moved between two cut points, perhaps together with another head at one of them."""
    found = []
    steps = [sign << power for power in range(max(1, tree.errors.bit_length() - 1)) for sign in (1, -1)]
    for cut in range(tree.cuts):
        others = [number for number in [-1, *tree.at[cut]] if number != heads[cut] and cut != must]
        exchanged = [np.where(np.arange(tree.cuts) == cut, number, heads) for number in others]
        for end in range(tree.cuts + 1):
            for step in steps:
                moved = errors.copy()
                moved[min(cut, end) : max(cut, end)] += step
                moved = np.maximum.accumulate(np.clip(moved, 0, tree.errors))
                found.append((heads, moved))
                if step in EXCHANGES:
                    found += [(other, moved) for other in exchanged]
    both = np.unique(np.array([np.r_[pair] for pair in found]), axis=0)
    return both[:, : tree.cuts], both[:, tree.cuts :]


def descend_often(tree: Tree, turns: int) -> Choice:
    """The best of descents from no heads, from random heads, and from the best ones with some drawn anew."""
    random = np.random.default_rng(0)
    even = np.arange(1, tree.cuts + 1) * tree.errors // tree.cuts
    best = descend(tree, np.full(tree.cuts, -1), even)
    for turn in range(min(turns, STARTS + KICKS)):
        drawn = np.array([random.choice([-1, *numbers]) for numbers in tree.at])
        if turn < STARTS:
            found = descend(tree, drawn, even)
        else:
            found = descend(tree, np.where(random.random(tree.cuts) < KICKED, drawn, best[1]), best[2])
        best = min(best, found, key=lambda found: found[0].seconds)
    return best[0]
