"""Which room may import which: data flows one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "backend/gati": {"gati_export", "gati_client", "torch", "scipy", "tritonclient"},
    "backend/onnxruntime": {"gati_export", "gati_client", "torch", "onnx", "scipy", "tritonclient"},
    "client/gati_client": {"gati", "gati_export", "torch", "onnx", "onnxruntime", "scipy"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_nothing_from_above(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert {str(f): found for f in files if (found := imported(f) & FORBIDDEN[room])} == {}
