"""Signs of life of real processes: one lives, one works too hard to give any, one is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import eventually

from gati.triton import heartbeat
from gati.triton.heartbeat import HEARTBEATS, Heartbeats

LIVES = "import time; time.sleep(600)"
WORKS = "import re; time.sleep(0.5); re.match(r'(a+)+$', 'a' * 60 + 'b')"  # for years, and holds Python's lock
PATIENCE = 3.0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three processes: the first two live, the third works."""
    begin = "import os, time; from gati.triton.heartbeat import beat; beat(os.environ); "
    running = [
        subprocess.Popen([sys.executable, "-c", begin + rest], env={**os.environ, HEARTBEATS: str(tmp_path)})
        for rest in (LIVES, LIVES, WORKS)
    ]
    yield running
    for process in running:
        process.kill()
        process.wait()


def test_only_a_process_that_is_stopped_hangs(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert eventually(lambda: len(list(tmp_path.iterdir())) == 3)
    monkeypatch.setattr(heartbeat, "SECONDS", 0.1)
    heartbeats, hung = Heartbeats(tmp_path, PATIENCE), list[int]()
    os.kill(processes[1].pid, signal.SIGSTOP)

    def told() -> bool:
        hung.extend(heartbeats.hung())
        return bool(hung)

    assert eventually(told, 60)
    assert hung == [processes[1].pid]
    lives, works = (heartbeats.touched(processes[which].pid) for which in (0, 2))
    assert eventually(lambda: heartbeats.touched(processes[0].pid) != lives)
    assert lives and works and heartbeats.touched(processes[2].pid) == works
    assert heartbeats.touched(processes[1].pid) is None, "whoever is taken to hang has none any more"
    assert not eventually(lambda: bool(heartbeats.hung()), 1), "it is told once, and the others do not hang"
    processes[0].kill()
    processes[0].wait()
    heartbeats.hung()
    assert eventually(lambda: not heartbeats.hung() and [f.name for f in tmp_path.iterdir()] == [str(processes[2].pid)])


def test_what_was_not_looked_at_does_not_count(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks may have been held up itself, with the whole machine."""
    assert eventually(lambda: len(list(tmp_path.iterdir())) == 3)
    heartbeats = Heartbeats(tmp_path, PATIENCE)
    os.kill(processes[1].pid, signal.SIGSTOP)
    clock = heartbeat.time.monotonic()
    for passed in (10, 10_000):
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda passed=passed: clock + passed)
        assert heartbeats.hung() == []


def test_a_stray_file_is_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0)
    (tmp_path / "core.dump").touch()
    (tmp_path / "-1").touch()
    assert Heartbeats(tmp_path, PATIENCE).hung() == []
    assert len(list(tmp_path.iterdir())) == 2, "it is left alone"
