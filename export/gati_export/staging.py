"""Staging: where a chain is put together beside its repository, and what exports that were killed have left there."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gati.chain import find_chains
from gati.settings import workspace

REPOSITORY, LOCK, HOST, MOVED = "repository", ".lock", ".host", ".moved"
NEW_SECONDS, OLD_SECONDS = 10, 86_400
"""A folder that is younger may be another export's, which has not locked it yet; one of another host, whose locks may
not be seen here, or without a lock, is left for a day."""


def staging_area(repository: Path) -> Path:
    """The folder that exports into a repository work in; made where it is not there, and rid of what the dead left."""
    area = workspace(repository) / "exports"
    area.mkdir(parents=True, exist_ok=True)
    for folder in area.iterdir():
        with suppress(Timeout, OSError):  # Timeout: it is at work; of what is dead, the kernel has let go
            if time.time() - folder.stat().st_mtime > (NEW_SECONDS if _is_ours(folder) else OLD_SECONDS):
                with FileLock(folder / LOCK, timeout=0):
                    take_back(folder, repository)
                    shutil.rmtree(folder)
    return area


def _is_ours(folder: Path) -> bool:
    """Whether an export of this host works there, or did."""
    known = (folder / LOCK).exists() and (folder / HOST).exists()
    return known and (folder / HOST).read_text(encoding="utf-8") == socket.gethostname()


def out_of_reach(staged: Path, repository: Path) -> str | None:
    """Why what is staged can't be renamed into a repository, in one sentence; None if it can."""
    if staged.stat().st_dev == repository.stat().st_dev:
        return None
    return f"{staged} must be on the same file system as {repository}: mount the folder above both."


@contextmanager
def staging(area: Path, name: str) -> Iterator[Path]:
    """A folder for one export, with a repository in it that is named as that which it will be part of."""
    with tempfile.TemporaryDirectory(dir=area, prefix=f"{name}-") as work, FileLock(Path(work) / LOCK):
        (Path(work) / HOST).write_text(socket.gethostname(), encoding="utf-8")
        (Path(work) / REPOSITORY).mkdir()
        yield Path(work)


@contextmanager
def moving(work: Path) -> Iterator[Path]:
    """The repository in an export's folder, of which it is known meanwhile what is being moved out of it."""
    journal = work / MOVED
    journal.write_text(json.dumps([folder.name for folder in (work / REPOSITORY).iterdir()]), encoding="utf-8")
    try:
        yield work / REPOSITORY
    finally:
        journal.unlink()


def write_part(path: Path, content: bytes) -> str:
    """Writes a file of a chain that is put together; returns its SHA-256, which the manifest has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def take_back(work: Path, repository: Path) -> None:
    """Removes from a repository what somebody dead had moved there of its chain, which itself would have come last."""
    chains = find_chains(work / REPOSITORY)
    if not (work / MOVED).exists() or not chains or set(chains) & set(find_chains(repository)):
        return  # or what is there is another one's of that name
    with suppress(ValueError):  # killed as it was written, and before anything was moved
        for name in json.loads((work / MOVED).read_text(encoding="utf-8")):
            if not (work / REPOSITORY / name).exists():
                shutil.rmtree(repository / name, ignore_errors=True)
