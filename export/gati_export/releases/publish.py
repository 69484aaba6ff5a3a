"""Publishes releases: staged outside the model folders, checked, renamed into place under a lock, and seen live.

A publisher may be killed at any point: what it leaves is not a complete release, so that no server reads it, and the
next publisher clears it away. Numbers only grow and are never used twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from gati.errors import PublishError, ReleaseRefused, UnavailableError, first_line
from gati.inference.head import SEGMENTS_KEY
from gati.repository.chain import Chain
from gati.repository.inspection import inspect
from gati.repository.lock import publisher_lock
from gati.repository.release import (
    ROLLBACK,
    Certificate,
    HeadFile,
    Release,
    Window,
    head_folder,
    head_path,
    valid_releases,
)
from gati.repository.workspace import workspace
from gati.triton.quarantine import CONFIG, clear, forget, move_out, next_number, refused, remove_empty
from gati.triton.tryout import newest_release, servable, try_out
from gati_export.learning.headfile import stamp
from gati_export.releases.origin import Origin, origin_of
from gati_export.releases.repository import head_config, write_config
from gati_export.releases.surplus import surplus
from gati_export.staging import out_of_reach

KEPT = 10
"""Distinct sets of heads that stay on disk, however often republished; each publisher deletes older releases."""

SECOND_NS = 10**9

Step = Callable[[str], None]


OVERTAKEN = "Release {} was published meanwhile, by a rollback perhaps{}, and nothing was compared with it."


class OvertakenError(PublishError):
    """Another release was published than what a draft was compared with."""


@dataclass(frozen=True)
class Draft:
    """What is to become a release.

    Attributes:
        heads: ONNX file of each head by cut point; metadata is stamped when it is published.
        certificate: What covers them together.
        window: What they were learned from.
        reason: Why: "export", "refresh", or "rollback to N".
        compared: The newest release, 0 for none, when it was decided that this should take its place; None if that
            does not matter.
    """

    heads: dict[int, bytes]
    certificate: Certificate
    window: Window
    reason: str
    compared: int | None = None


def publish(repository: Path, chain: Chain, draft: Draft, step: Step = lambda _: None, least: int = 1) -> Release:
    """Makes a draft the next release on disk, whole or not at all.

    Args:
        repository: The model repository.
        chain: The chain that the heads belong to.
        draft: What to publish.
        step: Called with the name of each step of the protocol as it begins.
        least: The lowest number that it may have: servers go on only to higher ones than they serve.

    Raises:
        PublishError: If another publisher holds the lock for long, or the release can't be written; an OvertakenError
            if the newest release is not the one that the draft was compared with.
        ReleaseRefused: If a head does not keep its contract; nothing is published then.
    """
    with publisher_lock(repository):
        return _publish(repository, chain, draft, step, least)


def _publish(repository: Path, chain: Chain, draft: Draft, step: Step, least: int) -> Release:
    """Publishes; needs the lock."""
    _check_compared(repository, chain, draft.compared)
    with _staging(repository) as staging:
        step("clear")
        clear(repository, chain)
        step("stage")
        origin = origin_of(repository)
        number = max(next_number(repository, chain), least)
        if origin is not None:
            number = origin.claim(chain, number)
            _check_alone(origin, chain, draft.compared, number)
        release = _stage(staging, chain, draft, number, step)
        step("check")
        _check(staging, chain, release)
        if origin is not None:  # first there: a release that lies here alone could be another's there
            step("put")
            _put(origin, chain, release, staging)
        try:
            land(repository, chain, release, staging, step)
        except OSError:
            if origin is not None:  # or all other copies would take what is said not to have been published
                with suppress(UnavailableError):
                    origin.remove(chain, release.number)
            raise
        step("prune")
        with suppress(OSError):  # the release is there; what is old can go another time
            prune(repository, chain)
        step("done")
    return release


def _check_compared(repository: Path, chain: Chain, compared: int | None) -> None:
    newest = newest_release(repository, chain)  # and no other: what can't be opened was compared with nothing, ever
    if compared is not None and newest is not None and newest.number != compared:
        raise OvertakenError(OVERTAKEN.format(newest.number, ""))


def _check_alone(origin: Origin, chain: Chain, compared: int | None, number: int) -> None:
    """Holds the number that was taken in an object store against what others have put there since it was looked at."""
    between = [] if compared is None else [one for one in origin.numbers(chain) if compared < one < number]
    if newer := [one for one in between if origin.is_complete(chain, one)]:
        raise OvertakenError(OVERTAKEN.format(newer[0], ", or can't be taken here"))


def _put(origin: Origin, chain: Chain, release: Release, staging: Path) -> None:
    """Puts a release into an object store, whole or not at all."""
    try:
        origin.put_release(staging, chain, release)
    except UnavailableError:
        with suppress(UnavailableError):
            origin.remove(chain, release.number)
        raise
    with suppress(UnavailableError):  # the release is there; what is old can go another time
        origin.prune(chain, KEPT)


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder beside the repository; what killed publishers left there goes first. Needs the lock."""
    parent = workspace(repository) / "staging"
    shutil.rmtree(parent, ignore_errors=True)
    try:
        parent.mkdir(parents=True)
        if (reason := out_of_reach(parent, repository)) is not None:
            raise PublishError(reason)
        yield Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise PublishError(f"The release could not be written ({error.strerror or error}); nothing changed.") from error
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _stage(staging: Path, chain: Chain, draft: Draft, number: int, step: Step) -> Release:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    files = {}
    for index, head in sorted(draft.heads.items()):
        try:
            files[index] = stamp(head, _metadata(chain, number, draft))
        except DecodeError as error:
            raise ReleaseRefused(f"head {index} is not valid ONNX: {error}") from error
    release = Release(
        model=chain.model,
        number=number,
        created=created,
        reason=draft.reason,
        segments=chain.digests(),
        heads=tuple(HeadFile(index, hashlib.sha256(file).hexdigest()) for index, file in files.items()),
        certificate=draft.certificate,
        window=draft.window,
    )
    for index, file in files.items():
        step(f"write {index}")
        folder = head_folder(staging, chain, index, number)
        folder.mkdir(parents=True)
        _write(folder / "model.onnx", file)
        _write(folder / "release.json", release.to_json().encode())
        _fsync(folder)
    return release


def _metadata(chain: Chain, number: int, draft: Draft) -> dict[str, str]:
    """What a head's file says of itself: its number, what it was learned from, what it promises, where it fits."""
    return {
        "gati.model": chain.model,
        "gati.release": str(number),
        "gati.window": json.dumps(asdict(draft.window)),
        "gati.certificate": json.dumps(asdict(draft.certificate)),
        SEGMENTS_KEY: json.dumps(chain.digests()),
    }


def _check(staging: Path, chain: Chain, release: Release) -> None:
    """Holds every staged head against onnx's checker and the contract of heads."""
    if not release.heads:
        raise PublishError("A release needs at least one head.")
    for head in release.heads:
        model = head_path(staging, chain, head.index, release.number).read_bytes()
        inspect(model, chain, head.index)
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            raise ReleaseRefused(f"head {head.index} is not valid ONNX: {first_line(error)}") from error
        try_out(model, chain, head.index)


def land(repository: Path, chain: Chain, release: Release, staging: Path, step: Step = lambda _: None) -> None:
    """Renames a release's folders into place from a staged repository; where one can't be, none stays."""
    try:
        for head in release.heads:
            step(f"rename {head.index}")
            _land_head(repository, chain, staging, head.index, release.number)
    except OSError:
        put_away(repository, chain, release.number, refused(repository, chain))
        raise


def _land_head(repository: Path, chain: Chain, staging: Path, index: int, number: int) -> None:
    """Renames a version of a head into place; the first one comes in one step with the head's configuration."""
    target, staged = (head_folder(there, chain, index, number) for there in (repository, staging))
    if not target.parent.exists():
        write_config(staging, head_config(chain, index))
        _fsync(staged.parent)
        target, staged = target.parent, staged.parent
    else:
        if not (target.parent / CONFIG).exists():
            write_config(repository, head_config(chain, index))
        _be_newest(staged, target.parent)
    os.rename(staged, target)
    _fsync(target.parent)


def _be_newest(folder: Path, model: Path) -> None:
    """Dates a version as the newest of its model: Triton passes over one that is not, whatever its number.

    The clock may have been set back since the others were written.
    """
    newest = max((path.stat().st_mtime_ns for path in [model, *model.rglob("*")]), default=0)
    if newest >= time.time_ns():
        for path in [*folder.iterdir(), folder]:
            os.utime(path, ns=(newest + SECOND_NS, newest + SECOND_NS))


def withdraw(repository: Path, chain: Chain, number: int, *, again: bool = False) -> Release | None:
    """Takes a release that a server did not accept out of the repository.

    Args:
        repository: The model repository.
        chain: Whose release.
        number: The release.
        again: Whether servers may serve it already. They go on only to higher numbers, so that the release before is
            published again, above it.

    Returns:
        The release before, under its new number; None where servers find none to go on to, or a newer one anyway.
    """
    with publisher_lock(repository):
        origin = origin_of(repository)
        if origin is not None:
            origin.remove(chain, number)
        put_away(repository, chain, number, refused(repository, chain))
        newest = newest_release(repository, chain) if again else None
        if newest is None or newest.number > number:
            return None
        draft = earlier(repository, chain, newest.number)
        return _publish(repository, chain, draft, lambda _: None, number + 1)


def prune(repository: Path, chain: Chain, kept: int = KEPT) -> None:
    """Deletes all but the newest releases, out of Triton's sight, and of those refused. Needs the lock."""
    old = workspace(repository) / "staging" / "old"
    for release in surplus(list(valid_releases(repository, chain)), kept):
        put_away(repository, chain, release.number, old)
    for index in chain.heads:
        remove_empty(repository / chain.head_model(index))
    shutil.rmtree(old, ignore_errors=True)  # here, since on a copy that nobody publishes to nothing else clears it away
    forget(repository, chain)


def put_away(repository: Path, chain: Chain, number: int, folder: Path) -> None:
    """Moves a release out of a repository. Needs the lock."""
    for index in chain.heads:
        version = head_folder(repository, chain, index, number)
        if version.exists():
            move_out(version, folder / str(number))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def earlier(repository: Path, chain: Chain, number: int | None = None) -> Draft:
    """An earlier release as a draft: the one asked for, or the one that served before the live one.

    Where the live one is a rollback itself, that is the one before the heads that it went back to.

    Its heads are the same but for the number in their metadata, and its certificate is the old one.

    Raises:
        PublishError: If there is no such release.
    """
    releases = list(servable(repository, chain))  # what can't be opened never served, and takes nobody back to it
    if not releases:
        raise PublishError(f"{chain.model!r} has no release yet.")
    live, before = releases[0], releases[1:]
    if live.origin != live.number:
        before = [release for release in before if release.number < live.origin and release.origin == release.number]
    found = before[:1] if number is None else [release for release in releases if release.number == number]
    if not found:
        wanted = f"release {number}" if number is not None else f"release before {live.origin}"
        again = f", which {live.number} is again," if number is None and live.origin != live.number else ""
        there = ", ".join(str(release.number) for release in releases)
        raise PublishError(f"{chain.model!r} has no {wanted}{again} to go back to; of {there}, name one (--to).")
    old = found[0]
    heads = {head.index: head_path(repository, chain, head.index, old.number).read_bytes() for head in old.heads}
    return Draft(heads, old.certificate, old.window, f"{ROLLBACK}{old.origin}")
