"""How soon audits close heads that break the promise, what is answered until then, and what it costs good ones.

scripts/simulate_audits.py: streams of requests of which a given share would be answered otherwise than by the backbone,
drawn, held and judged as they are served by default, but that audits take no time.
"""

from __future__ import annotations

from typing import NamedTuple

import click
import numpy as np

from gati.promise.breaker import Breaker
from gati.promise.draws import Draws
from gati.settings import Settings
from gati_export.certificates.splitting import together
from gati_export.terms import Terms

USUAL = Settings.audit_share
BEFORE = 0.003
"""The share that differs of requests before the change, if there is one."""
SOON = 2_000
"""Requests after which what was answered is looked at first."""


class Seen(NamedTuple):
    """A stream: requests until the heads closed; shares drawn and held until then, answered otherwise soon, of all."""

    until: float
    drawn: float
    held: float
    soon: float
    differ: float


@click.command()
@click.option("--shares", default="0.2,0.6,0.8,1,1.5,2,3,4,10", show_default=True, help="Of differing answers, in %.")
@click.option("--streams", default=100, show_default=True, help="Of each share.")
@click.option("--requests", default=20_000, show_default=True, help="Of a stream, at most.")
@click.option("--good", default=0, show_default=True, help="Requests before that, of which 0.3 % differ.")
@click.option("--run", default=1, show_default=True, help="Requests of a scene, which are all answered alike.")
@click.option(
    "--among", default=1.0, show_default=True, help="Share of the requests that are of scenes; others are not."
)
@click.option("--together", type=float, help="How many are taken for one.  [default: as a certificate says of such]")
def main(shares: str, streams: int, requests: int, good: int, run: int, among: float, together: float | None) -> None:
    """Prints a line for each share of differing answers."""
    terms = Terms()
    click.echo(
        f"{'differs':>8}  {'closed':>6}  {'requests to it: median, 90 %':>28}  {'drawn':>6}  {'held':>6}  "
        f"answered otherwise: of {SOON:,}, of {requests:,}"
    )
    for percent in shares.split(","):
        differs = np.r_[np.full(good, BEFORE), np.full(requests, float(percent) / 100)]
        seeds = map(np.random.default_rng, range(streams))
        seen = [_stream(differs, good, terms, random, run, together, among) for random in seeds]
        until, *shares_seen = np.array(seen).T
        median, most = (f"{n:,.0f}" if np.isfinite(n) else "-" for n in np.quantile(until, [0.5, 0.9], method="higher"))
        drawn, held, soon, all_ = (np.mean(each) for each in shares_seen)
        click.echo(
            f"{percent:>6} %  {np.isfinite(until).mean():6.0%}  {median:>19}, {most:>7}  {drawn:6.1%}  {held:6.1%}  "
            f"{soon:22.2%}, {all_:.2%}"
        )


def _stream(
    differs: np.ndarray,
    good: int,
    terms: Terms,
    random: np.random.Generator,
    run: int = 1,
    taken: float | None = None,
    among: float = 1.0,
) -> Seen:
    """A stream, looked at from its first request that is not among the good ones."""
    chance, scenes = random.random(len(differs)), random.random(len(differs) + 1)
    sizes = _sizes(len(differs), run, among, random)
    differed = np.repeat(scenes[: len(sizes)], sizes)[: len(differs)] < differs
    breaker = Breaker(terms.epsilon, terms.delta, (0,), together=taken or together(sizes))
    draws = Draws(USUAL, terms.epsilon)
    drawn, held = np.zeros((2, len(differs)), bool)
    until = len(differs)
    for place, each in enumerate(chance):
        how = draws.chance(breaker)
        draws.answered(breaker, 1)
        if each < how.share:
            drawn[place], held[place] = True, how.held
            breaker.settle(breaker.draw(1), int(not differed[place]), int(differed[place]), 0, how.price)
            if breaker.alarm is not None:
                until = place + 1
                break
    otherwise = (differed & ~held)[good:until]
    closed = np.inf if until == len(differs) else until - good
    return Seen(
        closed,
        drawn[:until].mean(),
        held[:until].mean(),
        np.count_nonzero(otherwise[:SOON]) / SOON,
        np.count_nonzero(otherwise) / (len(differs) - good),
    )


def _sizes(requests: int, run: int, among: float, random: np.random.Generator) -> np.ndarray:
    """How many requests come of each scene, one after the other, int [scenes]: as many as it takes, and some more."""
    if among == 1:
        return np.full(requests // run + 1, run)
    long = random.random(requests) < among / (among + run * (1 - among))
    sizes = np.where(long, run, 1)
    return sizes[: np.searchsorted(np.cumsum(sizes), requests) + 1]


if __name__ == "__main__":
    main()
