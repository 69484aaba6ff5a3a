"""The lock of a repository: one process at a time changes its releases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gati.errors import PublishError
from gati.repository.workspace import workspace

LOCK_SECONDS = 60


@contextmanager
def publisher_lock(repository: Path) -> Iterator[None]:
    """Holds the lock that is needed to change the releases of a repository.

    Raises:
        PublishError: If another process holds it for `LOCK_SECONDS`, or the workspace can't be written.
    """
    folder = workspace(repository)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "publish.lock").acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise PublishError(f"Another publisher has been at work on {repository} for {LOCK_SECONDS} s.") from error
    except OSError as error:
        raise PublishError(f"{folder} can't be written ({error.strerror}), so nothing can be published.") from error
    with lock:
        yield
