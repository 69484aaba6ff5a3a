"""Reads a chain's metrics off Triton's /metrics page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gati.errors import UnavailableError
from gati.triton.model_control import DIRECT

LINE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Reading:
    """A chain's metrics at one moment, as they count since the server's start.

    Attributes:
        release: The live release, 0 for none.
        breaker_open: Whether heads are closed.
        closed: The exits whose heads are.
        disagreement: Bounds on the share of the live release's answers that differ, as they hold at all times.
        exits: Rows answered, by exit.
        audits: Hits audited, and those of them that agreed.
        held: Rows that heads were not let answer while audits were in doubt about them.
        bypassed: Rows that went past the heads, while these took more time than they saved.
        refused: Releases not taken.
        dropped: Samples not kept.
        quantiles: Seconds within which such shares of the last requests were answered; empty before the first.
    """

    release: int
    breaker_open: bool
    closed: tuple[int, ...]
    disagreement: tuple[float, float]
    exits: dict[int, int]
    audits: tuple[int, int]
    held: int
    bypassed: int
    refused: int
    dropped: int
    quantiles: dict[float, float]

    @property
    def requests(self) -> int:
        """Rows answered."""
        return sum(self.exits.values())

    @property
    def hits(self) -> int:
        """Those answered by a head; the last exit is the backbone."""
        return self.requests - self.exits[max(self.exits)] if self.exits else 0

    @property
    def hit_rate(self) -> float | None:
        """Share of rows answered by a head, None before the first."""
        return self.hits / self.requests if self.requests else None

    @property
    def agreement(self) -> float | None:
        """Share of audited hits that the backbone agreed with, None before the first audit."""
        audited, agreed = self.audits
        return agreed / audited if audited else None


def read_metrics(address: str, model: str) -> Reading:
    """Reads a chain's metrics.

    Args:
        address: HOST:METRICS_PORT.
        model: The chain's name.

    Raises:
        UnavailableError: If no server answers there, or it does not serve such a chain.
    """
    try:
        with DIRECT.open(f"http://{address}/metrics", timeout=5) as response:
            text = response.read().decode()
    except (OSError, ValueError) as error:
        raise UnavailableError(f"No Triton metrics answer on {address}: is the server up?") from error
    samples = [(name, dict(LABEL.findall(labels)), float(value)) for name, labels, value in LINE.findall(text)]
    mine = [(name, labels, value) for name, labels, value in samples if labels.get("model") == model]
    if not any(name == "gati_release" for name, _, _ in mine):
        raise UnavailableError(f"The server on {address} does not serve a chain named {model!r}.")
    return _reading(mine)


def _reading(samples: list[tuple[str, dict[str, str], float]]) -> Reading:
    def value(name: str, **wanted: str) -> float:
        return sum(v for n, labels, v in samples if n == name and wanted.items() <= labels.items())

    def total(name: str, **wanted: str) -> int:
        return int(value(name, **wanted))

    return Reading(
        release=total("gati_release"),
        breaker_open=bool(total("gati_breaker_open")),
        closed=tuple(sorted(int(labels["exit"]) for n, labels, v in samples if n == "gati_exit_closed" and v)),
        disagreement=(value("gati_disagreement", bound="lower"), value("gati_disagreement", bound="upper")),
        exits={int(labels["exit"]): int(v) for n, labels, v in samples if n == "gati_requests_total"},
        audits=(total("gati_audits_total"), total("gati_audits_total", agreed="true")),
        held=total("gati_held_total"),
        bypassed=total("gati_bypassed_total"),
        refused=total("gati_releases_refused_total"),
        dropped=total("gati_samples_dropped_total"),
        quantiles={float(labels["quantile"]): v for n, labels, v in samples if n == "gati_request_seconds"},
    )
