"""Watches for new releases on disk, and swaps them in between two requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gati.errors import GatiError, IncompleteError, ReleaseRefused, UnavailableError, first_line
from gati.inference.engine import Engine, Heads, Shortcuts
from gati.inference.state import HeadState
from gati.promise.breaker import Breaker
from gati.repository.chain import Chain
from gati.repository.release import Release, head_folder, numbers_on_disk, read_release
from gati.serving.flight import BACKBONE
from gati.serving.live import LiveRelease
from gati.system.backoff import Backoff
from gati.system.memory import trim

SECONDS = 0.25
"""Time between two looks at the disk."""
GRACE_SECONDS = 2.0
"""How long a release may be unusable before that is reported: its publisher may still be at work."""
LOADING_SECONDS = 60.0
"""The same for a release whose heads the server has not loaded: in BLS mode it may be building TensorRT engines."""
LOADING_WAIT = 1.0
"""Longest time between two attempts meanwhile."""
LONGEST_WAIT = 60.0
"""Longest time between two attempts at a release whose files do not change; each wait is twice the one before. What
failed may have been the machine, out of memory say, and not the release."""


class ReleaseWatch:
    """Holds the live release: the highest that is complete, valid, and could be loaded; number 0 while there is none.

    `look` is for one thread. `live` and `check` are for any: `_lock` guards the swap, and that the backbone is loaded
    once. Only `look` replaces a live release, so that it may read `_live` without the lock.

    Args:
        repository: The model repository.
        chain: Whose releases.
        engine: Loads stages and heads.
        refused: Called once for each release that can't be used, with its number and the reason.
        went_live: Called with the number of each release that goes live.
        breaker: Opens the breaker of a release that is about to go live; without it, a new breaker is made.
        cuts: Cut points at which a stage ends in any case, because what goes on there is recorded.
        bypasses: Whether to measure lookups, so that requests may go past heads that do not pay (gati.serving.bypass).
    """

    def __init__(
        self,
        repository: Path,
        chain: Chain,
        engine: Engine,
        refused: Callable[[int, str], None],
        went_live: Callable[[int], None],
        breaker: Callable[[Release], Breaker] | None = None,
        cuts: Sequence[int] = (),
        *,
        bypasses: bool = False,
    ) -> None:
        self._repository = repository
        self._chain = chain
        self._engine = engine
        self._refused = refused
        self._went_live = went_live
        self._breaker = breaker or self._new_breaker
        self._cuts = cuts
        self._bypasses = bypasses
        self._attempts: dict[int, _Attempt] = {}
        self._live: LiveRelease | None = None
        self._lock = threading.Lock()

    @property
    def live(self) -> LiveRelease:
        """The live release; without one, the backbone, which is then loaded here.

        Raises:
            RepositoryError: If there is no release, and the chain's segments can't be loaded.
        """
        with self._lock:
            if self._live is None:
                stages = self._engine.load_stages(self._cuts)
                self._live = LiveRelease(BACKBONE, stages, None, {}, Breaker(self._chain.epsilon, self._chain.delta))
                trim()
            return self._live

    def check(self, number: int) -> None:
        """Tells a publisher that a release was refused, once that is final.

        Raises:
            ReleaseRefused: If the fault is in the release itself, and was reported.
        """
        attempt = self._attempts.get(number)
        if attempt is not None and attempt.told and attempt.final:
            raise ReleaseRefused(attempt.reason)

    def look(self) -> None:
        """Loads the highest release that can be used, if it is higher than the live one, and makes it live.

        A look that finds no such release loads the shortcuts of the live one, which serves without them until then;
        later ones measure what its lookups cost.
        """
        try:
            numbers = numbers_on_disk(self._repository, self._chain)
        except OSError:  # the disk or the network fails for a moment: the live release serves on
            return
        for number in numbers:
            if self._live is not None and number <= self._live.number:
                break
            if self._try(number):
                self._attempts.clear()
                return
        live = self._live
        if live is None or live.heads is None:
            return
        if live.shortcuts is None:
            self._complete(live, live.heads)
        elif self._bypasses and (costs := live.shortcuts.costs) is not None and costs.due:
            live.bypass.learn(costs.measure())

    def _complete(self, live: LiveRelease, heads: Heads) -> None:
        """Loads the shortcuts of the live release."""
        found = Shortcuts()  # none, if loading fails: it is not tried again
        try:
            found = heads.load_shortcuts()
        finally:
            with self._lock:
                self._live = replace(live, shortcuts=found)
        trim()

    def _try(self, number: int) -> bool:
        """Makes a release live; returns False if that fails, or has failed too recently."""
        stamp = self._stamp(number)
        attempt = self._attempts.get(number)
        if attempt is not None and attempt.stamp == stamp:
            if attempt.due():
                self._refused(number, attempt.reason)
            if attempt.rests:
                return False
        try:
            live = self._load(number)
        except Exception as error:  # whatever is wrong with it, the live release serves on
            if attempt is None or attempt.stamp != stamp:
                attempt = self._attempts[number] = _Attempt(stamp)
            attempt.failed(error)
            return False
        with self._lock:
            self._live = live
        trim()
        self._went_live(number)
        return True

    def _load(self, number: int) -> LiveRelease:
        release = read_release(self._repository, self._chain, number)
        heads, specs = self._engine.load_heads(release)
        state = {index: HeadState(spec.state) for index, spec in specs.items()}
        stages = self._engine.load_stages([*specs, *self._cuts])
        return LiveRelease(number, stages, heads, state, self._breaker(release))

    def _new_breaker(self, release: Release) -> Breaker:
        return Breaker(self._chain.epsilon, self._chain.delta, release.exits, None, release.certificate.together)

    def _stamp(self, number: int) -> tuple:
        """Times and sizes of a release's files: while these do not change, neither does what is wrong with it."""
        files = (
            head_folder(self._repository, self._chain, index, number) / name
            for index in self._chain.heads
            for name in ("release.json", "model.onnx")
        )
        return tuple(_mark(file) for file in files)


def _mark(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


class _Attempt:
    """Failed attempts at a release whose files stay as they are.

    Attributes:
        stamp: What identifies those files.
        reason: Why the last attempt failed.
        told: Whether that was reported.
        final: Whether the fault is in the release itself.
    """

    def __init__(self, stamp: tuple) -> None:
        self.stamp = stamp
        self.reason = ""
        self._since = time.monotonic()
        self._backoff = Backoff(SECONDS)
        self._grace = GRACE_SECONDS
        self.told = self.final = False

    def failed(self, error: Exception) -> None:
        """Notes that it failed once more."""
        self.reason = first_line(error if isinstance(error, GatiError) else f"{type(error).__name__}: {error}")
        self.final = isinstance(error, ReleaseRefused) and not isinstance(error, IncompleteError)
        loading = isinstance(error, UnavailableError)
        self._grace = LOADING_SECONDS if loading else GRACE_SECONDS
        self._backoff.failed(LOADING_WAIT if loading and self._young else LONGEST_WAIT)

    @property
    def _young(self) -> bool:
        return time.monotonic() - self._since < self._grace

    @property
    def rests(self) -> bool:
        """Whether it is too early for the next attempt."""
        return self._backoff.rests

    def due(self) -> bool:
        """Whether to report it now; True once, when it has failed for a while."""
        if self.told or self._young:
            return False
        self.told = True
        return True
