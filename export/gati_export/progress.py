"""Progress: how long-running work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of it that is done, 0..1."""


def silent(_what: str, _share: float) -> None:
    """Tells nobody."""
