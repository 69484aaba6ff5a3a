"""Budgets of memory, as people write them: a share of the backbone, or a size."""

from __future__ import annotations

import re
from typing import NamedTuple

import click

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[A-Za-z]*)")


class MemorySize(NamedTuple):
    """Either a share of the backbone's size or a size in bytes; the other is None."""

    share: float | None
    size: int | None


def parse_size(text: str) -> MemorySize:
    """Reads '5%' or '2MB'.

    Raises:
        click.BadParameter: If it is neither.
    """
    match = WRITTEN.fullmatch(text.strip())
    if match and match[2] == "%":
        return MemorySize(float(match[1]) / 100, None)
    if match and match[2].upper() in UNITS:
        return MemorySize(None, int(float(match[1]) * UNITS[match[2].upper()]))
    raise click.BadParameter(f"{text!r} is no size; write '5%' of the backbone, or '2MB'.")
