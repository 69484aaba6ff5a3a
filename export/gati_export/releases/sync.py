"""Keeps a repository on disk in step with its origin in an object store (`gati_export.releases.origin`).

What comes is staged beside the repository, held against its digests, tried out, and renamed into place under the
publisher's lock, a chain's own folder last. So a sync may be killed at any point, and what a store holds by accident or
malice is never served.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from gati.errors import PublishError, RepositoryError
from gati.repository.chain import NAME, Chain, chain_path, find_chains, read_chain
from gati.repository.lock import LOCK_SECONDS, publisher_lock
from gati.repository.release import (
    LARGEST_FILE,
    LARGEST_MANIFEST,
    Release,
    head_folder,
    numbers_on_disk,
    valid_releases,
)
from gati.repository.workspace import workspace
from gati.triton.quarantine import clear, refused
from gati.triton.tryout import check_release
from gati_export.releases.chain_files import chain_files, check_portable
from gati_export.releases.origin import Origin, bind, check_bound, digest, origin_of
from gati_export.releases.publish import KEPT, land, prune, put_away
from gati_export.releases.refusals import Refusals
from gati_export.releases.repository import chain_of, move_in, plain_name
from gati_export.staging import REPOSITORY, moving, take_back


@dataclass
class Synced:
    """What a sync did.

    Attributes:
        models: Chains that are new here.
        pulled: Releases that came, by chain.
        pushed: Releases that went.
        removed: Releases that are gone here, since they are gone there.
        refused: Why something there was not taken; what lies here goes on.
    """

    models: list[str] = field(default_factory=list)
    pulled: dict[str, list[int]] = field(default_factory=dict)
    pushed: dict[str, list[int]] = field(default_factory=dict)
    removed: dict[str, list[int]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def did(self, what: dict[str, list[int]], chain: Chain, number: int) -> None:
        """Notes a release."""
        what.setdefault(chain.model, []).append(number)


class Copy:
    """A repository on disk, and the one in an object store that it is a copy of.

    Args:
        repository: The one on disk; made where there is none.
        origin: The other one.

    Raises:
        RepositoryError: If the repository is a copy of another one.
        PublishError: If it can't be written.
    """

    def __init__(self, repository: Path, origin: Origin) -> None:
        self._repository = repository
        self._origin = origin
        self._refused = Refusals()
        try:
            repository.mkdir(parents=True, exist_ok=True)
            workspace(repository).mkdir(exist_ok=True)
            check_bound(repository, origin)
        except OSError as error:
            raise PublishError(f"{repository} can't be written ({error.strerror}).") from error

    def pull(self, *, push: bool = False) -> Synced:
        """Takes chains and releases that are new there, and lets go of releases that are gone there.

        Args:
            push: Whether a push follows, so that nothing need be there yet.

        Raises:
            RepositoryError: If no chain is there, and some are here.
            UnavailableError: If the store can't be reached.
            PublishError: If another sync, or a publisher for long, is at work, or the disk can't be written.
        """
        done, found = Synced(), push
        with self._staging() as staging:
            for name in self._names(done):
                try:
                    chain = self._origin.chain(name)
                    if chain is not None:
                        found = True
                        self._pull(chain, staging, done)
                except RepositoryError as error:
                    done.refused.append(str(error))
            if not found and not done.refused and find_chains(self._repository):
                raise RepositoryError(f"{self._origin.url} holds no chain: `gati sync --push` puts them there.")
            self._bind()
        return done

    def push(self) -> Synced:
        """Puts chains and releases there that are newer than what lies there.

        Raises:
            UnavailableError: If the store can't be reached.
            PublishError: If another publisher was first with a release of that number, or a chain of that name.
        """
        done = Synced()
        with self._staging():
            for name in find_chains(self._repository):
                chain = read_chain(self._repository, name)
                self._push_chain(chain)
                self._push_releases(chain, done)
            self._bind()
        return done

    def _bind(self) -> None:
        if find_chains(self._repository):
            bind(self._repository, self._origin)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """An empty folder for the one sync that is at work; what killed ones left there, or had moved, goes first."""
        folder = workspace(self._repository) / "sync"
        try:
            lock = FileLock(folder.with_suffix(".lock")).acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise PublishError(f"Another sync of {self._repository} has been at work for {LOCK_SECONDS} s.") from error
        with lock:
            try:
                take_back(folder, self._repository)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                yield folder
            except OSError as error:
                raise PublishError(f"{self._repository} can't be written ({error.strerror or error}).") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _names(self, done: Synced) -> list[str]:
        """What may be chains' names there. Others never become paths: they may lead out of the repository."""
        names = [name for name in self._origin.names() if name != ".gati"]
        bad = [name for name in names if not NAME.fullmatch(name)]
        done.refused += [f"{name!r} in {self._origin.url} is no name of a model." for name in bad]
        parts = {name for name in names if chain_of(name) in names or name in map(plain_name, names)}
        return [name for name in names if name not in parts and name not in bad]

    def _pull(self, chain: Chain, staging: Path, done: Synced) -> None:
        check_portable(chain)
        if chain_path(self._repository, chain.model).exists():
            self._check_same(chain)
            self._pull_releases(self._repository, chain, staging, done)
            self._let_go(chain, done)
            return
        staged = staging / REPOSITORY
        shutil.rmtree(staged, ignore_errors=True)
        self._fetch_chain(chain, staged)
        self._pull_releases(staged, chain, staging, done)
        with publisher_lock(self._repository), moving(staging):
            _install(staged, self._repository, chain.model)
        done.models.append(chain.model)

    def _check_same(self, chain: Chain) -> None:
        """Refuses another chain of that name; how it is run is each copy's own affair."""
        ours = read_chain(self._repository, chain.model)
        if replace(ours, mode=chain.mode) != chain:
            raise RepositoryError(
                f"{self._origin.url} holds another {chain.model!r} than {self._repository}: one needs another name."
            )

    def _fetch_chain(self, chain: Chain, staged: Path) -> None:
        for file in chain_files(chain):
            self._fetch(file.key, staged, file.limit)
            file.check(staged)
        self._fetch(str(chain_path(Path(), chain.model)), staged, LARGEST_MANIFEST)
        if read_chain(staged, chain.model) != chain:
            raise RepositoryError(f"{chain.model!r} in {self._origin.url} was changed as it was read.")

    def _fetch(self, key: str, folder: Path, limit: int) -> None:
        if not self._origin.fetch(key, folder / key, limit):
            raise RepositoryError(f"{self._origin.url}/{key} is missing.")

    def _pull_releases(self, repository: Path, chain: Chain, staging: Path, done: Synced) -> None:
        """Takes the releases that are newer than what a repository has, oldest first."""
        newest = next(valid_releases(repository, chain), None)
        for number in reversed(self._origin.numbers(chain)):
            if newest is not None and number <= newest.number:
                continue
            if not self._origin.is_complete(chain, number):  # its publisher may be at work
                done.refused.append(f"release {number} of {chain.model!r} in {self._origin.url} is incomplete.")
                continue
            key = (chain.model, number, self._origin.manifest(chain, number) or b"")
            if self._refused.rests(key):
                continue
            try:
                release = self._fetch_release(chain, number, staging / "release")
            except (RepositoryError, MemoryError) as error:
                self._refused.add(key)
                done.refused.append(str(error) or f"release {number} of {chain.model!r} can't be tried out: no memory.")
                continue
            with publisher_lock(self._repository):
                if number in numbers_on_disk(repository, chain):
                    clear(repository, chain)  # half of it, from a sync that was killed here
                if number not in numbers_on_disk(repository, chain):  # or its publisher is here, and was first
                    land(repository, chain, release, staging / "release")
                    done.did(done.pulled, chain, number)
                prune(repository, chain)

    def _fetch_release(self, chain: Chain, number: int, staged: Path) -> Release:
        """Fetches a release into a staged repository of its own, and tries it out there."""
        shutil.rmtree(staged, ignore_errors=True)
        for index in chain.heads:
            key = f"{chain.head_model(index)}/{number}/"
            if self._origin.fetch(f"{key}release.json", staged / f"{key}release.json", LARGEST_MANIFEST):
                self._origin.fetch(f"{key}model.onnx", staged / f"{key}model.onnx", LARGEST_FILE)
        return check_release(staged, chain, number)

    def _let_go(self, chain: Chain, done: Synced) -> None:
        """Moves out the releases that are gone there, pruned or withdrawn, unless no other would be left to serve."""
        here = numbers_on_disk(self._repository, chain)  # first: what a publisher has put here by now, is there
        taken, there = self._origin.taken(chain), set(self._origin.numbers(chain))
        gone = [number for number in here if number <= taken and number not in there]
        if not gone or not any(release.number in there for release in valid_releases(self._repository, chain)):
            return
        with publisher_lock(self._repository):
            for number in gone:
                put_away(self._repository, chain, number, refused(self._repository, chain))
                done.did(done.removed, chain, number)

    def _push_chain(self, chain: Chain) -> None:
        if (theirs := self._origin.chain(chain.model)) is not None:
            return self._check_same(theirs)
        check_portable(chain)
        path = chain_path(self._repository, chain.model)
        if not self._origin.take(claim := f"{chain.model}/chain", digest(path.read_bytes())):
            raise PublishError(
                f"Another publisher was first with {chain.model!r} in {self._origin.url}, and is not done: if it was "
                f"killed, remove {self._origin.url}/.gati/{claim}, and push again."
            )
        for key in [*(file.key for file in chain_files(chain)), str(chain_path(Path(), chain.model))]:
            self._origin.put(key, self._repository / key)
        return None

    def _push_releases(self, chain: Chain, done: Synced) -> None:
        """Puts the releases there that are newer than any there, oldest first; one that is half there, again."""
        highest = max(self._origin.numbers(chain), default=0)
        for release in reversed(list(valid_releases(self._repository, chain))):
            if release.number < highest or self._is_there(chain, release):
                continue
            self._origin.put_release(self._repository, chain, release)
            done.did(done.pushed, chain, release.number)
        self._origin.prune(chain, KEPT)

    def _is_there(self, chain: Chain, release: Release) -> bool:
        """Whether a release lies there; takes its number where it does not.

        Raises:
            PublishError: If another one has that number.
        """
        folder = head_folder(self._repository, chain, release.heads[0].index, release.number)
        ours = (folder / "release.json").read_bytes()
        if self._origin.manifest(chain, release.number) == ours and self._origin.is_complete(chain, release.number):
            return True
        if not self._origin.take(f"{chain.model}/{release.number}", digest(ours)):
            raise PublishError(
                f"Another publisher was first with release {release.number} of {chain.model!r} in {self._origin.url}. "
                f"Move {release.number}/ out of the heads' folders in {self._repository}, and sync again."
            )
        return False


def _install(staged: Path, repository: Path, name: str) -> None:
    """Moves a staged chain into a repository, its own folder last.

    Raises:
        RepositoryError: If a model of one of its names is there that is not the same, or it can't be moved.
    """
    folders = list(staged.iterdir())
    for folder in folders:
        if (repository / folder.name).exists() and not _has_all(folder, repository / folder.name):
            raise RepositoryError(
                f"{repository} holds another {folder.name!r}; remove it, or export under another name."
            )
    for folder in folders:
        shutil.rmtree(repository / folder.name, ignore_errors=True)
    move_in(staged, repository, name)


def _has_all(folder: Path, of: Path) -> bool:
    """Whether a folder has every file of another one, unchanged."""
    files = (path for path in of.rglob("*") if path.is_file())
    return all((there := folder / path.relative_to(of)).exists() and filecmp.cmp(path, there, False) for path in files)


def follow(repository: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Brings a copy up to date before something is decided on it; does nothing to a repository that is none.

    Raises:
        UnavailableError: If the store can't be reached.
    """
    origin = origin_of(repository)
    if origin is not None:
        for reason in Copy(repository, origin).pull().refused:
            say(reason)
