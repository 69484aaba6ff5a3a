"""The token that opens Triton's model-control API, in a file of the workspace."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from gati.errors import PublishError
from gati.repository.lock import publisher_lock
from gati.repository.workspace import workspace


def read_or_create_token(repository: Path) -> str:
    """The token that opens the model-control API, from a file that only its owner can read.

    Servers of one repository share it, and may start at the same time.

    Raises:
        PublishError: If the file is empty, or another process holds the lock to make it for too long.
        OSError: If it can't be read or made.
    """
    path = workspace(repository) / "token"
    if not path.exists():
        with publisher_lock(repository):
            if not path.exists():
                _write_token(path)
    token = path.read_text(encoding="ascii").strip()
    if not token:
        raise PublishError(f"{path} holds no token.")
    with suppress(OSError):  # a mounted secret is read-only, and its permissions are not ours to set
        path.chmod(0o600)
    return token


def _write_token(path: Path) -> None:
    partial = path.with_suffix(".part")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    partial.rename(path)
