"""Releases on disk: version N of every head that takes part, each folder with the same `release.json`.

The live release is the highest number that is complete and valid; nothing else points at it. So a publisher
that dies half-way leaves folders that nobody reads, and a damaged file costs its release and nothing more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gati.decode import decode
from gati.errors import IncompleteError, ReleaseRefused, first_line
from gati.repository.agreement import difference
from gati.repository.chain import Chain

FORMAT = 2
LARGEST_MANIFEST, LARGEST_FILE = 1 << 20, 256 << 20
"""Bytes of a release.json, and of a head's file."""
SHUT = float(np.finfo(np.float32).max)
"""A threshold that no score reaches, and JSON can hold."""
ROLLBACK = "rollback to "
"""How the reason of a release begins that publishes earlier heads again; the number follows."""
STAYING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.ENODEV}
"""Why a file can't be read that will not be able to be read the next time either."""


@dataclass(frozen=True)
class Certificate:
    """P(served answer ≠ backbone's answer) ≤ epsilon with confidence 1 − delta, and what it rests on.

    Attributes:
        n: Calibration samples, none of them used in training; where their bound is the larger one, only those whose
            inputs no training has seen, each a few times at most.
        observations: Independent ones among them: frames of one scene count as one.
        errors: On how many of them the chain's answer did not agree with the backbone's.
        bound: Upper bound on the share of such answers, at confidence 1 − delta.
        epsilon: The promise.
        delta: 1 − its confidence.
        thresholds: The score from which a head's answer is served, by cut point, chosen on these samples.
        hits: Share of the calibration samples answered by a head.
        method: How the thresholds were chosen and the bound computed.
        fingerprint: SHA-256 over the calibration samples.
        agreement: When answers agree; see `gati.repository.agreement`.
        together: How many samples of a scene count for one in audits: as many as a scene has, long ones above all
            (gati_export.certificates.splitting); 1 where each is its own.
        parts: How samples were dealt out to those that train and those that certify
            (gati_export.certificates.splitting).
    """

    n: int
    observations: int
    errors: int
    bound: float
    epsilon: float
    delta: float
    thresholds: dict[int, float]
    hits: float
    method: str
    fingerprint: str
    agreement: str = ""
    together: float = 1.0
    parts: str = ""

    @property
    def is_shut(self) -> bool:
        """Whether none of the heads that it covers answers anything."""
        return min(self.thresholds.values(), default=0.0) >= SHUT

    def __str__(self) -> str:
        if self.is_shut:
            return "All heads are shut: the backbone answers every request."
        independent = f", {self.observations} independent ones among them" if self.observations < self.n else ""
        return (
            f"At most {self.epsilon:.2%} of answers {difference(self.agreement)}, with {1 - self.delta:.0%} "
            f"confidence: {self.errors} of {self.n} held-out samples did{independent} (upper bound {self.bound:.2%})."
        )


@dataclass(frozen=True)
class Window:
    """The samples that a release was learned from.

    Attributes:
        source: Where they came from.
        samples: How many, training and calibration together.
        since: Time of the oldest, ISO 8601, or None where samples carry no time.
        until: Time of the newest, likewise.
    """

    source: str
    samples: int
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class HeadFile:
    """A head that takes part in a release: its cut point, and the SHA-256 of its `model.onnx`."""

    index: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """What `release.json` says.

    Attributes:
        model: The chain's name.
        number: The release, and the version of each of its heads.
        created: When it was written, ISO 8601.
        reason: Why: "export", "refresh", or "rollback to N".
        segments: SHA-256 of every segment of the chain that the heads were trained behind.
        heads: The heads that take part, by cut point.
        certificate: The statement that covers them together.
        window: What they were learned from.
    """

    model: str
    number: int
    created: str
    reason: str
    segments: tuple[str, ...]
    heads: tuple[HeadFile, ...]
    certificate: Certificate
    window: Window

    @property
    def origin(self) -> int:
        """The release that its heads were first published as: itself, unless it is a rollback."""
        return int(self.reason.removeprefix(ROLLBACK)) if self.reason.startswith(ROLLBACK) else self.number

    @property
    def exits(self) -> tuple[int, ...]:
        """The cut points where its heads answer, rising: none where all of them are shut."""
        thresholds = self.certificate.thresholds
        return tuple(sorted(head.index for head in self.heads if thresholds.get(head.index, 0.0) < SHUT))

    def to_json(self) -> str:
        """The text of release.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Release:
        """Reads release.json's text.

        Raises:
            ReleaseRefused: If it is damaged or of an unknown format.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise ReleaseRefused("release.json was written by another version of gati; a refresh learns anew.")
            release: Release = decode(cls, fields, "release", exact=True)
            if release.certificate.together < 1:
                raise ValueError(f"samples can't be {release.certificate.together} in a scene")
            if release.origin > release.number:
                raise ValueError("it goes back to a later release")
            return release
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ReleaseRefused(f"release.json is damaged ({first_line(error)}).") from error


def head_folder(repository: Path, chain: Chain, index: int, number: int) -> Path:
    """The version folder of one head of one release."""
    return repository / chain.head_model(index) / str(number)


def head_path(repository: Path, chain: Chain, index: int, number: int) -> Path:
    """The ONNX file of one head of one release."""
    return head_folder(repository, chain, index, number) / "model.onnx"


def numbers_on_disk(repository: Path, chain: Chain) -> list[int]:
    """Numbers of all releases that have a folder, complete or not, highest first."""
    folders = (f for index in chain.heads for f in _subfolders(repository / chain.head_model(index)))
    return sorted({number for f in folders if (number := release_number(f))}, reverse=True)


def release_number(name: str) -> int | None:
    """The release that a folder of this name belongs to, None if it names none: Triton reads 64 bits."""
    return int(name) if re.fullmatch(r"[1-9][0-9]{0,17}", name) else None


def _subfolders(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError as error:
        if not _stays(error):
            raise
        return []


def _stays(error: OSError) -> bool:
    """Whether what can't be read is not there, or never will be; what a disk or a network fails at may be good."""
    return error.errno in STAYING


def read_release(repository: Path, chain: Chain, number: int) -> Release:
    """Reads and verifies a release: complete, undamaged, and for this chain's segments.

    Raises:
        ReleaseRefused: If it is not; the message says why.
    """
    release = _manifest(repository, chain, number)
    name = f"release {number} of {chain.model!r}"
    if release.model != chain.model or release.number != number:
        raise ReleaseRefused(f"{name} says that it is release {release.number} of {release.model!r}.")
    if release.segments != chain.digests():
        raise ReleaseRefused(f"{name} was trained behind other segments than this chain's.")
    if not release.heads or not {head.index for head in release.heads} <= set(chain.heads):
        raise ReleaseRefused(f"{name} names cut points that this chain does not have.")
    for head in release.heads:
        path = head_path(repository, chain, head.index, number)
        try:
            digest = hashlib.sha256(_read(path, LARGEST_FILE)).hexdigest()
        except OSError as error:
            if not _stays(error):
                raise
            raise IncompleteError(f"{name} is incomplete: {path.name} of head {head.index} is missing.") from error
        if digest != head.sha256:
            raise ReleaseRefused(f"{name} is damaged: the file of head {head.index} is not the one it lists.")
    return release


def _read(path: Path, limit: int) -> bytes:
    """Reads a file of a release; never waits for one that is a pipe, nor takes in more than `limit` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ReleaseRefused(f"{path.parent.parent.name}/{path.name} is no plain file of at most {limit:,} bytes.")
        with open(descriptor, "rb", closefd=False) as file:  # made of a folder's, it would raise and leave that open
            return file.read(limit)
    finally:
        os.close(descriptor)


def _manifest(repository: Path, chain: Chain, number: int) -> Release:
    """The manifest of a release; every folder of it carries the same text."""
    texts = set()
    for index in chain.heads:
        try:
            path = head_folder(repository, chain, index, number) / "release.json"
            texts.add(_read(path, LARGEST_MANIFEST).decode())
        except UnicodeDecodeError:
            continue
        except OSError as error:
            if not _stays(error):
                raise
    if not texts:
        raise IncompleteError(f"release {number} of {chain.model!r} has no release.json.")
    if len(texts) > 1:
        raise ReleaseRefused(f"release {number} of {chain.model!r} carries manifests that differ.")
    return Release.from_json(texts.pop())


def valid_releases(repository: Path, chain: Chain) -> Iterator[Release]:
    """The releases that are complete and valid, highest first; the first one is the live one."""
    for number in numbers_on_disk(repository, chain):
        try:
            yield read_release(repository, chain, number)
        except ReleaseRefused:
            continue
