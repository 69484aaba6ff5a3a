"""Documents name what there is: tests, metrics, settings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gati.telemetry.metrics import FAMILIES

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


def test_each_metric_and_each_setting_is_told_to_operators() -> None:
    told = (ROOT / "OPERATING.md").read_text()
    sources = "".join(
        (ROOT / "backend" / "gati" / name).read_text() for name in ("settings.py", "inference/session.py")
    )
    settings = set(re.findall(r'"(GATI_[A-Z_]+)"', sources))
    assert len(settings) >= 10
    metrics = {name.removesuffix("_sum").removesuffix("_count") for name in FAMILIES}
    assert not [name for name in (*settings, *metrics) if name not in told]
    assert not set(re.findall(r"GATI_[A-Z_]+", told)) - settings
