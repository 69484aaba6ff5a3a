"""Temporary folders: of `gati serve`, and in it, named by them, of the processes that run models.

Who is killed leaves its own behind. `gati serve` removes what its processes have left, and what those before it have.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gati.system.proc import arguments

TEMPORARY = "TMPDIR"
"""Environment variable: where temporary folders are made."""
PREFIX = "gati-"
NAME = re.compile(rf"{PREFIX}(\d+)-\w+")
LOCK = "lock"
"""A file in a folder that is held: the kernel lets go of it when its process ends, however that ends."""
YOUNG_SECONDS = 60.0
"""A folder that is not as old may not be held yet."""


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, for a `with` statement."""
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-")


def sweep(folder: Path) -> None:
    """Removes what processes have left there that have ended: of a network, that may be all its weights."""
    for path in folder.iterdir():
        if (named := NAME.fullmatch(path.name)) and not arguments(int(named[1])):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def held_folder() -> Iterator[Path]:
    """A folder that is seen to be in use, for a `with` statement; removes those that killed holders have left."""
    _clear(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, Path(folder, LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def _clear(folder: Path) -> None:
    """Removes folders of this user that nobody holds any more."""
    for path in folder.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):  # it is held, or another was faster
            found = path.lstat()
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not path.parent.is_symlink()
            if ours and time.time() - found.st_mtime > YOUNG_SECONDS:
                with path.open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent, ignore_errors=True)
