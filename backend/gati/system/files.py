"""Atomic writes: files that nobody ever sees half-written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
    """Writes a file atomically, whole or not at all, in place of what was there.

    One process and thread at a time may write a file: the temporary one beside it has always the same name.

    Raises:
        OSError: If that is not possible; what was there before is then unchanged.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):  # on a full disk, half a file would take room that others need
            beside.unlink(missing_ok=True)
        raise
