"""What a report holds, and where reports lie: `reports/<model>/<N>.json` in the repository's workspace."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gati.decode import decode
from gati.errors import RepositoryError
from gati.repository.release import Certificate, release_number
from gati.repository.workspace import workspace
from gati.system.files import replace

FORMAT = 1
NONE = 0
"""Number of the report of an export or refresh that led to no release."""
KEPT = 100
"""Reports that are kept, the newest."""
ROUNDING = 1e-6
"""How far a share may lie outside 0..1, or shares be from 1 in all."""


@dataclass(frozen=True)
class TriedHead:
    """A head that was tried at a cut point.

    Attributes:
        family: Its kind.
        seconds: Time of a lookup at batch 1; None if it could not be built.
        bytes: Size of its file; 0 if it could not be built.
        agreement: Share of the held-out samples on which its answer is the backbone's; None if it could not be built.
        why: Why it is not in use, or what it saves, in one sentence.
        used: Whether it takes part in the release.
        threshold: The score from which it answers; None where it is not used.
        coverage: Shares of the samples that its surest answers are, rising, 0..1 (see `gati_export.report.curve`).
        agrees: For each of these, the share among the answers so covered that are the backbone's.
        covered: Share of all samples whose score reaches its threshold, were it asked about each; None where it is not
            used. Unlike a cut point's hits, it does not depend on the heads before.
    """

    family: str
    seconds: float | None
    bytes: int
    agreement: float | None
    why: str
    used: bool
    threshold: float | None
    coverage: tuple[float, ...]
    agrees: tuple[float, ...]
    covered: float | None = None


@dataclass(frozen=True)
class Cut:
    """A cut point, and what was tried there.

    Attributes:
        index: The exit that a head here would be.
        tensor: Name of the cut tensor.
        share: Share of the backbone's time spent before it, 0..1.
        hits: Share of all requests that its head answers, 0 without one.
        used: Family of the head in use, or None.
        options: All heads that were tried here.
        cost: Seconds that ending a stage here adds, whatever its head takes; None in reports of earlier versions.
    """

    index: int
    tensor: str
    share: float
    hits: float
    used: str | None
    options: tuple[TriedHead, ...]
    cost: float | None = None

    @property
    def shown(self) -> TriedHead | None:
        """The option in use, or else the one that agrees most often; None where none was tried."""
        return max(self.options, key=lambda o: (o.used, -1.0 if o.agreement is None else o.agreement), default=None)


@dataclass(frozen=True)
class ParetoPoint:
    """The best composition for a promise: epsilon, its speed-up, and its heads as (cut point, family)."""

    epsilon: float
    speedup: float
    heads: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Report:
    """What was learned for a release and what is promised, or why nothing is.

    Attributes:
        model: The chain's name.
        release: The release's number, None where none came of it.
        created: When, ISO 8601.
        epsilon: Largest share of answers that may differ from the backbone's.
        delta: 1 − confidence of that.
        agreement: What agreeing means, such as "top-1".
        backbone_seconds: Time of the backbone at batch 1.
        expected_seconds: Mean time of a request of the chain, expected.
        speedup: The one ÷ the other.
        oracle_speedup: Speed-up if each request left at the first head that is right, and lookups cost nothing.
        memory_bytes: Size of all heads in use.
        memory_share: That, as a share of the backbone's size.
        sentence: The promise, or why there is none, for somebody who reads nothing else.
        certificate: What the promise rests on; None without heads.
        why_not: Why there are no heads, in one sentence; else None.
        cuts: The cut points, in order.
        pareto: The best compositions for several promises.
        exits: Share of requests answered at each cut point, and last by the backbone.
        gap: The best choice of these heads takes at most this share less than the one made; None if that is not known.
    """

    model: str
    release: int | None
    created: str
    epsilon: float
    delta: float
    agreement: str
    backbone_seconds: float
    expected_seconds: float
    speedup: float
    oracle_speedup: float
    memory_bytes: int
    memory_share: float
    sentence: str
    certificate: Certificate | None
    why_not: str | None
    cuts: tuple[Cut, ...]
    pareto: tuple[ParetoPoint, ...]
    exits: tuple[float, ...]
    gap: float | None = None

    @property
    def number(self) -> int:
        """What its file is named by: the release, or 0 for none."""
        return NONE if self.release is None else self.release

    @property
    def proof(self) -> str:
        """How good the choice of heads is, among all that there were, in a sentence; empty if that is not known."""
        if self.gap is None:
            return ""
        if self.gap == 0:
            return "Proved: with these heads, no other choice and no other thresholds answer the samples sooner."
        return f"With these heads, the best choice and thresholds would take at most {self.gap:.1%} less time."

    @property
    def families(self) -> tuple[str, ...]:
        """All families tried, in order of appearance."""
        return tuple(dict.fromkeys(option.family for cut in self.cuts for option in cut.options))

    def as_json(self) -> dict[str, Any]:
        """Its fields, as the file has them."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """The text of its file.

        Raises:
            ValueError: If a number is not finite: what is not known is None.
        """
        return json.dumps(self.as_json(), allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Reads a file's text.

        Raises:
            RepositoryError: If it is damaged, of another kind or of an unknown format.
        """
        try:
            return _parsed(text)
        except ValueError as error:
            raise RepositoryError(f"The report is damaged, or none of gati's ({error}).") from error


def _parsed(text: str) -> Report:
    """A report from its text.

    Raises:
        ValueError: If it is none.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError("it has not the format of this version")
        report: Report = decode(Report, fields, "report")
    except (OverflowError, RecursionError) as error:
        raise ValueError("its numbers are too large, or it is nested too deeply") from error
    _check(report)
    return report


def _check(report: Report) -> None:
    """What types alone don't say.

    Raises:
        ValueError: If the parts of a report contradict each other, or a share is none.
    """
    datetime.fromisoformat(report.created)
    indices = [cut.index for cut in report.cuts]
    if indices != sorted(set(indices)):
        raise ValueError("its cut points are not in order")
    if len(report.exits) != len(report.cuts) + 1 or abs(sum(report.exits) - 1) > ROUNDING * len(report.exits):
        raise ValueError("its exits are not the shares of its cut points and the backbone")
    epsilons = [report.epsilon, *(point.epsilon for point in report.pareto)]
    speedups = [report.speedup, report.oracle_speedup, *(point.speedup for point in report.pareto)]
    if min(report.backbone_seconds, report.expected_seconds, report.delta, *epsilons, *speedups) <= 0:
        raise ValueError("a time, a speed-up, epsilon or delta is not above 0")
    _check_shares("epsilon, delta, gap and exits", *epsilons, report.delta, report.gap or 0.0, *report.exits)
    for cut in report.cuts:
        _check_cut(cut)


def _check_cut(cut: Cut) -> None:
    name = f"cut point {cut.index}"
    _check_shares(name, cut.share, cut.hits)
    if [option.family for option in cut.options if option.used] != [cut.used] * (cut.used is not None):
        raise ValueError(f"{name} has not the one option in use that it names")
    for option in cut.options:
        known = [share for share in (option.agreement, option.covered) if share is not None]
        _check_shares(f"{name}, {option.family}", *known, *option.coverage, *option.agrees)
        if len(option.coverage) != len(option.agrees) or list(option.coverage) != sorted(option.coverage):
            raise ValueError(f"the curve of {option.family} at {name} is none")
        if (option.seconds or 0) < 0 or option.bytes < 0:
            raise ValueError(f"{option.family} at {name} has less than no time or size")


def _check_shares(what: str, *shares: float) -> None:
    if not all(-ROUNDING <= share <= 1 + ROUNDING for share in shares):
        raise ValueError(f"{what}: a share is not between 0 and 1")


def reports_folder(repository: Path) -> Path:
    """Where the reports of a repository lie."""
    return workspace(repository) / "reports"


def write(repository: Path, report: Report) -> Path:
    """Writes a report where `read` finds it, whole or not at all, in place of an earlier one of that number.

    Returns:
        Its path.
    """
    path = reports_folder(repository) / report.model / f"{report.number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, report.to_json())
    return path


def forget(repository: Path, model: str, needed: Collection[int]) -> None:
    """Removes all but the newest reports of a model, and those of some releases: a watch writes hundreds a day.

    What can't be removed now may be another time.
    """
    for number in numbers(repository, model)[:-KEPT]:
        if number not in (NONE, *needed):
            with suppress(OSError):
                (reports_folder(repository) / model / f"{number}.json").unlink(missing_ok=True)


def numbers(repository: Path, model: str) -> list[int]:
    """Numbers of the reports that a model has, rising."""
    stems = (path.stem for path in (reports_folder(repository) / model).glob("*.json"))
    known = (NONE if stem == str(NONE) else release_number(stem) for stem in stems)
    return sorted(number for number in known if number is not None)


def read(repository: Path, model: str, number: int | None = None) -> Report:
    """Reads a model's report.

    Args:
        repository: The model repository.
        model: The chain's name.
        number: The release; 0 for the last export or refresh that led to none; None for the newest there is.

    Raises:
        RepositoryError: If there is none of that number, or it is damaged or another's.
    """
    there = numbers(repository, model)
    if not there:
        raise RepositoryError(
            f"There is no report of {model!r} in {reports_folder(repository)}: export and refresh write one a release."
        )
    number = there[-1] if number is None else number
    if number not in there:
        known = ", ".join(map(str, there))
        raise RepositoryError(f"There is no report of release {number} of {model!r} (there are: {known}).")
    path = reports_folder(repository) / model / f"{number}.json"
    try:
        report = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RepositoryError(f"{path} can't be read ({error.strerror}).") from error
    except ValueError as error:
        raise RepositoryError(f"{path} is damaged, or no report of gati's ({error}).") from error
    if report.model != model or report.number != number:
        raise RepositoryError(f"{path} is the report of release {report.number} of {report.model!r}: it was moved.")
    return report
