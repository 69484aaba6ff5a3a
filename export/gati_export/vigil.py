"""`gati refresh --watch`: one refresh after another, each in a process of its own, whenever enough has been served.

A process of its own gives its memory back, has its own limits, and may be killed or run out of memory: the next turn
comes all the same.
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
from gati.parent import die_with_parent

LOOK_SECONDS = 1.0
"""Between two looks at the clock, and at whether to end."""
LEAST = 4
"""A store that keeps less than one part in so many of what makes a turn worth while makes none: a turn takes minutes of
the processor, and so few samples hardly ever certify heads."""

AGAIN = os.EX_TEMPFAIL
"""How a turn ends that found a server or a store away: another may do better, from the same samples."""


class Vigil:
    """Refreshes until it is told to end, by SIGTERM or Ctrl-C; a turn under way is ended with it.

    Args:
        command: The arguments of `gati` that make one turn.
        fresh: Counts the samples that came after a mark, "" at first, and gives the mark of the newest of these, and
            that of the oldest of all that are there.
        noted: What was noted of the last turn that came to a decision (`gati_export.history`).
        enough: How many make a turn worth while; where a store keeps fewer, all that it keeps, once they are all new.
        every: Seconds from the beginning of one turn to the next, at least.
        say: Told what is done.
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
        self._outlived = ""  # the newest shard at the last turn; once that is gone, the oldest then: `_all_new`
        self._said_few = False
        self._ending = False

    def keep(self) -> None:
        """Watches until told to end."""
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
            self._mark = self._outlived = mark  # what a turn was to learn from that decided nothing is still new

    def _newest(self) -> str | None:
        """The mark of the newest sample, if there are enough new ones."""
        try:
            count, mark, oldest = self._fresh(self._mark)
        except (GatiError, OSError) as error:  # the store is away: it may come back
            self._say(f"No turn: {error}")
            return None
        return mark if count >= self._enough or (count and self._all_new(oldest) and self._worth(count)) else None

    def _all_new(self, oldest: str) -> bool:
        """Whether nothing is left of what was learned from, and the store is full.

        It is full if what was its oldest shard, at the look that found the others gone, is gone by now, too: a new
        store, and one that somebody has emptied, only fill.
        """
        if oldest <= self._outlived:
            return False
        if self._outlived > self._mark:
            return True
        self._outlived = oldest
        return False

    def _worth(self, count: int) -> bool:
        """Whether what a full store holds is worth a turn, though it is less than enough; says which."""
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
        """Runs a turn; whether it came to a decision. It says itself what it did, or why it did not.

        One that fails has come to one if it has noted that; else its fault may pass, a full disk or a lock say.
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
