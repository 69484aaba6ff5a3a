"""Staging: folders beside a repository in which exports put chains together.

Those that killed exports have left are removed by the next one.
"""

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

from gati.repository.chain import find_chains
from gati.repository.workspace import workspace

REPOSITORY, LOCK, HOST, MOVED = "repository", ".lock", ".host", ".moved"
NEW_SECONDS, OLD_SECONDS = 10, 86_400
"""Age in seconds from which a folder without an owner is removed. A younger one may belong to an export that has not
locked it yet. Locks of other hosts may not be visible here, so that their folders are left for a day."""


def staging_area(repository: Path) -> Path:
    """The folder in which exports into a repository work. Makes it, and removes what killed exports have left there."""
    area = workspace(repository) / "exports"
    area.mkdir(parents=True, exist_ok=True)
    for folder in area.iterdir():
        with suppress(Timeout, OSError):  # Timeout: its export is at work; the kernel frees locks of killed ones
            if time.time() - folder.stat().st_mtime > (NEW_SECONDS if _is_ours(folder) else OLD_SECONDS):
                with FileLock(folder / LOCK, timeout=0):
                    take_back(folder, repository)
                    shutil.rmtree(folder)
    return area


def _is_ours(folder: Path) -> bool:
    """Whether a folder is, or was, of an export on this host."""
    known = (folder / LOCK).exists() and (folder / HOST).exists()
    return known and (folder / HOST).read_text(encoding="utf-8") == socket.gethostname()


def out_of_reach(staged: Path, repository: Path) -> str | None:
    """Why a staged chain can't be renamed into a repository, in one sentence; None if it can."""
    if staged.stat().st_dev == repository.stat().st_dev:
        return None
    return f"{staged} must be on the same file system as {repository}: mount the folder above both."


@contextmanager
def staging(area: Path, name: str) -> Iterator[Path]:
    """A locked folder for one export, with an empty repository in it; removed at the end."""
    with tempfile.TemporaryDirectory(dir=area, prefix=f"{name}-") as work, FileLock(Path(work) / LOCK):
        (Path(work) / HOST).write_text(socket.gethostname(), encoding="utf-8")
        (Path(work) / REPOSITORY).mkdir()
        yield Path(work)


@contextmanager
def moving(work: Path) -> Iterator[Path]:
    """The repository in an export's folder. Meanwhile a file lists what is being moved out of it; see `take_back`."""
    journal = work / MOVED
    journal.write_text(json.dumps([folder.name for folder in (work / REPOSITORY).iterdir()]), encoding="utf-8")
    try:
        yield work / REPOSITORY
    finally:
        journal.unlink()


def write_part(path: Path, content: bytes) -> str:
    """Writes a file of a staged chain; returns its SHA-256, for the manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def take_back(work: Path, repository: Path) -> None:
    """Removes the parts of a chain from a repository that a killed export had moved there before the chain itself."""
    chains = find_chains(work / REPOSITORY)
    if not (work / MOVED).exists() or not chains or set(chains) & set(find_chains(repository)):
        return  # nothing was moved; or a chain of that name is there, and the parts are its
    with suppress(ValueError):  # killed as it was written, and before anything was moved
        for name in json.loads((work / MOVED).read_text(encoding="utf-8")):
            if not (work / REPOSITORY / name).exists():
                shutil.rmtree(repository / name, ignore_errors=True)
