"""What a soak (soak.py) asks: digits of which two are popular, then two others; and what it was answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from world import Replica

from gati_client import Client
from gati_client.errors import ClientError
from gati_client.workload import hot
from gati_export.demo.digits import pools, views

BLOCK = 100
"""Requests that are drawn at a time."""
LENGTH = 500_000
"""Requests after which the same digits are asked for again, as other views."""


@dataclass
class Asked:
    """What a server was asked, and answered.

    Attributes:
        rows: The request's number, the class that it was told, and the release.
        times: When that was asked, in seconds of time.monotonic, and how long it took.
        errors: When requests failed, and what was said.
    """

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)


class Traffic:
    """Views of digits, two of which are popular for a while, then two others; the same seed, the same views.

    Args:
        dwell: Requests for which the same are popular.
        seed: Of all that is drawn.
    """

    def __init__(self, dwell: int, seed: int) -> None:
        self.dwell, self.seed = dwell, seed
        self._pool = pools()[1]
        self._index = hot(self._pool.labels, LENGTH, seed=seed, hot=2, share=0.9, dwell=dwell)
        self._lock, self._next = threading.Lock(), 0

    def block(self, number: int) -> np.ndarray:
        """The requests of a block, float32 [BLOCK, 1, 64, 64]."""
        start = number * BLOCK % LENGTH
        return views(self._pool, self._index[start : start + BLOCK], self.seed * 1_000_003 + number)

    def take(self) -> Iterator[tuple[int, np.ndarray]]:
        """One request after another with its number, shared by all clients."""
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            for i, image in enumerate(self.block(number)):
                yield number * BLOCK + i, image[None]


def ask(replica: Replica, model: str, traffic: Traffic, rate: float, asked: Asked, done: threading.Event) -> None:
    """Asks a server one request after another, so many a second at most, until told to end."""
    due = time.monotonic()
    with Client(replica.address, model) as client:
        for number, image in traffic.take():
            due = max(due + 1 / rate, time.monotonic())
            if done.wait(due - time.monotonic()):
                return
            started = time.monotonic()
            try:
                answer = client.infer(image)
            except ClientError as error:
                asked.errors.append((time.monotonic(), str(error)))
                done.wait(0.2)
                continue
            asked.times.append((started, time.monotonic() - started))
            release = 0 if answer.release is None else int(answer.release[0])
            asked.rows.append((number, int(answer.output.argmax()), release))
