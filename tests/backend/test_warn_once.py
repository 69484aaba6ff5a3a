"""Warnings that are given once, or once in a while."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gati.system import warn_once as module
from gati.system.warn_once import WarnOnce


def test_a_thing_is_mentioned_once_until_it_is_forgotten() -> None:
    given: list[str] = []
    warn_once = WarnOnce(given.append)
    warn_once("full")
    warn_once("still full")
    warn_once("the head fails", about="head")
    assert given == ["full", "the head fails"]
    warn_once.forget()
    warn_once("full again")
    assert given[2:] == ["full again"]


def test_with_a_time_it_is_mentioned_again_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    given, now = list[str](), 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    warn_once = WarnOnce(given.append, seconds=60)
    for now in (0.0, 30.0, 60.0, 61.0, 100.0):
        warn_once(f"at {now}")
    assert given == ["at 0.0", "at 61.0"]


def test_who_fails_to_take_a_warning_is_not_given_it_again() -> None:
    def fail(_: str) -> None:
        raise OSError("no log")

    warn_once = WarnOnce(fail)
    with pytest.raises(OSError, match="no log"):
        warn_once("full")
    warn_once("full")
