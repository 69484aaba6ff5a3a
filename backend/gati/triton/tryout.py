"""Tries out what lies on disk: whether the heads of a release could serve here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from gati.errors import GatiError, ReleaseRefused
from gati.inference.head import open_head
from gati.repository.chain import Chain
from gati.repository.release import Release, head_path, numbers_on_disk, read_release

REMEMBERED = 256
"""Heads that a process remembers to have opened: each publisher asks for those of all releases that are kept."""
_opened: dict[tuple[Chain, int, bytes], None] = {}


def check_release(repository: Path, chain: Chain, number: int) -> Release:
    """Reads a release and tries its heads out.

    Raises:
        ReleaseRefused: If it can't serve; the message says why.
    """
    release = read_release(repository, chain, number)
    for head in release.heads:
        try_out(head_path(repository, chain, head.index, number).read_bytes(), chain, head.index)
    return release


def try_out(model: bytes, chain: Chain, index: int) -> None:
    """Opens a head as a server would, unless this process has opened the same one for the same chain.

    Raises:
        ReleaseRefused: If it can't serve; the message says why.
    """
    try:
        head = chain, index, hashlib.sha256(model).digest()
        if head in _opened:
            return
        open_head(model, chain, index)
    except (GatiError, OSError, MemoryError):  # the machine's fault, if not a refusal
        raise
    except Exception as error:  # a file that was made to break what reads it must not stop who moves it out
        raise ReleaseRefused(f"head {index} of {chain.model!r} can't be tried out: {error!r:.200}.") from error
    _opened[head] = None
    while len(_opened) > REMEMBERED:
        _opened.pop(next(iter(_opened)), None)


def newest_release(repository: Path, chain: Chain) -> Release | None:
    """The newest release that can serve; None if there is none."""
    return next(servable(repository, chain), None)


def servable(repository: Path, chain: Chain) -> Iterator[Release]:
    """The releases that can serve, highest first; the first one is the live one."""
    for number in numbers_on_disk(repository, chain):
        try:
            yield check_release(repository, chain, number)
        except ReleaseRefused:
            continue
