"""Memory that was needed for a moment goes back to the system: glibc keeps what lies below anything still in use."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim() -> None:
    """Gives free memory back. Loading a chain takes copies of its weights, which would stay with the process."""
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)
