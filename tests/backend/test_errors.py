"""What is said of what went wrong elsewhere."""

from __future__ import annotations

import pytest

from gati.errors import first_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        pytest.param("It failed.\n  at engine.cc:7", "It failed.", id="a stack"),
        pytest.param("\n It failed.\n", "It failed.", id="blank lines around it"),
        pytest.param("", "", id="nothing"),
        pytest.param("x" * 1000, "x" * 300, id="no end"),
    ],
)
def test_of_an_error_its_first_line_is_told(said: str, line: str) -> None:
    assert first_line(RuntimeError(said)) == first_line(said) == line
