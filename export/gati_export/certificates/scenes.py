"""Scenes: near-duplicates with many others between them, as where dozens of cameras take turns on one server.

Among hundreds of samples, many have one that is close by chance. So they are held against as many that were served at
another time: frames of one scene are much closer to each other than to any of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gati_export.certificates.similarity import CLOSE, Kind

WINDOW, FEWEST = 512, 17
"""Samples looked back at, a sixteenth of all at most; and the least for which that is worth it."""
JUDGED, ELSEWHERE = 3, (2, 5, 6)
"""How many sevenths of all samples later others are taken: those to be judged like those before, and those to judge by.

No one of each adds up to seven, so that no sample is judged by one that it is compared with.
"""
LINKED, CHANCE, CLOSEST = 0.7, 0.6, 0.4
"""Samples are of one scene up to the first share of the distance to the nearest of those elsewhere.

Of frames of CIFAR-10 by 24 cameras, 97 % have one so close before them, and 75 % one up to the last share; of its
pictures in random order 0.2 and 0.0 %, of digits 10 and 2 %, of popular digits that drift 80 and 20 %.
"""
STAND_OUT, EXCESS = 0.35, 0.005
"""There are scenes if so many of the samples that are linked to one before them are closest to one; and so many of all.

Less those that have one by chance: up to the second share, among as many that are judged like those before. Cameras
make the first 0.4 to 1, and popular digits that drift 0.2 at most.
"""


def find_scenes(samples: Mapping[str, np.ndarray], kinds: Sequence[Kind], alone: np.ndarray) -> np.ndarray:
    """Finds samples that show the same scene as one of the 512 before them.

    Two do if they are close (gati_export.certificates.similarity), and closer than either is to nearly all that were
    served at other times. Copies don't: what is asked again and again may be a popular input; see
    gati_export.certificates.splitting.

    Args:
        samples: Model inputs by name, n rows each, in the order they were served.
        kinds: What they are compared by.
        alone: Which are of no run so far, bool [n]: if these do not show that there are scenes, there are none.

    Returns:
        Samples, and one that each is of a scene with, int [2, links]; none where others may be as close by chance.
    """
    n = len(alone)
    window = min(WINDOW, n // 16)
    links = [np.empty((2, 0), np.int64)]
    if window < FEWEST:
        return links[0]
    names = _names(samples)
    nearest = [_nearest_elsewhere(kind, n, window) for kind in kinds]
    linked, closest, chance = np.zeros((3, n), bool)
    for block in _blocks(n, window):
        earlier, later = np.arange(max(0, block[0] - window), block[-1]), _later(block, window, n, JUDGED)
        shares = _shares(kinds, nearest, names, block, earlier)
        lags = np.subtract.outer(block, earlier)
        shares[(lags < 1) | (lags > window)] = np.inf
        links.append(_linked(shares <= LINKED, block, earlier))
        least = shares.min(axis=1)
        linked[block], closest[block] = least <= LINKED, least <= CLOSEST
        chance[block] = _shares(kinds, nearest, names, block, later).min(axis=1) <= CHANCE
    among = [float((each & alone).mean()) for each in (linked, closest, chance)]
    return np.concatenate(links, axis=1) if _stand_out(*among, n=n) else links[0]


def _stand_out(linked: float, closest: float, chance: float, *, n: int) -> bool:
    """Whether there are scenes among n samples: what is alike by chance, or popular, is seldom closest."""
    beyond = closest - chance
    noise = 5 * np.sqrt(max(chance, 1 / n) / n)
    return bool(beyond > max(EXCESS, noise, STAND_OUT * linked))


def _blocks(n: int, size: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + size, n)) for start in range(0, n, size))


def _later(block: np.ndarray, window: int, n: int, sevenths: int) -> np.ndarray:
    """As many samples as are looked back at, so much later; behind the last comes the first."""
    return (block[0] + sevenths * n // 7 + np.arange(window)) % n


def _nearest_elsewhere(kind: Kind, n: int, window: int) -> np.ndarray:
    """How far the nearest of those elsewhere is, float [n]: where it is farthest, as one may be of a long scene."""
    nearest = np.zeros(n)
    for block in _blocks(n, window):
        there = [kind.distances(block, _later(block, window, n, sevenths)).min(axis=1) for sevenths in ELSEWHERE]
        nearest[block] = np.max(there, axis=0)
    return nearest


def _shares(
    kinds: Sequence[Kind], nearest: Sequence[np.ndarray], names: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> np.ndarray:
    """Distances as shares of what the nearest elsewhere has, [k, m], by the kind in which they are farther apart.

    They are infinite for copies, and for those that are not close.
    """
    shares = np.where(np.equal.outer(names[ours], names[theirs]), np.inf, 0)
    for kind, limit in zip(kinds, nearest, strict=True):
        apart = kind.distances(ours, theirs)
        far = apart > CLOSE * np.minimum.outer(kind.typical[ours], kind.typical[theirs])
        least = np.maximum(np.minimum.outer(limit[ours], limit[theirs]), np.finfo(np.float32).tiny)
        shares = np.maximum(shares, np.where(far, np.inf, apart / least))
    return shares


def _linked(close: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Links, int [2, links], that leave together what all of close, bool [k, m], would: far fewer."""
    first, second = np.nonzero(close)
    rows, places = np.unique(np.concatenate([ours[first], theirs[second]]), return_inverse=True)
    graph = coo_array((np.ones(len(first), bool), (places[: len(first)], places[len(first) :])), shape=(len(rows),) * 2)
    _, heads, members = np.unique(
        connected_components(graph, directed=False)[1], return_index=True, return_inverse=True
    )
    return np.stack([rows, rows[heads[members]]])


def _names(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """A number for each content, int [n]."""
    arrays = [samples[name] for name in sorted(samples)]
    contents: dict[tuple[object, ...], int] = {}
    names = np.empty(len(arrays[0]), np.int64)
    for row in range(len(names)):
        content = tuple(hash(array[row].tobytes()) for array in arrays)
        names[row] = contents.setdefault(content, len(contents))
    return names
