"""Waits between attempts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gati.system import backoff
from gati.system.backoff import Backoff


def test_each_wait_is_twice_the_one_before_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(backoff, "time", SimpleNamespace(monotonic=lambda: now))
    waits = Backoff(first=10)
    assert not waits.rests
    tried = []
    for now in range(0, 200, 5):
        if not waits.rests:
            tried.append(now)
            waits.failed(longest=40)
    assert tried == [0, 10, 30, 70, 110, 150, 190]
