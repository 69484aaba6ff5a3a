"""Quarantine: releases that can't serve are moved out of a repository.

One broken version folder keeps Triton from loading any version of a head. The newest releases that were moved out stay
in `refused/` of the repository's workspace, for people to look at; their numbers are never used again.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from gati.errors import ReleaseRefused
from gati.repository.chain import Chain, find_chains, read_chain
from gati.repository.lock import publisher_lock
from gati.repository.release import head_path, numbers_on_disk, release_number
from gati.repository.workspace import workspace
from gati.triton.tryout import check_release

REFUSED_KEPT = 10
"""How many of a chain's refused releases are kept for people to look at, the last ones."""

CONFIG = "config.pbtxt"
VERSION = re.compile(r"[1-9]")
"""Beginning of a folder's name that Triton takes for a version: it reads `9.tmp` as 9."""


def unfit(repository: Path, chain: Chain) -> dict[Path, str]:
    """Version folders of a chain's heads that are part of no release that can serve, and why not."""
    reasons: dict[str, str] = {}
    good: set[Path] = set()
    for number in numbers_on_disk(repository, chain):
        try:
            release = check_release(repository, chain, number)
            good |= {head_path(repository, chain, head.index, number).parent for head in release.heads}
        except ReleaseRefused as error:
            reasons[str(number)] = str(error)
    return {
        folder: reasons.get(folder.name, f"{folder.name!r} of head {index} of {chain.model!r} belongs to no release.")
        for index in chain.heads
        for folder in sorted((repository / chain.head_model(index)).glob("*"))
        if VERSION.match(folder.name) and folder.is_dir() and folder not in good
    }


def clear(repository: Path, chain: Chain) -> list[str]:
    """Moves unfit version folders out; returns why, each reason once. Needs the lock."""
    reasons = unfit(repository, chain)
    for folder in reasons:
        move_out(folder, refused(repository, chain) / folder.name)
    return list(dict.fromkeys(reasons.values()))


def clear_before_start(repository: Path) -> list[str]:
    """Moves out what would keep a server from starting: of chains in BLS mode, whose heads are Triton's own models.

    Returns:
        Why each release was refused. Inline chains refuse releases themselves, while they run.

    Raises:
        PublishError: If a publisher holds the lock for too long.
        RepositoryError: If a chain can't be read.
    """
    reasons = []
    for name in find_chains(repository):
        chain = read_chain(repository, name)
        if chain.mode == "bls" and unfit(repository, chain):
            with publisher_lock(repository):  # looks again: it may have been a publisher at work
                reasons += clear(repository, chain)
    return reasons


def next_number(repository: Path, chain: Chain) -> int:
    """One more than the number of any release that there is or was: complete, damaged or refused."""
    moved = (release_number(folder.name) or 0 for folder in refused(repository, chain).glob("*"))
    return max([0, *numbers_on_disk(repository, chain), *moved]) + 1


def forget(repository: Path, chain: Chain) -> None:
    """Deletes old refused releases, but not the highest one, from which numbers go on. Needs the lock."""
    folders = [folder for folder in refused(repository, chain).glob("*") if release_number(folder.name)]
    folders.sort(key=lambda folder: (folder.stat().st_mtime_ns, int(folder.name)))
    highest = max((int(folder.name) for folder in folders), default=0)
    for folder in folders[:-REFUSED_KEPT]:
        if int(folder.name) != highest:
            shutil.rmtree(folder, ignore_errors=True)


def refused(repository: Path, chain: Chain) -> Path:
    """Where a chain's refused releases lie, a folder each."""
    return workspace(repository) / "refused" / chain.model


def move_out(folder: Path, target: Path) -> None:
    """Moves a version folder of a head out of Triton's sight, replacing what lies there."""
    place = target / folder.parent.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    os.rename(folder, place)
    remove_empty(folder.parent)


def remove_empty(model: Path) -> None:
    """Deletes the folder of a head that has no version: a Triton that loads all that lies there does not start with it.

    It comes again with the head's next version. What others have put there stays.
    """
    with suppress(OSError):
        if {path.name for path in model.iterdir()} <= {CONFIG}:
            (model / CONFIG).unlink(missing_ok=True)
            model.rmdir()
