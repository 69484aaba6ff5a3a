"""Tickers: threads that do the same thing again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gati.errors import first_line


class Ticker:
    """Calls functions again and again, in a thread of its own, until it is closed.

    Args:
        seconds: Time between two rounds.
        warn: Called with the error when a function fails; the ticking goes on.
        functions: Called in turn, in each round.
    """

    def __init__(self, seconds: float, warn: Callable[[str], None], *functions: Callable[[], None]) -> None:
        self._seconds = seconds
        self._warn = warn
        self._functions = functions
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gati-ticker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            for function in self._functions:
                try:
                    function()
                except Exception as error:  # the thread outlives any failure of one round
                    self._warn(f"{function.__qualname__} failed: {type(error).__name__}: {first_line(error)}")

    def close(self) -> None:
        """Ends the thread after the round in progress; gives up waiting for it after 10 s."""
        self._stop.set()
        self._thread.join(timeout=10)
