"""Refreshing: what is decided, and that it is remembered."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import Exported
from drafts import marked_draft
from filelock import Timeout
from handmade import toy_chain, toy_sample, write_shard
from reports import realistic

from gati.errors import PublishError, SamplesError, UnavailableError
from gati.recording.shard import Sample, shard
from gati.repository.release import valid_releases
from gati_export.commands.refresh import _again_where_away
from gati_export.refreshing.decision import verdict
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.refresh import _alone, refreshed
from gati_export.refreshing.standing import Standing, standing
from gati_export.refreshing.watch import AGAIN, RefreshWatch
from gati_export.releases.rollout import publish_to
from gati_export.report import data, history
from gati_export.report.data import reports_folder
from gati_export.report.history import Turn, last_turn, note, turns
from gati_export.samples.store import count_since
from gati_export.terms import Terms

TOY = toy_chain()
TURN = Turn("2026-01-01T00:00:00+00:00", 12.5, 2000, 1, 2, "It is faster.", 0.004, 0.003, 0.002, 0.001)


def quiet(_what: str, _share: float) -> None:
    pass


@pytest.mark.parametrize(
    ("live", "seconds", "publish", "why"),
    [
        (None, 0.002, True, "Nothing served before"),
        (Standing(0.003, 0.001, False), 0.002, True, "faster"),
        (Standing(0.003, 0.001, False), 0.00299, False, "would not be faster"),
        (Standing(0.003, 0.001, False), 0.004, False, "4 ms a request, the live release 3 ms"),
        (Standing(0.003, 0.05, True), 0.004, True, "differs on 5.00%"),
        (Standing(0.003, 0.012, False, True), 0.004, True, "would not be certified once more: it differs on 1.20%"),
        (Standing(0.003, 0.004, False, True), 0.004, True, "differs on 0.40% of the held-out samples, too many of"),
        (Standing(0.003, 0.012, False, True), 0.002, True, "faster"),
    ],
)
def test_what_is_published_is_faster_or_replaces_what_broke_its_promise(
    live: Standing | None, seconds: float, publish: bool, why: str
) -> None:
    said, decided = verdict(live, seconds)
    assert decided is publish and why in said


@pytest.mark.parametrize(
    ("wrong", "n", "lapsed", "untenable"),
    [
        (0, 1000, False, False),
        (0, 100, True, False),
        (9, 1000, True, False),
        (11, 1000, True, True),
        (30, 1000, True, True),
    ],
    ids=["it holds", "too few to tell", "it may hold", "it seems not to hold", "it is broken"],
)
def test_a_release_that_would_not_be_certified_once_more_is_untenable_where_samples_speak_against_it(
    wrong: int, n: int, lapsed: bool, untenable: bool
) -> None:
    found = standing(np.ones(n), np.arange(n) < wrong, np.arange(n), Terms())
    assert (found.lapsed, found.untenable) == (lapsed, untenable)


def test_exits_that_are_closed_are_named_where_times_are_compared() -> None:
    said, decided = verdict(Standing(0.004, 0.001, False), 0.003, (1, 2))
    assert decided and said.endswith("3 ms a request, the live release 4 ms, with exits 1 and 2 closed.")


def test_scenes_that_are_wrong_in_part_are_certified_once_more_as_they_were() -> None:
    groups = np.repeat(np.arange(800), 30)
    wrong = np.zeros(len(groups), bool)
    wrong[: 160 * 30 : 30] = True  # a frame each, 0.67 % of all
    asked = np.ones(len(groups)), wrong, groups, Terms(epsilon=0.01, delta=0.05)
    assert standing(*asked).lapsed, "as if a scene were wrong as a whole"
    assert not standing(*asked, within=1 / 30).lapsed


def test_turns_are_remembered_in_order(tmp_path: Path) -> None:
    assert turns(tmp_path / "models", "m") == []
    failed = Turn("2026-01-01T00:05:00+00:00", 0.5, 0, 2, None, "Too few.")
    note(tmp_path / "models", "m", TURN)
    note(tmp_path / "models", "m", failed)
    note(tmp_path / "models", "other", TURN)
    assert turns(tmp_path / "models", "m") == [TURN, failed]


def test_a_line_that_was_cut_off_costs_that_turn_alone(tmp_path: Path) -> None:
    note(tmp_path / "models", "m", TURN)
    path = tmp_path / "models.gati" / "refreshes" / "m.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    note(tmp_path / "models", "m", TURN)
    assert turns(tmp_path / "models", "m") == [TURN, TURN]
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    assert turns(tmp_path / "models", "m") == [TURN]


def test_old_turns_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    for number in range(10):
        note(tmp_path / "models", "m", replace(TURN, samples=number))
    kept = [turn.samples for turn in turns(tmp_path / "models", "m")]
    assert kept == [*range(kept[0], 10)] and 3 <= len(kept) <= 6


def test_a_refresh_that_fails_says_so_and_remembers_it(exported, tmp_path: Path) -> None:
    plan = RefreshPlan(exported.copy(tmp_path), exported.chain, str(tmp_path / "nothing"))
    with pytest.raises(SamplesError, match="No samples of 'digits' are recorded") as error:
        refreshed(plan, quiet)
    (turn,) = turns(plan.repository, plan.chain.model)
    assert (turn.live, turn.release, turn.why) == (1, None, str(error.value))


def full(*_: object) -> None:
    """A disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_why_a_refresh_failed_is_told_where_it_cannot_be_written_down_and_a_watch_makes_it_again(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RefreshPlan(exported.copy(tmp_path), exported.chain, str(tmp_path / "nothing"))
    monkeypatch.setattr("gati_export.refreshing.refresh.note", full)
    told = r"^No samples of 'digits' are recorded.* That could not be written down \(No space left on device\)\.$"
    with pytest.raises(click.ClickException, match=told) as away, _again_where_away():
        refreshed(plan, quiet)
    assert away.value.exit_code == AGAIN


def beside_a_liar(exported: Exported, tmp_path: Path) -> RefreshPlan:
    """What shuts the release that is live: it answers everything, and wrongly."""
    repository, name = exported.copy(tmp_path), exported.chain.inputs[0].name
    chain = replace(exported.chain, epsilon=0.05, views=0, memory=1)
    draft = marked_draft(chain, 7, {0: -1e9})  # which every row reaches
    draft = replace(draft, certificate=replace(draft.certificate, thresholds={0: -1e9}))
    publish_to(repository, chain, draft, None)
    plan = RefreshPlan(repository, chain, str(tmp_path / "samples"))
    rows = len(exported.images)
    served = Sample({name: exported.images}, None, np.zeros(rows, np.int32), np.zeros(rows, np.int64), time.time())
    write_shard(f"{plan.store}/{chain.model}", shard(chain, [served]), 1 << 30)
    return plan


def test_a_refresh_keeps_the_newest_reports_and_those_of_what_is_on_disk(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "KEPT", 2)
    plan = beside_a_liar(exported, tmp_path)
    for number in range(1, 10):
        data.write(plan.repository, replace(realistic(release=number), model=plan.chain.model))
    assert refreshed(plan, quiet).turn.release == 3
    assert data.numbers(plan.repository, plan.chain.model) == [0, 1, 2, 3, 8, 9]


@pytest.mark.parametrize("fault", ["reports", "turns"])
def test_a_release_that_breaks_its_promise_is_shut_though_that_cannot_be_written_down(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    plan = beside_a_liar(exported, tmp_path)
    repository, chain = plan.repository, plan.chain
    liar = next(valid_releases(repository, chain))
    if fault == "reports":
        reports_folder(repository).write_text("no folder")
    else:
        monkeypatch.setattr("gati_export.refreshing.refresh.note", full)
    done = refreshed(plan, quiet)
    assert done.release == next(valid_releases(repository, chain)) and done.release.number == liar.number + 1
    assert str(done.release.certificate) == "All heads are shut: the backbone answers every request."
    assert " is shut: No head" in done.turn.why
    assert re.search(r" That could not be written down \((Not a directory|No space .*)\)\.$", done.turn.why)


def test_that_no_server_answers_is_said_and_not_remembered(exported, tmp_path: Path) -> None:
    """A watch asks every few minutes: a week of that would push out all that was decided before."""
    plan = RefreshPlan(exported.copy(tmp_path), exported.chain, str(tmp_path / "nothing"), server="127.0.0.1:1")
    with pytest.raises(UnavailableError, match="No Triton server answers"):
        refreshed(plan, quiet)
    assert turns(plan.repository, plan.chain.model) == []


def test_a_refresh_says_how_many_files_held_nothing_to_learn_from(exported, tmp_path: Path) -> None:
    plan = RefreshPlan(exported.copy(tmp_path), exported.chain, str(tmp_path / "samples"))
    url, name = f"{plan.store}/{plan.chain.model}", plan.chain.inputs[0].name
    for values in (np.ones((3, 5), np.float32), plan.chain.inputs[0].zeros(3)):
        told = Sample({name: values}, None, np.zeros(3, np.int32), np.zeros(3, np.int64), 0.0)
        write_shard(url, shard(plan.chain, [told]), 1 << 20)
    with pytest.raises(PublishError, match=r"Too few samples.* Of the samples, 1 file left out: damaged, or of"):
        refreshed(plan, quiet)


def test_two_refreshes_of_a_chain_are_not_at_work_at_once(exported, tmp_path: Path) -> None:
    plan = RefreshPlan(exported.copy(tmp_path), exported.chain, str(tmp_path / "nothing"))
    with _alone(plan), pytest.raises(PublishError, match=r"^Another refresh of 'digits' is at work\.$"):
        refreshed(plan, quiet)
    with _alone(replace(plan, chain=replace(exported.chain, model="other"))), pytest.raises(SamplesError):
        refreshed(plan, quiet)  # another chain's does not matter


def kept(watch: RefreshWatch, seconds: float) -> None:
    """Keeps a watch, and ends it by a signal after a while."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        watch.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_turn_comes_when_enough_was_served_and_a_store_that_is_away_ends_nothing() -> None:
    said: list[str] = []
    asked: list[str] = []
    answers = iter([(5, "a"), OSError("the store is away"), (10, "b"), (9, "c"), (12, "d")])

    def fresh(mark: str) -> tuple[int, str, str]:
        asked.append(mark)
        answer = next(answers, (0, mark))
        if isinstance(answer, OSError):
            raise answer
        return *answer, ""

    watch = RefreshWatch(["no-such-command"], fresh, lambda: None, 10, 0.01, said.append)
    turns_made: list[float] = []

    def turn() -> bool:
        turns_made.append(time.monotonic())
        return True

    watch._turn = turn  # what a turn does is tried on a real server
    kept(watch, 1)
    assert len(turns_made) == 2
    assert asked[:6] == ["", "", "", "b", "b", "d"]
    assert any("the store is away" in line for line in said)


class Shop:
    """A store with room for eight samples, and a watch on it; each shard has two."""

    def __init__(self, store: Path, enough: int) -> None:
        self.store, self.said, self.turns = store, list[str](), 0
        self.table = shard(TOY, [toy_sample(0)])
        self.budget = 4 * Path(write_shard(f"{store}-of-one/toy", self.table, 1 << 20)).stat().st_size
        fresh = partial(count_since, str(store), TOY)
        self.watch = RefreshWatch([], fresh, lambda: None, enough, 0.01, self.said.append)
        self.watch._turn = self.turn  # what a turn does is tried on a real server

    def turn(self) -> bool:
        self.turns += 1
        return True

    def after(self, shards: int) -> int:
        """Turns that the watch has made when so many more shards have come, and it has looked after each."""
        for _ in range(shards):
            write_shard(f"{self.store}/toy", self.table, self.budget)
            self.watch._look()
        return self.turns


def test_a_store_without_room_for_enough_makes_a_turn_whenever_all_of_it_is_new(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "store", 10)
    assert [shop.after(1) for _ in range(16)] == [*[0] * 4, *[1] * 5, *[2] * 5, *[3] * 2]
    shop.watch._look()
    assert shop.turns == 3, "nothing came"
    assert shop.said == ["The store keeps no more than 8 samples, and all of them are new."] * 3
    assert Shop(tmp_path / "large", 6).after(12) == 4, "a store with room for enough waits for that"


def test_a_store_that_only_fills_makes_no_turn(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "store", 10)
    assert shop.after(5) == 1
    shutil.rmtree(tmp_path / "store" / "toy")
    shop.watch._look()
    assert shop.after(4) == 1, "somebody has emptied it"
    assert shop.after(1) == 2


def test_a_store_with_room_for_next_to_nothing_makes_no_turn_and_that_is_said_once(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "store", 100)
    assert shop.after(20) == 0
    assert [line[:63] for line in shop.said] == ["No turn: the store keeps no more than 8 samples, too few of 100"]


def test_what_a_turn_without_a_server_was_to_learn_from_is_still_new(exported: Exported, tmp_path: Path) -> None:
    """The command itself, on a repository whose server is away; then turns that end as it does."""
    repository = exported.copy(tmp_path)
    asked: list[str] = []

    def fresh(mark: str) -> tuple[int, str, str]:
        asked.append(mark)
        return 1, f"{mark}a", ""

    command = ["refresh", exported.chain.model, "--repository", str(repository), "--server", "127.0.0.1:9"]
    watch = RefreshWatch(command, fresh, lambda: None, 1, 0.01, lambda _: None)
    assert not watch._turn()
    for code, marks in ((AGAIN, {""}), (0, {"", "a"})):
        asked.clear()
        watch = RefreshWatch([], fresh, lambda: None, 1, 0.01, lambda _: None)
        watch._command = [sys.executable, "-c", f"raise SystemExit({code})"]
        kept(watch, 1)
        assert len(asked) > 1 and set(asked) >= marks and (code == 0 or set(asked) == marks)


def test_a_turn_that_fails_has_come_to_a_decision_only_if_it_has_noted_one(exported: Exported, tmp_path: Path) -> None:
    """The command itself: another refresh is at work, then the disk is full, and then there are no samples."""
    plan = RefreshPlan(exported.copy(tmp_path), exported.chain, str(tmp_path / "nothing"))
    command = ["refresh", exported.chain.model, "--repository", str(plan.repository), "--store", plan.store]
    watch = RefreshWatch(
        command, lambda mark: (1, mark, ""), lambda: last_turn(plan.repository, "digits"), 1, 0.01, print
    )
    with _alone(plan):
        assert not watch._turn()
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)); "
    whole = watch._command
    watch._command = [*whole[:2], full + whole[2], *whole[3:]]
    assert not watch._turn() and not turns(plan.repository, "digits")
    watch._command = whole
    with pytest.raises(click.ClickException) as away, _again_where_away():
        raise PublishError("Another publisher is at work.") from Timeout("publish.lock")
    assert away.value.exit_code == AGAIN
    assert watch._turn()


def test_a_turn_that_is_killed_is_told_and_the_end_ends_a_turn() -> None:
    said: list[str] = []
    watch = RefreshWatch([], lambda mark: (1, mark, ""), lambda: None, 1, 0.01, said.append)
    watch._command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    kept(watch, 1)
    assert sum("killed by signal 9" in line for line in said) >= 1
    watch = RefreshWatch([], lambda mark: (1, mark, ""), lambda: None, 1, 0.01, said.append)
    watch._command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = time.monotonic()
    kept(watch, 0.5)
    assert time.monotonic() - started < 30
