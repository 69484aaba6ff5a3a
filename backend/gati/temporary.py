"""Temporary folders of the processes that run models, named by these: one that is killed leaves its own behind."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from gati.proc import arguments

TEMPORARY = "TMPDIR"
"""Environment variable: where temporary folders are made."""
NAME = re.compile(r"gati-(\d+)-\w+")


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, for a `with` statement."""
    return tempfile.TemporaryDirectory(prefix=f"gati-{os.getpid()}-")


def sweep(folder: Path) -> None:
    """Removes what processes have left there that have ended: of a network, that may be all its weights."""
    for path in folder.iterdir():
        if (named := NAME.fullmatch(path.name)) and not arguments(int(named[1])):
            shutil.rmtree(path, ignore_errors=True)
