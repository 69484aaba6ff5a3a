"""Temporary folders of processes that run models."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gati.system.temporary import LOCK, TEMPORARY, YOUNG_SECONDS, held_folder, sweep, temporary_folder

LEAVE = """
import os
from pathlib import Path
from gati.system.temporary import temporary_folder

with temporary_folder() as folder:
    Path(folder, "weights").write_bytes(bytes(1000))
    os.kill(os.getpid(), 9)
"""

HOLD = """
from gati.system.temporary import held_folder

with held_folder() as folder:
    print(folder, flush=True)
    input()
"""


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TEMPORARY, str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    subprocess.run([sys.executable, "-c", LEAVE], check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "weights").exists()
    (tmp_path / "gati-of-somebody").mkdir()
    with temporary_folder() as own:
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {Path(own).name, "gati-of-somebody"}


def test_what_killed_servers_have_left_goes_with_the_next_and_nothing_that_is_held_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TEMPORARY, str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = [sys.executable, "-c", HOLD]
    holders = [
        subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    killed, new, held = (Path(str(holder.stdout and holder.stdout.readline()).strip()) for holder in holders)
    for holder in holders[:2]:
        holder.kill()
        holder.wait()
    long_ago = time.time() - 2 * YOUNG_SECONDS
    for folder in (killed, held):
        os.utime(folder / LOCK, (long_ago, long_ago))
    with held_folder() as own:
        assert {*tmp_path.iterdir()} == {own, new, held}
    assert {*tmp_path.iterdir()} == {new, held}
    holders[2].communicate("\n")
    assert {*tmp_path.iterdir()} == {new}
