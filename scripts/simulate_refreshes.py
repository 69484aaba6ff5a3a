"""Refreshes of traffic that never changes: how often does what serves break its promise? scripts/simulate_refreshes.py.

Each turn certifies heads on the newest samples, and what is better serves from then on, as `gati refresh --watch` has
it: by the project's own certificate, comparison and objection. Heads are a model: a request is the harder, the later
a head is sure of it, and the harder ones are answered wrongly more often, so that 0.8 % of all answers differ where
60 % hit, and 1 % where 63 % do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import click
import numpy as np

from gati_export.certificates.certificate import certify
from gati_export.certificates.refutation import refuted_since
from gati_export.refreshing.decision import verdict
from gati_export.refreshing.standing import standing
from gati_export.terms import Terms

TERMS = Terms()
STEEP = 4.0
SCALE = 0.008 * (STEEP + 1) / 0.6 ** (STEEP + 1)
PATH = np.linspace(0.2, 0.95, 256)
"""Settings, strictest first: the share of requests that hit."""
SAVED = 0.8
"""Of the backbone's time, by a hit."""
HELD_OUT = 0.25
"""Share of the samples that certify."""


@dataclass
class Requests:
    """Some requests, in order: how hard each is, 0..1, and whether a head that answered it would be wrong, [n] each."""

    hard: np.ndarray
    wrong: np.ndarray

    @classmethod
    def drawn(cls, random: np.random.Generator, count: int) -> Requests:
        """So many of them."""
        hard = random.random(count)
        return cls(hard, random.random(count) < SCALE * hard**STEEP)

    def after(self, before: Requests) -> Requests:
        """As many as there were before, of which these are the newest."""
        kept = len(self.hard)
        return Requests(np.r_[before.hard[kept:], self.hard], np.r_[before.wrong[kept:], self.wrong])

    def errors(self, setting: float) -> np.ndarray:
        """Which are answered wrongly, bool [n]."""
        return (self.hard < setting) & self.wrong

    def seconds(self, setting: float) -> np.ndarray:
        """How long each takes, [n]; the backbone takes 1."""
        return 1 - SAVED * (self.hard < setting)


def differs(setting: float) -> float:
    """Share of all requests that are answered wrongly."""
    return SCALE * setting ** (STEEP + 1) / (STEEP + 1)


@click.command()
@click.option("--streams", default=100, show_default=True)
@click.option("--turns", default=40, show_default=True, help="Of each stream.")
@click.option("--window", default=20_000, show_default=True, help="Samples of a turn.")
@click.option("--fresh", default=2_000, show_default=True, help="Those of them that are new.")
def main(streams: int, turns: int, window: int, fresh: int) -> None:
    """Simulates refreshes, with the live release having to pass once more, and without."""
    for asked in (True, False):
        ran = [_stream(np.random.default_rng(seed), turns, window, fresh, asked) for seed in range(streams)]
        settings = np.array([stream for stream, _ in ran])
        share = np.vectorize(differs)(settings)
        click.echo(
            f"live releases {'are' if asked else 'are not'} certified once more: what serves breaks its promise "
            f"{(share > TERMS.epsilon).mean():.1%} of the time, at the end of "
            f"{(share[:, -1] > TERMS.epsilon).mean():.0%} of the streams; {share.mean():.2%} differ, {share.max():.2%} "
            f"at most; {np.mean([count for _, count in ran]):.1f} releases of {turns} turns"
        )


def _stream(random: np.random.Generator, turns: int, window: int, fresh: int, asked: bool) -> tuple[list[float], int]:
    """The setting that serves after each turn, 0 for the backbone alone, and how many were published."""
    held, new = round(window * HELD_OUT), min(round(fresh * HELD_OUT), round(window * HELD_OUT))
    requests, live, served, published = Requests.drawn(random, held), 0.0, list[float](), 0
    for turn in range(turns):
        if turn:
            requests = Requests.drawn(random, new).after(requests)
        learned = _certified(requests)
        if learned is not None and _is_better(requests, learned, live, asked):
            late = Requests.drawn(random, fresh)
            newest = np.r_[requests.errors(learned), late.errors(learned)]
            if not refuted_since(newest, np.arange(len(newest)), TERMS):
                live, published = learned, published + 1
        served.append(live)
    return served, published


def _certified(requests: Requests) -> float | None:
    errors = np.array([requests.errors(setting) for setting in PATH])
    verdict = certify(errors, np.arange(errors.shape[1]), TERMS.epsilon, TERMS.delta)
    return None if verdict is None else float(PATH[verdict.step])


def _is_better(requests: Requests, learned: float, live: float, asked: bool) -> bool:
    now = None
    if live:
        wrong = requests.errors(live)
        now = standing(requests.seconds(live), wrong, np.arange(len(wrong)), TERMS)
        now = now if asked else replace(now, lapsed=False)
    return verdict(now, float(requests.seconds(learned).mean()))[1]


if __name__ == "__main__":
    main()
