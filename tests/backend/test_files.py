"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gati.system.files import replace


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a longer text")
    replace(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()  # in whose place no file can be put
    with pytest.raises(OSError):
        replace(tmp_path / "file", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
