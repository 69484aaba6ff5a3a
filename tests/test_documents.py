"""The tables of faults and of threats name tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")


@pytest.mark.parametrize(("document", "least"), [("RELIABILITY.md", 25), ("SECURITY.md", 15)])
def test_each_row_names_a_test_that_exists(document: str, least: int) -> None:
    rows = [line for line in (ROOT / document).read_text().splitlines() if line.startswith("|")]
    named = [found for row in rows for found in NAMED.findall(row)]
    assert len(named) >= least
    for path, name in named:
        functions = {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert not name or name in functions, f"{document} names {path}::{name}"
