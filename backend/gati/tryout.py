"""Tries out what lies on disk: whether the heads of a release could serve here."""

from __future__ import annotations

from pathlib import Path

from gati.chain import Chain
from gati.errors import GatiError, ReleaseRefused
from gati.head import open_head
from gati.release import Release, head_path, numbers_on_disk, read_release


def check_release(repository: Path, chain: Chain, number: int) -> Release:
    """Reads a release and tries its heads out.

    Raises:
        ReleaseRefused: If it can't serve; the message says why.
    """
    release = read_release(repository, chain, number)
    for head in release.heads:
        model = head_path(repository, chain, head.index, number).read_bytes()
        try:
            open_head(model, chain, head.index)
        except (GatiError, OSError, MemoryError):  # the machine's fault, if not a refusal
            raise
        except Exception as error:  # a file that was made to break what reads it must not stop who moves it out
            raise ReleaseRefused(f"head {head.index} of {chain.model!r} can't be tried out: {error!r:.200}.") from error
    return release


def newest_release(repository: Path, chain: Chain) -> Release | None:
    """The newest release that can serve; None if there is none."""
    for number in numbers_on_disk(repository, chain):
        try:
            return check_release(repository, chain, number)
        except ReleaseRefused:
            continue
    return None
