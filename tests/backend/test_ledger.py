"""What breakers know, on a real disk."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from handmade import CERTIFICATE, toy_chain, toy_release

from gati.promise import ledger
from gati.promise.breaker import Breaker
from gati.promise.ledger import Event, Ledger
from gati.repository.release import ROLLBACK, Certificate, HeadFile, Release
from gati.system.journal import FORGOTTEN_SECONDS, Journal, decoded

CHAIN = toy_chain()
RELEASE = toy_release(CHAIN, 3)


class Desk:
    """A file, and ledgers on it as one server after another has them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "breaker" / "toy" / "host-8001.json"
        self.warned: list[str] = []
        self.ledger = self.restarted()

    def restarted(self) -> Ledger:
        self.ledger = Ledger(self.path, CHAIN, self.warned.append)
        return self.ledger


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def again(release: Release, number: int) -> Release:
    """A rollback to a release, under a number of its own, which its heads' files carry."""
    heads = tuple(HeadFile(head.index, f"{number:064}") for head in release.heads)
    return replace(release, number=number, heads=heads, reason=f"{ROLLBACK}{release.origin}")


def on_disk(desk: Desk) -> dict[str, Any]:
    """What the file says of the only heads that it is about."""
    (fields,) = json.loads(desk.path.read_text())["heads"].values()
    return fields


def full(*_: object) -> None:
    """A disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def trip(breaker: Breaker, exit_: int) -> None:
    while breaker.alarm is None or breaker.alarm.exit > exit_:
        breaker.settle(breaker.draw(1), 0, 1, exit_)


def test_an_alarm_is_written_at_once_and_outlives_a_restart(desk: Desk) -> None:
    breaker = desk.ledger.open(RELEASE)
    desk.ledger.keep(now=True)
    trip(breaker, 1)
    desk.ledger.keep()
    again = desk.restarted().open(RELEASE)
    assert (again.open_exits, again.closed_exits, again.alarm) == ((0,), (1,), breaker.alarm)
    assert again.state() == breaker.state()
    assert sorted(file.name for file in desk.path.parent.iterdir()) == [desk.path.name, f"{desk.path.name}l"]
    assert not desk.warned


def test_what_is_no_alarm_is_written_now_and_then_and_at_the_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    breaker = desk.ledger.open(RELEASE)
    desk.ledger.keep()
    assert not desk.path.exists(), "there is nothing to say"
    breaker.settle(breaker.draw(7), 7)
    desk.ledger.keep()
    assert not desk.path.exists(), "not yet"
    desk.ledger.keep(now=True)
    assert desk.restarted().open(RELEASE).state() == breaker.state()
    monkeypatch.setattr(ledger, "EAGER_SECONDS", 0.0)
    breaker = desk.restarted().open(RELEASE)
    for _ in range(2):
        breaker.settle(breaker.draw(7), 7)
        desk.ledger.keep()
    assert on_disk(desk)["blocks"] == [[0, 21, 21, 0, 0]], "it is eager"
    breaker.settle(breaker.draw(300), 300)
    for _ in range(2):
        desk.ledger.keep()
        breaker.settle(breaker.draw(7), 7)
    assert not breaker.eager
    assert on_disk(desk)["blocks"] == [[0, 321, 321, 0, 0]], "it no longer is"


def test_the_next_release_opens_again(desk: Desk) -> None:
    trip(desk.ledger.open(RELEASE), 0)
    desk.ledger.keep()
    assert desk.ledger.open(toy_release(CHAIN, 4)).open_exits == (0, 1)
    assert desk.restarted().open(toy_release(CHAIN, 4)).open_exits == (0, 1)
    assert desk.restarted().open(RELEASE).open_exits == (), "the file is of the old one until there is more to say"
    assert not desk.warned


def test_exits_stay_closed_through_an_update_that_certificates_say_more_after(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Later(Certificate):
        more: str = ""

    trip(desk.ledger.open(RELEASE), 1)
    desk.ledger.keep(now=True)
    later = replace(RELEASE, certificate=Later(**asdict(RELEASE.certificate)))
    assert desk.restarted().open(later).closed_exits == (1,)
    other = replace(later, certificate=replace(later.certificate, more="told"))
    assert desk.restarted().open(other).closed_exits == (), "these are other heads"


def test_what_happened_is_written_down_in_order_through_restarts(desk: Desk) -> None:
    breaker = desk.ledger.open(RELEASE)
    for exit_ in (1, 0):
        trip(breaker, exit_)
        desk.ledger.keep()
    alarm = breaker.alarm
    desk.ledger.keep(now=True)
    desk.restarted().open(RELEASE)
    desk.ledger.keep()
    desk.ledger.open(toy_release(CHAIN, 4))
    desk.ledger.keep()
    events = decoded(Event, desk.path.with_suffix(".jsonl"))
    assert [(event.release, event.closed) for event in events] == [
        (3, ()),
        (3, (1,)),
        (3, (0, 1)),
        (3, (0, 1)),
        (4, ()),
    ]
    assert [event.alarm and event.alarm.exit for event in events] == [None, 1, 0, 0, None]
    assert events[3].alarm == alarm
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_exits_that_closed_just_before_a_release_went_live_are_written_down(desk: Desk) -> None:
    trip(desk.ledger.open(RELEASE), 1)
    desk.ledger.open(toy_release(CHAIN, 4))
    desk.ledger.keep()
    events = decoded(Event, desk.path.with_suffix(".jsonl"))
    assert [(event.release, event.closed) for event in events] == [(3, ()), (3, (1,)), (4, ())]


def test_a_release_of_the_same_number_with_other_heads_is_another(desk: Desk) -> None:
    trip(desk.ledger.open(RELEASE), 0)
    desk.ledger.keep()
    other = replace(RELEASE, certificate=replace(CERTIFICATE, thresholds={0: 0.91, 1: 0.8}))
    assert desk.restarted().open(other).open_exits == (0, 1)
    assert "another release 3" in desk.warned[0]


def test_a_rollback_goes_on_from_what_audits_found_of_the_same_heads(desk: Desk) -> None:
    breaker = desk.ledger.open(RELEASE)
    trip(breaker, 1)
    desk.ledger.keep()
    desk.ledger.open(toy_release(CHAIN, 4))
    drawn = breaker.draw(5)
    back = desk.ledger.open(again(RELEASE, 5))
    assert (back.open_exits, back.closed_exits, back.alarm) == ((0,), (1,), breaker.alarm)
    breaker.settle(drawn, 4, 1, 0)  # was audited only after the release had been replaced
    assert back.state() == breaker.state()
    desk.ledger.keep(now=True)
    for server in desk.ledger, desk.restarted():
        assert server.open(again(RELEASE, 6)).state() == breaker.state()
    assert desk.ledger.open(toy_release(CHAIN, 7)).open_exits == (0, 1)
    events = decoded(Event, desk.path.with_suffix(".jsonl"))
    assert [(event.release, event.closed) for event in events] == [(3, ()), (3, (1,)), (4, ()), (5, (1,))]
    assert not desk.warned


def test_a_rollback_to_heads_that_nothing_is_known_of_starts_anew(desk: Desk) -> None:
    trip(desk.ledger.open(RELEASE), 0)
    assert desk.ledger.open(again(toy_release(CHAIN, 2), 4)).open_exits == (0, 1)


def test_what_is_known_of_heads_that_were_live_long_ago_is_forgotten(desk: Desk) -> None:
    for number in range(1, ledger.HEADS_KEPT + 3):
        trip(desk.ledger.open(toy_release(CHAIN, number)), 0)
        desk.ledger.keep()
        if number % 2:
            desk.restarted()
    assert len(json.loads(desk.path.read_text())["heads"]) == ledger.HEADS_KEPT
    assert desk.ledger.open(again(toy_release(CHAIN, 3), 20)).open_exits == ()
    assert desk.ledger.open(again(toy_release(CHAIN, 2), 21)).open_exits == (0, 1)


def test_a_file_of_a_format_that_is_unknown_is_passed_over_and_said(desk: Desk) -> None:
    desk.path.parent.mkdir(parents=True)
    desk.path.write_text(json.dumps({"format": 1, "release": 3, "alarm": None, "blocks": []}))
    assert desk.restarted().open(RELEASE).open_exits == (0, 1)
    assert "unknown format" in desk.warned[0]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"release": 3, ', b"[]", b"3", b"\xff\xfe", b'{"blocks": []}', b'{"format": 2, "heads": [3]}'],
    ids=repr,
)
def test_a_file_that_is_none_is_passed_over_and_said(desk: Desk, content: bytes) -> None:
    desk.path.parent.mkdir(parents=True)
    desk.path.write_bytes(content)
    assert desk.restarted().open(RELEASE).open_exits == (0, 1)
    assert len(desk.warned) == 1
    assert "\n" not in desk.warned[0]


def test_a_file_whose_counts_make_no_sense_is_passed_over_and_said(desk: Desk) -> None:
    trip(desk.ledger.open(RELEASE), 0)
    desk.ledger.keep()
    fields = json.loads(desk.path.read_text())
    next(iter(fields["heads"].values()))["blocks"][0][1] = -3
    desk.path.write_text(json.dumps(fields))
    assert desk.restarted().open(RELEASE).open_exits == (0, 1)
    assert "is damaged" in desk.warned[0]


def test_where_nothing_can_be_written_that_is_said_once_and_serving_goes_on(desk: Desk) -> None:
    desk.path.parent.parent.write_text("in the way")
    breaker = desk.restarted().open(RELEASE)
    desk.warned.clear()
    for _ in range(3):
        breaker.settle(breaker.draw(1), 0, 1, 0)
        desk.ledger.keep(now=True)
    assert len(desk.warned) == 1
    assert "can't be written" in desk.warned[0]
    assert breaker.open_exits == ()


def test_what_could_not_be_written_down_once_is_written_down_later(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    breaker = desk.ledger.open(RELEASE)
    desk.ledger.keep()

    with monkeypatch.context() as disk:
        disk.setattr(Journal, "add", full)
        trip(breaker, 0)
        desk.ledger.keep()
    desk.ledger.keep()
    events = decoded(Event, desk.path.with_suffix(".jsonl"))
    assert [(event.release, event.closed) for event in events] == [(3, ()), (3, (0, 1))]


@pytest.mark.parametrize("what", ["evidence", "happenings"])
def test_a_disk_that_is_full_time_and_again_is_told_each_time_and_when_it_is_over(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    breaker = desk.ledger.open(RELEASE)
    desk.ledger.keep(now=True)
    for _ in range(2):
        with monkeypatch.context() as disk:
            if what == "evidence":
                disk.setattr(ledger, "replace", full)
            else:
                disk.setattr(Journal, "add", full)
            breaker = desk.ledger.open(RELEASE)
            for _ in range(3):
                breaker.settle(breaker.draw(1), 1)
                desk.ledger.keep(now=True)
        desk.ledger.keep(now=True)
        desk.ledger.keep(now=True)
    told = [message.split(".json ")[1].partition(" (")[0] for message in desk.warned]
    assert told == ["can't be written", "is written again"] * 2


def test_what_happened_at_replicas_that_are_gone_for_a_week_is_forgotten_and_their_evidence_is_not(desk: Desk) -> None:
    trip(desk.ledger.open(RELEASE), 1)
    desk.ledger.keep()
    journal = desk.path.with_suffix(".jsonl")
    for name, age in (("gone", FORGOTTEN_SECONDS + 60), ("here", FORGOTTEN_SECONDS - 60)):
        for path in (desk.path, journal):
            copy = path.with_stem(name)
            copy.write_bytes(path.read_bytes())
            os.utime(copy, (time.time() - age,) * 2)
    desk.restarted()
    kept = ["gone.json", "here.json", "here.jsonl", desk.path.name, journal.name]
    assert sorted(file.name for file in desk.path.parent.iterdir()) == kept


def test_a_replica_at_which_nothing_happens_is_not_forgotten(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.ledger.open(RELEASE)
    desk.ledger.keep()
    journal = desk.path.with_suffix(".jsonl")
    content = journal.read_bytes()
    os.utime(journal, (0, 0))
    desk.ledger.keep()
    assert not journal.stat().st_mtime, "not yet"
    later = time.monotonic() + 2 * ledger.TOUCH_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    desk.ledger.keep()
    Ledger(desk.path.with_stem("other"), CHAIN, desk.warned.append)
    assert journal.read_bytes() == content and not desk.warned
    journal.unlink()
    desk.ledger.keep()
    assert not desk.warned, "somebody has removed it"
