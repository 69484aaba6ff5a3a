"""How soon audits close heads that break the promise, and what they cost good ones: scripts/simulate_audits.py.

Streams of requests of which a given share would be answered otherwise than by the backbone, to a breaker and by the
shares that are drawn as it is or isn't eager, both as served by default.
"""

from __future__ import annotations

import click
import numpy as np

from gati.breaker import Breaker
from gati.orchestrator import EAGER
from gati.settings import Settings
from gati_export.terms import Terms

USUAL = Settings.audit_share
BEFORE = 0.003
"""The share that differs of requests before the change, if there is one."""


@click.command()
@click.option("--shares", default="0.2,0.6,1,1.5,2,3,4,10", show_default=True, help="Of differing answers, in %.")
@click.option("--streams", default=100, show_default=True, help="Of each share.")
@click.option("--requests", default=20_000, show_default=True, help="Of a stream, at most.")
@click.option("--good", default=0, show_default=True, help="Requests before that, of which 0.3 % differ.")
def main(shares: str, streams: int, requests: int, good: int) -> None:
    """Prints a line for each share of differing answers."""
    terms = Terms()
    click.echo(f"{'differs':>8}  {'closed':>6}  {'requests to it: median, 90 %':>28}  drawn while open")
    for percent in shares.split(","):
        differs = np.r_[np.full(good, BEFORE), np.full(requests, float(percent) / 100)]
        seen = [_stream(differs, terms, np.random.default_rng(seed)) for seed in range(streams)]
        until = np.array([stream[0] - good if stream[0] < len(differs) else np.inf for stream in seen])
        drawn = np.mean([stream[1] for stream in seen])
        median, most = (f"{n:,.0f}" if np.isfinite(n) else "-" for n in np.quantile(until, [0.5, 0.9], method="higher"))
        click.echo(f"{percent:>6} %  {np.isfinite(until).mean():6.0%}  {median:>14}, {most:>12}  {drawn:.1%}")


def _stream(differs: np.ndarray, terms: Terms, random: np.random.Generator) -> tuple[int, float]:
    """After how many requests the heads were closed, or all; and what share of them was drawn."""
    breaker = Breaker(terms.epsilon, terms.delta, (0,))
    chance, differed, drawn = random.random(len(differs)), random.random(len(differs)) < differs, 0
    for place, each in enumerate(chance):
        if each < (USUAL * EAGER if breaker.eager else USUAL):
            drawn += 1
            breaker.settle(breaker.draw(1), int(not differed[place]), int(differed[place]), 0)
            if breaker.alarm is not None:
                return place + 1, drawn / (place + 1)
    return len(differs), drawn / len(differs)


if __name__ == "__main__":
    main()
