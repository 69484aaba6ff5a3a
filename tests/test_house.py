"""Which room may import which: data flows one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
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


def place(module: str) -> str:
    """Where a module lives: its folder, or itself where it lies beside the folders."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("house", ["backend/gati", "export/gati_export"])
def test_folders_import_one_way(house: str) -> None:
    root = ROOT / house
    imports: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{root.name}."):
                imports.setdefault(place(module), set()).add(place(node.module or ""))
    assert len(imports) > 10
    for here, found in imports.items():
        found.discard(here)
    assert list(TopologicalSorter(imports).static_order())  # or a CycleError, which names the folders
