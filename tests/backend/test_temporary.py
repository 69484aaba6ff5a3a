"""Temporary folders of processes that run models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gati.temporary import TEMPORARY, sweep, temporary_folder

LEAVE = """
import os
from pathlib import Path
from gati.temporary import temporary_folder

with temporary_folder() as folder:
    Path(folder, "weights").write_bytes(bytes(1000))
    os.kill(os.getpid(), 9)
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
