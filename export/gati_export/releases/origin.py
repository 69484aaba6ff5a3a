"""A repository in an object store, laid out as on disk: publishers agree there, and copies on disk are filled from it.

A store puts single files whole, so that a release may be half there: whoever takes it holds it against its digests.
Beside the models, `.gati/MODEL/N` says that number N is taken. It is put only where nothing lies yet, so that two
publishers never use one number, and stays when the release goes, so that nobody uses it again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from gati.errors import PublishError, ReleaseRefused, RepositoryError
from gati.recording.objects import is_object_store, open_store, public, reaching
from gati.repository.chain import Chain
from gati.repository.release import LARGEST_MANIFEST, Release, head_folder, release_number
from gati.repository.workspace import workspace
from gati.system.files import replace
from gati_export.releases.surplus import surplus

FILES = ("model.onnx", "release.json")
"""Of a head in a release, in the order in which they are put."""
CHUNK = 8 << 20


class Origin:
    """A repository in an object store.

    Args:
        url: Such as `s3://bucket/models`. Credentials come from the environment, as its library finds them.

    Raises:
        RepositoryError: If the URL is none of an object store's folders, or carries credentials: it is written down.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if public(url) != url:
            raise RepositoryError(f"{public(url)} was given with credentials; leave them to the environment.")
        if not is_object_store(url) or "/" not in self.url.partition("://")[2]:
            raise RepositoryError(f"{url!r} is no folder of an object store, such as s3://bucket/models.")
        with reaching(self.url):
            self._fs, self._root = open_store(self.url)

    def names(self, *folder: str) -> list[str]:
        """Names of what lies right in a folder, sorted; none where there is no such folder."""
        path = "/".join([self._root, *folder])
        with reaching(self.url):
            try:
                found = self._fs.ls(path, detail=False)
            except FileNotFoundError:
                return []
        return sorted({below.rstrip("/").rpartition("/")[2] for below in found if below.rstrip("/") != path})

    def chain(self, name: str) -> Chain | None:
        """A model's chain; None if it has none.

        Raises:
            RepositoryError: If it is damaged, or another model's.
        """
        text = self.text(f"{name}/1/chain.json")
        if text is None:
            return None
        chain = Chain.from_json(text.decode(errors="replace"))
        if chain.model != name:
            raise RepositoryError(f"{self.url}/{name} says that it is the chain {chain.model!r}.")
        return chain

    def numbers(self, chain: Chain) -> list[int]:
        """Numbers of the releases that lie there, complete or not, highest first."""
        names = {name for index in chain.heads for name in self.names(chain.head_model(index))}
        return sorted((number for name in names if (number := release_number(name))), reverse=True)

    def taken(self, chain: Chain) -> int:
        """The highest number that was ever used."""
        claims = (release_number(name) or 0 for name in self.names(".gati", chain.model))
        return max([0, *claims, *self.numbers(chain)])

    def claim(self, chain: Chain, least: int) -> int:
        """Takes the next free number, for good."""
        number = max(least, self.taken(chain) + 1)
        while not self.take(f"{chain.model}/{number}", secrets.token_hex(16).encode()):
            number += 1
        return number

    def take(self, what: str, by: bytes) -> bool:
        """Whether something is now, or was already, taken by this one: whoever is first has it."""
        path = f"{self._root}/.gati/{what}"
        with reaching(self.url):
            try:
                self._fs.pipe_file(path, by, mode="create")
            except FileExistsError:
                return bool(self._fs.cat_file(path) == by)
        return True

    def put(self, key: str, path: Path) -> None:
        """Puts a file there."""
        with reaching(self.url):
            self._fs.put_file(str(path), f"{self._root}/{key}")

    def put_release(self, repository: Path, chain: Chain, release: Release) -> None:
        """Puts a release's files there, manifests after what they list. Its number is taken already."""
        for name in FILES:
            for head in release.heads:
                folder = head_folder(repository, chain, head.index, release.number)
                self.put(f"{chain.head_model(head.index)}/{release.number}/{name}", folder / name)

    def remove(self, chain: Chain, number: int) -> None:
        """Removes a release, manifests first; its number stays taken."""
        for name in reversed(FILES):
            for index in chain.heads:
                with reaching(self.url), suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._root}/{chain.head_model(index)}/{number}/{name}")

    def prune(self, chain: Chain, kept: int) -> None:
        """Removes all but the newest releases, and what killed publishers have left before them."""
        numbers = self.numbers(chain)
        found = {number: self._complete(chain, number) for number in numbers}
        whole = [release for number, release in found.items() if release is not None and release.number == number]
        staying = {release.number for release in whole} - {release.number for release in surplus(whole, kept)}
        for number in numbers:
            if number < max(staying, default=0) and number not in staying:
                self.remove(chain, number)

    def is_complete(self, chain: Chain, number: int) -> bool:
        """Whether all that a release's manifest lists is there; not whether it is undamaged."""
        return self._complete(chain, number) is not None

    def _complete(self, chain: Chain, number: int) -> Release | None:
        try:
            release = Release.from_json((self.manifest(chain, number) or b"").decode(errors="replace"))
        except ReleaseRefused:
            return None
        folders = [self.names(chain.head_model(head.index), str(number)) for head in release.heads]
        return release if all(set(FILES) <= set(folder) for folder in folders) else None

    def manifest(self, chain: Chain, number: int) -> bytes | None:
        """The first release.json of a release; None if it has none."""
        keys = (f"{chain.head_model(index)}/{number}/release.json" for index in chain.heads)
        return next((text for key in keys if (text := self.text(key)) is not None), None)

    def text(self, key: str) -> bytes | None:
        """A small file; None if there is none.

        Raises:
            RepositoryError: If it is larger than 1 MiB.
        """
        with self._opened(key, LARGEST_MANIFEST) as file:
            return None if file is None else b"".join(self._chunks(file))

    def fetch(self, key: str, path: Path, limit: int) -> bool:
        """Copies a file, and syncs it; returns whether there is one.

        Raises:
            RepositoryError: If it is larger than `limit` bytes; nothing is copied then.
        """
        with self._opened(key, limit) as source:
            if source is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    file.writelines(self._chunks(source))
                    file.flush()
                    os.fsync(file.fileno())
        return source is not None

    @contextmanager
    def _opened(self, key: str, limit: int) -> Iterator[Any]:
        with reaching(self.url):
            try:
                opened = self._fs.open(f"{self._root}/{key}", "rb")
            except FileNotFoundError:
                opened = nullcontext()
        with opened as file:  # what is done with it meanwhile is none of the store's faults
            if file is not None and file.size > limit:
                raise RepositoryError(f"{self.url}/{key} is larger than {limit:,} bytes.")
            yield file

    def _chunks(self, file: Any) -> Iterator[bytes]:
        chunk = b" "
        while chunk:
            with reaching(self.url):
                chunk = file.read(CHUNK)
            yield chunk


def digest(content: bytes) -> bytes:
    """What a file's owner takes its place by."""
    return hashlib.sha256(content).hexdigest().encode()


def origin_of(repository: Path) -> Origin | None:
    """What a repository is a copy of; None if it is none.

    Raises:
        PublishError: If that can't be read.
    """
    try:
        return Origin(_place(repository).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PublishError(f"{_place(repository)} can't be read ({error.strerror}).") from error


def bind(repository: Path, origin: Origin) -> None:
    """Writes down what a repository is a copy of: from now on, its publishers publish there."""
    replace(_place(repository), origin.url + "\n")


def check_bound(repository: Path, origin: Origin) -> None:
    """Checks that a repository is a copy of this one, or of none yet.

    Raises:
        RepositoryError: If it is a copy of another one.
    """
    known = origin_of(repository)
    if known is not None and known.url != origin.url:
        raise RepositoryError(
            f"{repository} is a copy of {known.url}, not of {origin.url}; without {_place(repository)} it is of none."
        )


def _place(repository: Path) -> Path:
    return workspace(repository) / "origin"
