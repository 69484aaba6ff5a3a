"""Rolls a release out to every replica of a chain, so that all end on the same one.

The shared disk is the truth: a replica that is away takes the newest release there when it starts. What a killed
publisher has left undone, the next one does first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gati.errors import PublishError, UnavailableError
from gati.repository.chain import Chain
from gati.repository.release import ROLLBACK, Release
from gati.triton.tryout import newest_release
from gati_export.releases.origin import origin_of
from gati_export.releases.publish import Draft, Step, publish, withdraw
from gati_export.releases.replicas import Outcome, Replicas, resolved
from gati_export.releases.sync import follow


@dataclass(frozen=True)
class Rollout:
    """A release that was published, and how each replica took it; none where no server was named."""

    release: Release
    replicas: list[Outcome]

    def replicas_as_json(self) -> list[dict[str, Any]]:
        """For `--json`."""
        return [asdict(replica) for replica in self.replicas]


def publish_to(
    repository: Path, chain: Chain, draft: Draft, servers: str | None, step: Step = lambda _: None
) -> Rollout:
    """Publishes a draft and, where servers are named, sees that every replica takes it.

    One that is down or slow is waited for no longer than its time: it has the release from the disk later. A release
    that a living one refuses is withdrawn: all go on with the one before, there and at the next start. But a rollback,
    and a release that is shut, stay where any takes them, since what was before is worse; the others are told of.

    Args:
        repository: The model repository.
        chain: Whose release.
        draft: What to publish.
        servers: HOST:GRPC_PORT of one server or several (see gati_export.releases.replicas.resolved); None only writes
            it.
        step: Called with the name of each step as it begins.

    Raises:
        GatiError: If nothing was published, or a replica did not take it, or all went away; the message says which.
    """
    if servers is None:
        return Rollout(publish(repository, chain, draft, step), [])
    back = draft.reason.startswith(ROLLBACK)
    stays = back or draft.certificate.is_shut
    # where nobody is there, that is found out before anything is published
    there = _answering(repository, chain, servers) if back else settle(repository, chain, servers)
    release = publish(repository, chain, draft, step, max(_serving(there).values(), default=0) + 1)
    step("take")
    outcomes = Replicas(repository, chain, resolved(servers)).take(release)
    if _refusing(outcomes) and not (stays and _serving(outcomes)):
        raise PublishError(_withdrawn(repository, chain, release, outcomes))
    if not _serving(outcomes):
        later = "the next start takes it" if all(one.state == "down" for one in outcomes) else "it is taken later"
        raise UnavailableError(f"{_reasons(outcomes)} Release {release.number} is on disk: {later}.")
    return Rollout(release, outcomes)


def settle(repository: Path, chain: Chain, servers: str) -> list[Outcome]:
    """Has every replica that answers take the newest release on disk.

    All have it already, unless a publisher was killed before it had told them, or in the midst of a withdrawal.

    Returns:
        How each answered.

    Raises:
        UnavailableError: If none answers.
        PublishError: If they serve what lies in an object store and can't be taken from there.
    """
    asked = _answering(repository, chain, servers)
    serving = _serving(asked)
    reasons: list[str] = []
    follow(repository, reasons.append)  # or a release that another publisher has put there would be withdrawn
    newest = newest_release(repository, chain)  # read after they were asked: what one serves was on disk by then
    if newest is not None and newest.number < (served := max(serving.values())):
        if (origin := origin_of(repository)) is not None and origin.is_complete(chain, served):
            why = " ".join(reasons) or "another sync may be at work"
            raise PublishError(f"Release {served}, which is served, can't be taken from {origin.url}: {why}")
        newest = withdraw(repository, chain, served, again=True)
    behind = tuple(address for address, number in serving.items() if newest is not None and number < newest.number)
    if newest is None or not behind:
        return asked
    told = {outcome.address: outcome for outcome in Replicas(repository, chain, behind).take(newest)}
    outcomes = [told.get(outcome.address, outcome) for outcome in asked]
    if _refusing(outcomes) and newest.number not in _serving(outcomes).values():
        _withdrawn(repository, chain, newest, outcomes)
    return outcomes


def _answering(repository: Path, chain: Chain, servers: str) -> list[Outcome]:
    """What each serves.

    Raises:
        UnavailableError: If none answers.
    """
    asked = Replicas(repository, chain, resolved(servers)).ask()
    if not _serving(asked):
        raise UnavailableError(_reasons(asked))
    return asked


def catch_up(repository: Path, chain: Chain, servers: str) -> list[Outcome]:
    """Has the servers of a copy take its newest release, and leaves it to publishers what is withdrawn.

    Returns:
        How each of those answered that serve another one, or don't answer.
    """
    asked = Replicas(repository, chain, resolved(servers)).ask()
    newest = newest_release(repository, chain)
    behind = tuple(address for address, number in _serving(asked).items() if newest and number < newest.number)
    told = Replicas(repository, chain, behind).take(newest) if newest else []
    return [*told, *(outcome for outcome in asked if outcome.release is None)]


def _withdrawn(repository: Path, chain: Chain, release: Release, outcomes: list[Outcome]) -> str:
    """Withdraws a release that was refused, also from those that may have taken it; returns what is to be said."""
    refusing = _refusing(outcomes)
    others = tuple(outcome.address for outcome in outcomes if outcome not in refusing)
    # those of an object store may serve it, whoever is named here
    again = withdraw(repository, chain, release.number, again=bool(others) or origin_of(repository) is not None)
    if again is None:
        return _reasons(refusing)
    Replicas(repository, chain, others).take(again)
    return (
        f"{_reasons(refusing)} Release {release.number} is withdrawn, and {again.number} brings back the heads of "
        f"{again.origin}, so that all replicas serve the same."
    )


def _serving(outcomes: list[Outcome]) -> dict[str, int]:
    return {outcome.address: outcome.release for outcome in outcomes if outcome.release is not None}


def _refusing(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.state == "refuses"]


def _reasons(outcomes: list[Outcome]) -> str:
    return " ".join(outcome.reason for outcome in outcomes)
