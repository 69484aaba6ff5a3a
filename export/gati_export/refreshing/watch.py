"""`gati refresh --watch`: one refresh after another, each in a process of its own, whenever enough was served.

A process gives all its memory back when it ends. It may also be killed, or run out of memory: the next turn comes all
the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from gati.errors import GatiError
from gati.system.parent import die_with_parent

LOOK_SECONDS = 1.0
"""Longest sleep before it is looked whether to end."""
LEAST = 4
"""A full store that holds less than one part in so many of the wanted samples makes no turn: that would take minutes of
the processor, and so few samples hardly ever certify heads."""

AGAIN = os.EX_TEMPFAIL
"""Exit code of a turn that could not reach a server or a store: another one may, with the same samples."""


class RefreshWatch:
    """Refreshes until it is told to end, by SIGTERM or Ctrl-C; a turn under way is ended with it.

    Args:
        command: The arguments of `gati` that make one turn.
        fresh: Takes a mark, "" at first. Returns the number of samples after it, the mark of the newest of these, and
            that of the oldest sample in the store.
        noted: Returns the last entry of the history (`gati_export.report.history`).
        enough: How many new samples make a turn worth while. If the store holds fewer, all that it holds must be new.
        every: Least seconds from the beginning of one turn to that of the next.
        say: Called with what is being done.
    """

    def __init__(
        self,
        command: Sequence[str],
        fresh: Callable[[str], tuple[int, str, str]],
        noted: Callable[[], object],
        enough: int,
        every: float,
        say: Callable[[str], None],
    ) -> None:
        self._command = [sys.executable, "-c", "from gati.cli import main; main()", *command]
        self._fresh = fresh
        self._noted = noted
        self._enough = enough
        self._every = every
        self._say = say
        self._mark = ""
        self._outlived = ""  # the mark that all shards must be newer than; see `_all_new`
        self._said_few = False
        self._ending = False

    def run(self) -> None:
        """Watches until it is told to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        self._say(f"Watching: {self._enough:,} new samples make a turn, at most one every {self._every:g} s.")
        while not self._ending:
            due = time.monotonic() + self._every
            self._look()
            while not self._ending and time.monotonic() < due:
                time.sleep(min(LOOK_SECONDS, self._every))

    def _look(self) -> None:
        """Makes a turn, if there is enough to learn from."""
        mark = self._newest()
        if mark is not None and self._turn():
            self._mark = self._outlived = mark  # if a turn decides nothing, its samples are still new

    def _newest(self) -> str | None:
        """The mark of the newest sample; None unless there are enough new ones."""
        try:
            count, mark, oldest = self._fresh(self._mark)
        except (GatiError, OSError) as error:  # the store can't be reached, and may be again
            self._say(f"No turn: {error}")
            return None
        return mark if count >= self._enough or (count and self._all_new(oldest) and self._worth(count)) else None

    def _all_new(self, oldest: str) -> bool:
        """Whether no sample is left that was learned from, and the store is full.

        It is full if it has also deleted the shard that was the oldest when the last learned one was found gone: a
        store that is new, or that somebody has emptied, only fills.
        """
        if oldest <= self._outlived:
            return False
        if self._outlived > self._mark:
            return True
        self._outlived = oldest
        return False

    def _worth(self, count: int) -> bool:
        """Whether the samples of a full store are worth a turn although they are fewer than wanted; reports which."""
        if count * LEAST >= self._enough:
            self._say(f"The store keeps no more than {count:,} samples, and all of them are new.")
            return True
        if not self._said_few:
            self._say(
                f"No turn: the store keeps no more than {count:,} samples, too few of {self._enough:,}. Give it more "
                "room (gati serve --store-mib), or ask for fewer (--fresh)."
            )
            self._said_few = True
        return False

    def _turn(self) -> bool:
        """Runs a turn, which reports by itself what it did; returns whether it came to a decision.

        A turn that failed did so if it has noted that in the history. Otherwise the fault may pass, a full disk or a
        lock say.
        """
        before = self._noted()
        process = subprocess.Popen(self._command, preexec_fn=die_with_parent)  # noqa: PLW1509  # takes no lock
        while process.poll() is None:
            time.sleep(LOOK_SECONDS / 10)
            if self._ending:
                process.terminate()
        if process.returncode < 0 and not self._ending:
            self._say(f"The turn was killed by signal {-process.returncode}; another comes in its time.")
        return process.returncode == 0 or (process.returncode == 1 and self._noted() != before)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._ending = True
