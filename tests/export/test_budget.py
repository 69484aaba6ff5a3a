"""Budgets of memory, as people write them."""

from __future__ import annotations

import click
import pytest

from gati_export.commands.budget import MemorySize, parse_size


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5%", MemorySize(0.05, None)),
        (" 12.5 % ", MemorySize(0.125, None)),
        ("2MB", MemorySize(None, 2_000_000)),
        ("1.5 kb", MemorySize(None, 1500)),
        ("3MiB", MemorySize(None, 3 << 20)),
        ("1GB", MemorySize(None, 10**9)),
        ("700", MemorySize(None, 700)),
        ("700B", MemorySize(None, 700)),
        ("0", MemorySize(None, 0)),
    ],
)
def test_shares_and_sizes_are_told_apart(text: str, budget: MemorySize) -> None:
    assert parse_size(text) == pytest.approx(budget)


@pytest.mark.parametrize("text", ["", "%", "MB", "-1MB", "2 elephants", "1e3", "5%%", "2MB 3MB", "1.MB", "nan"])
def test_anything_else_is_refused_with_what_can_be_written(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no size; write '5%' of the backbone, or '2MB'"):
        parse_size(text)
