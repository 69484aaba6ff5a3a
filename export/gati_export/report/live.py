"""The release that serves, as the repository itself tells it, and the report of what it was made with, if that is here.

A repository that was copied to a server has no reports: they lie beside the one that was exported or refreshed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gati.repository.chain import Chain, read_chain
from gati.repository.release import Certificate, Release
from gati.triton.tryout import newest_release
from gati_export.report.data import FORMAT, Report, numbers, read

ELSEWHERE = (
    "How its heads were chosen, and what others were tried, is told where they were learned: `gati report` there."
)
"""What is said in place of a report."""


@dataclass(frozen=True)
class LiveChain:
    """What is served, and what that is held against.

    Attributes:
        chain: The chain.
        published: The newest release that can serve; None without one, where the backbone answers.
    """

    chain: Chain
    published: Release | None

    @property
    def model(self) -> str:
        """The chain's name."""
        return self.chain.model

    @property
    def release(self) -> int | None:
        """The release's number."""
        return self.published and self.published.number

    @property
    def created(self) -> str | None:
        """When it was written, ISO 8601."""
        return self.published and self.published.created

    @property
    def certificate(self) -> Certificate | None:
        """What the promise rests on; None without a release."""
        return self.published and self.published.certificate

    @property
    def epsilon(self) -> float:
        """Largest share of answers that may differ from the backbone's."""
        return (self.certificate or self.chain).epsilon

    @property
    def delta(self) -> float:
        """1 − confidence of that."""
        return (self.certificate or self.chain).delta

    @property
    def cuts(self) -> int:
        """How many cut points there are; the exit of that number is the backbone's."""
        return len(self.chain.heads)

    @property
    def sentence(self) -> str:
        """The promise, for somebody who reads nothing else."""
        return str(self.certificate) if self.certificate else "No release is live: the backbone answers every request."

    def as_json(self) -> dict[str, Any]:
        """What a `Report` would say of it, as far as a repository tells."""
        return {
            "format": FORMAT,
            "model": self.model,
            "release": self.release,
            "created": self.created,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "agreement": self.chain.agreement,
            "sentence": self.sentence,
            "certificate": self.certificate and asdict(self.certificate),
        }


def live_in(repository: Path, model: str) -> LiveChain:
    """What the servers of a repository are to serve.

    Raises:
        RepositoryError: If there is no such chain, or its manifest is damaged.
    """
    chain = read_chain(repository, model)
    return LiveChain(chain, newest_release(repository, chain))


def known_of(repository: Path, live: LiveChain, number: int | None = None) -> Report | LiveChain:
    """What is known of a release: its report, or what the repository tells of the live one where that has none.

    Args:
        repository: The model repository.
        live: What is served there.
        number: The release; 0 for the last export or refresh that led to none; None for the live one, or without one
            for the newest that has a report.

    Raises:
        RepositoryError: If another release than the live one has no report, or the report is damaged.
    """
    there = numbers(repository, live.model)
    if number not in (None, live.release) or (live.published is None and there):
        return read(repository, live.model, number)
    if live.published is None or live.published.origin not in there:
        return live
    origin = live.published.origin
    report = read(repository, live.model, origin)
    if origin == live.release:
        return report
    return replace(
        report, release=live.release, sentence=f"Release {live.release} is release {origin} again. {report.sentence}"
    )
