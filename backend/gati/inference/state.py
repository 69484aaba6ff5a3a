"""State that heads may ask for: it is kept between requests, beside the head.

`class_mix` FP32 [classes] is the recent mix of answers, exponentially forgotten. `memory_keys` FP32 [entries, dim] and
`memory_answers` FP32 [entries, classes] are a ring of recent keys, and of what the backbone or a later head answered to
them. The shapes in the head's own file bound its state. State starts empty, is dropped with its release, and is never
shared between models.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

import numpy as np

CLASS_MIX, MEMORY_KEYS, MEMORY_ANSWERS = "class_mix", "memory_keys", "memory_answers"
STATE_INPUTS = {CLASS_MIX, MEMORY_KEYS, MEMORY_ANSWERS}

FORGET = 0.98
"""Weight that the mix keeps at each answer: half of the mix is from the last 34 answers."""
EMPTY = np.float32(1e15)
"""Every coordinate of an empty entry's key: far from everything, and its square still a float32."""


class HeadState:
    """The state of one head of one release, for several threads: an update replaces arrays, and never changes them.

    Args:
        shapes: Shapes of the state that the head asks for, by input name.

    Attributes:
        counts: Whether it holds a class mix.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._values: dict[str, np.ndarray] = {name: _empty(name, shape) for name, shape in shapes.items()}
        self.counts = CLASS_MIX in self._values
        self._next = 0
        self._lock = Lock()

    def feeds(self) -> Mapping[str, np.ndarray]:
        """The inputs to pass to the head, as they are now. The arrays do not change afterwards."""
        return self._values

    def count(self, answers: np.ndarray) -> None:
        """Adds answers, [batch, classes], to the class mix, if there is one."""
        if not self.counts:
            return
        with self._lock:
            mix = self._values[CLASS_MIX].copy()
            for label in answers.argmax(-1):
                mix *= FORGET
                mix[label] += 1 - FORGET
            self._values = self._values | {CLASS_MIX: mix}

    def remember(self, keys: np.ndarray, answers: np.ndarray) -> None:
        """Stores answers, [batch, classes], under keys, [batch, dim], in place of the oldest entries.

        A key that is not finite is left out: in the ring, it would turn every lookup into a miss.
        """
        if MEMORY_KEYS not in self._values:
            return
        sound = [place for place, key in enumerate(keys) if np.isfinite(key).all()]
        if not sound:
            return
        with self._lock:
            new = {name: self._values[name].copy() for name in (MEMORY_KEYS, MEMORY_ANSWERS) if name in self._values}
            for place in sound:
                for name, values in ((MEMORY_KEYS, keys), (MEMORY_ANSWERS, answers)):
                    if name in new:
                        new[name][self._next] = values[place]
                self._next = (self._next + 1) % len(new[MEMORY_KEYS])
            self._values = self._values | new


def _empty(name: str, shape: tuple[int, ...]) -> np.ndarray:
    fill = {CLASS_MIX: np.float32(1 / shape[0]), MEMORY_KEYS: EMPTY, MEMORY_ANSWERS: np.float32(0)}
    return np.full(shape, fill[name], np.float32)
