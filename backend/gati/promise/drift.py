"""Whether answers have changed: popular classes are others now, say, and what is known of heads was known of others.

Answers come in windows; how far the classes of one are from those of the windows before is their total variation
distance. A change is a distance far above the usual one, whatever that is: in random order it is chance alone, and from
scene to scene of a camera large. What changes little by little, or not in what is answered, is for audits to find.
"""

from __future__ import annotations

import math
from collections import deque
from threading import Lock

import numpy as np

WINDOW = 200
"""Answers."""
BEFORE = 10
"""Windows, at most, that one is held against."""
USUAL = 20
"""Distances, the last ones, whose median is the usual one."""
KNOWN = 4
"""Distances without which nothing is unusual."""
FAR = 2.5
"""Times the usual distance."""
BINS = 16
"""Classes are told apart modulo this: with many, two windows would have few in common in any case."""


class Drift:
    """Watches answers go by, of whatever release."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts = [0] * BINS
        self._before: deque[np.ndarray] = deque(maxlen=BEFORE)
        self._distances: deque[float] = deque(maxlen=USUAL)

    def take(self, answers: np.ndarray) -> bool:
        """Takes in answers, [rows, ...]; whether they are other than those before, as far as a whole window tells."""
        best = answers.reshape(len(answers), -1).argmax(axis=1).tolist()
        with self._lock:
            for each in best:
                self._counts[each % BINS] += 1
            if sum(self._counts) < WINDOW:
                return False
            mix, self._counts = np.divide(self._counts, sum(self._counts)), [0] * BINS
            changed = bool(self._before) and self._is_far(mix)
            if changed:
                self._before.clear()
            self._before.append(mix)
            return changed

    def _is_far(self, mix: np.ndarray) -> bool:
        before = np.mean(self._before, axis=0)
        distance = float(np.abs(mix - before).sum()) / 2
        by_chance = _mean_distance(before) * math.sqrt(1 / WINDOW + 1 / (WINDOW * len(self._before)))
        usual = max(np.median(self._distances), by_chance) if len(self._distances) >= KNOWN else math.inf
        self._distances.append(distance)
        return bool(distance > FAR * usual)


def _mean_distance(mix: np.ndarray) -> float:
    """Total variation distance, in the mean and for large n, of a mix from what n draws of it come to, times √n."""
    return float(np.sqrt(mix * (1 - mix)).sum()) / math.sqrt(2 * math.pi)
