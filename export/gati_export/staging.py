"""Staging: where a chain is put together beside its repository, and what exports that were killed have left there."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gati.chain import find_chains, read_chain
from gati.errors import GatiError
from gati.settings import workspace
from gati_export.repository import plain_name

REPOSITORY, LOCK = "repository", ".lock"
NEW_SECONDS = 10
"""A folder that is younger may be another export's, which has not locked it yet."""


def staging_area(repository: Path) -> Path:
    """The folder that exports into a repository work in; made where it is not there, and rid of what the dead left."""
    area = workspace(repository) / "exports"
    area.mkdir(parents=True, exist_ok=True)
    for folder in area.iterdir():
        with suppress(Timeout, OSError):  # Timeout: it is at work; of what is dead, the kernel has let go
            if time.time() - folder.stat().st_mtime > NEW_SECONDS:
                with FileLock(folder / LOCK, timeout=0):
                    _take_back(folder / REPOSITORY, repository)
                    shutil.rmtree(folder)
    return area


@contextmanager
def staging(area: Path, name: str) -> Iterator[Path]:
    """A folder for one export, with a repository in it that is named as that which it will be part of."""
    with tempfile.TemporaryDirectory(dir=area, prefix=f"{name}-") as work, FileLock(Path(work) / LOCK):
        (Path(work) / REPOSITORY).mkdir()
        yield Path(work)


def _take_back(staged: Path, repository: Path) -> None:
    """Removes from a repository what a dead export had moved there of its chain: that itself would have come last."""
    for name in find_chains(staged):
        if (repository / name).exists():
            continue
        with suppress(GatiError):
            chain = read_chain(staged, name)
            models = [*map(chain.segment_model, range(len(chain.segments))), *map(chain.head_model, chain.heads)]
            for model in (*models, plain_name(name)):
                if not (staged / model).exists():
                    shutil.rmtree(repository / model, ignore_errors=True)
