"""The watch on releases, with real heads on a real disk."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Exported
from handmade import draft, remembering_head, sure_head

from gati.errors import NotLoadedError, ReleaseRefused
from gati.inference.head import HeadSpec
from gati.inference.inline import InlineEngine, InlineHeads
from gati.repository.release import Release, head_folder, head_path
from gati.serving import watch
from gati.serving.watch import ReleaseWatch
from gati.system import backoff
from gati.system.ticker import Ticker
from gati_export.releases.publish import publish


class Watched:
    """A repository, its watch, and what the watch reports."""

    def __init__(self, exported: Exported, folder: Path) -> None:
        self.chain = exported.chain
        self.repository = exported.copy(folder)
        self.refused: list[tuple[int, str]] = []
        self.taken: list[int] = []
        engine = InlineEngine(self.repository, self.chain)
        self.watch = ReleaseWatch(
            self.repository, self.chain, engine, lambda n, why: self.refused.append((n, why)), self.taken.append
        )

    def publish(self) -> int:
        return publish(self.repository, self.chain, draft({0: sure_head(self.chain, 0, 1)})).number

    def head(self, number: int) -> Path:
        return head_path(self.repository, self.chain, 0, number)


@pytest.fixture
def watched(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0)
    return Watched(exported, tmp_path)


def test_the_highest_release_is_taken_once(watched: Watched) -> None:
    watched.watch.look()
    watched.publish()
    watched.publish()
    for _ in range(3):
        watched.watch.look()
    assert watched.taken == [1, 3]
    assert watched.watch.live.number == 3


def test_a_cut_that_is_recorded_ends_a_stage_of_the_releases_own(exported: Exported, tmp_path: Path) -> None:
    repository, last = exported.copy(tmp_path), exported.chain.heads[-1]
    publish(repository, exported.chain, draft({0: sure_head(exported.chain, 0, 1)}))
    engine = InlineEngine(repository, exported.chain, recorded=(last,))
    taken: list[int] = []
    watch = ReleaseWatch(repository, exported.chain, engine, lambda *_: None, taken.append, None, (last,))
    watch.look()
    stages = watch.live.stages
    assert [stage.last for stage in stages] == [0, last, last + 1]
    watch.look()
    assert watch.live.joined is None
    publish(repository, exported.chain, draft({0: sure_head(exported.chain, 0, 2)}))
    watch.look()
    assert len(taken) == 2
    assert watch.live.stages is stages


def test_a_release_gets_its_cascade_at_the_next_look_and_the_next_one_has_its_own(watched: Watched) -> None:
    seen = []
    for _ in range(2):
        for _ in range(3):
            watched.watch.look()
            seen.append(watched.watch.live)
        watched.publish()
    assert [live.joined is not None for live in seen] == [False, True, True] * 2
    assert [live.number for live in seen] == [1, 1, 1, 2, 2, 2]
    assert seen[1].state is seen[0].state and seen[1].breaker is seen[0].breaker
    assert seen[4].joined is not seen[1].joined


def test_a_damaged_release_leaves_the_old_one_and_is_reported_once(watched: Watched) -> None:
    watched.watch.look()
    number = watched.publish()
    path = watched.head(number)
    path.write_bytes(path.read_bytes()[:-5])
    for _ in range(5):
        watched.watch.look()
    assert watched.taken == [1]
    assert [n for n, _ in watched.refused] == [2]
    assert "damaged" in watched.refused[0][1]
    with pytest.raises(ReleaseRefused, match="damaged"):
        watched.watch.check(number)
    watched.publish()
    watched.watch.look()
    assert watched.taken == [1, 3]


def test_shortcuts_that_can_not_be_loaded_are_tried_once_and_the_release_serves_without(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[InlineHeads] = []

    def fail(heads: InlineHeads) -> None:
        tried.append(heads)
        raise MemoryError("no room")

    monkeypatch.setattr(InlineHeads, "load_shortcuts", fail)
    watched.watch.look()
    assert watched.watch.live.shortcuts is None
    with pytest.raises(MemoryError):
        watched.watch.look()
    watched.watch.look()
    assert len(tried) == 1 and watched.watch.live.number == 1
    assert watched.watch.live.joined is None and watched.watch.live.whole is None


class Tired(InlineEngine):
    """An engine that can't load heads the first times."""

    def __init__(self, watched: Watched, times: int, error: Exception) -> None:
        super().__init__(watched.repository, watched.chain)
        self.asked = 0
        self._times = times
        self._error = error

    def load_heads(self, release: Release) -> tuple[InlineHeads, dict[int, HeadSpec]]:
        self.asked += 1
        if self.asked <= self._times:
            raise self._error
        return super().load_heads(release)


FAULTS = [ReleaseRefused("it can't be run: bad allocation"), MemoryError("no room")]


@pytest.mark.parametrize("error", FAULTS, ids=["refused", "failed"])
def test_what_may_have_been_the_machine_s_fault_is_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(watch, "LONGEST_WAIT", 0)
    monkeypatch.setattr(watch, "SECONDS", 0)
    watched.watch._engine = engine = Tired(watched, 3, error)
    for _ in range(6):
        watched.watch.look()
    assert (watched.taken, engine.asked) == ([1], 4)
    assert [n for n, _ in watched.refused] == [1]  # said once


def test_a_disk_that_fails_for_a_moment_changes_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.watch.look()
    watched.publish()
    with monkeypatch.context() as disk:
        disk.setattr(Path, "iterdir", lambda _: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
        watched.watch.look()
    assert watched.taken == [1]
    watched.watch.look()
    assert watched.taken == [1, 2] and not watched.refused


@pytest.mark.parametrize("error", FAULTS, ids=["refused", "failed"])
def test_no_time_is_lost_to_a_release_that_fails_again_and_again(watched: Watched, error: Exception) -> None:
    watched.watch._engine = engine = Tired(watched, 99, error)
    for _ in range(50):
        watched.watch.look()
    assert engine.asked <= 2  # a quarter of a second may have passed
    watched.publish()
    engine._times = 0
    watched.watch.look()
    assert watched.taken == [2]


def test_a_release_that_the_server_is_still_loading_is_waited_for(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    for module in (watch, backoff):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def look(seconds: float) -> None:
        for _ in range(round(seconds / watch.SECONDS)):
            watched.watch.look()
            now[0] += watch.SECONDS

    watched.watch._engine = engine = Tired(watched, 9999, NotLoadedError("version 1 is not loaded."))
    look(watch.LOADING_SECONDS - 1)
    asked = engine.asked
    assert not watched.refused and asked >= watch.LOADING_SECONDS - 3
    look(200)
    assert watched.refused == [(1, "version 1 is not loaded.")] and engine.asked < asked + 20
    watched.publish()
    look(watch.LOADING_SECONDS - 5)
    engine._times = 0
    look(watch.LOADING_WAIT + watch.SECONDS)
    assert watched.taken == [2] and len(watched.refused) == 1


def test_a_release_that_is_completed_later_is_taken_then(watched: Watched) -> None:
    watched.watch.look()
    number = watched.publish()
    path = watched.head(number)
    content = path.read_bytes()
    path.unlink()
    watched.watch.look()
    watched.watch.check(number)  # who copies it may be at work: nothing is said against it
    path.write_bytes(content)
    watched.watch.look()
    assert watched.taken == [1, 2]


def test_at_the_start_a_damaged_release_gives_way_to_the_one_before(watched: Watched) -> None:
    number = watched.publish()
    shutil.rmtree(head_folder(watched.repository, watched.chain, 0, number))
    head_folder(watched.repository, watched.chain, 0, number).mkdir()
    watched.watch.look()
    assert watched.taken == [1]


def test_without_any_release_there_is_no_live_one(watched: Watched) -> None:
    shutil.rmtree(head_folder(watched.repository, watched.chain, 0, 1))
    watched.watch.look()
    assert watched.watch.live.number == 0
    assert [stage.last for stage in watched.watch.live.stages] == [len(watched.chain.segments) - 1]


def test_stages_end_at_the_heads_in_use_and_are_shared_by_releases_with_the_same(watched: Watched) -> None:
    watched.watch.look()
    publish(watched.repository, watched.chain, draft({1: sure_head(watched.chain, 1, 2)}))
    watched.watch.look()
    before = watched.watch.live
    assert [stage.last for stage in before.stages] == [1, len(watched.chain.segments) - 1]
    publish(watched.repository, watched.chain, draft({1: sure_head(watched.chain, 1, 3)}))
    watched.watch.look()
    after = watched.watch.live
    assert after.number == before.number + 1
    sessions = [[stage.run.args[0] for stage in live.stages] for live in (before, after)]  # type: ignore[attr-defined]
    assert sessions[0] == sessions[1]


def test_a_release_whose_segments_are_gone_is_not_taken(watched: Watched) -> None:
    watched.watch.look()
    publish(watched.repository, watched.chain, draft({1: sure_head(watched.chain, 1, 2)}))
    watched.chain.segment_path(watched.repository, 0).unlink()
    for _ in range(2):
        watched.watch.look()
    assert watched.taken == [1]
    assert [number for number, _ in watched.refused] == [2]
    assert "can't be read" in watched.refused[0][1]


def test_state_goes_with_its_release(watched: Watched) -> None:
    states = []
    for _ in range(2):
        publish(watched.repository, watched.chain, draft({0: remembering_head(watched.chain, 0)}))
        watched.watch.look()
        states.append(watched.watch.live.state[0])
    assert states[0] is not states[1]


def test_a_ticker_outlives_what_it_calls() -> None:
    calls: list[int] = []
    enough = threading.Event()
    complaints: list[str] = []

    def stumble() -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()
        raise ValueError("a bad day\nwith details")

    ticker = Ticker(0.01, complaints.append, stumble)
    assert enough.wait(10)
    ticker.close()
    assert "ValueError: a bad day" in complaints[0]
    assert "details" not in complaints[0]
    ended = len(calls)
    assert not ticker._thread.is_alive()
    assert len(calls) == ended
