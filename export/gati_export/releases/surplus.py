"""Which releases may go: a rollback is a copy of earlier heads, and must not push others off the disk."""

from __future__ import annotations

from collections.abc import Sequence

from gati.repository.release import Release


def surplus(releases: Sequence[Release], kept: int) -> list[Release]:
    """The releases of a chain that may go; the newest heads stay, however often they were published again.

    Of these heads the first release stays, which is what `gati rollback` looks for, and the last, which may be live.
    Those between stay only as far as there is room.

    Args:
        releases: All there are, newest first.
        kept: How many heads stay, and how many releases there is room for.
    """
    newest: dict[int, int] = {}
    for release in releases:
        newest.setdefault(release.origin, release.number)
    heads = set(list(newest)[:kept])
    needed = {number for origin in heads for number in (origin, newest[origin])}
    spare = [release for release in releases if release.number not in needed]
    return spare[max(0, kept - (len(releases) - len(spare))) :]
