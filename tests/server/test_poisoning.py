"""Traffic made to mislead: requests that heads are sure of and wrong about get past neither audits nor certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, PLAIN, Exported, Serve
from running import Running, eventually, started
from scipy.stats import binom

from gati.errors import PublishError
from gati.inference.inline import InlineEngine
from gati.repository.chain import Chain
from gati.repository.release import valid_releases
from gati_client import Client
from gati_client.client import Answer
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.refresh import refreshed
from gati_export.samples.store import default_store

SEARCHED, PART = 8000, 500
CLEAN, MADE = 1200, 300
"""Requests of the stream that are clean, and that are made to mislead."""
HELD_OUT = 200
"""Of each kind, besides."""
SURE = 0.999


def wrong(repository: Path, chain: Chain, images: np.ndarray) -> np.ndarray:
    """Which images the newest release answers early, and otherwise than the backbone; bool [images]."""
    release = next(valid_releases(repository, chain))
    engine = InlineEngine(repository, chain)
    heads, _ = engine.load_heads(release)
    stages = engine.load_stages([head.index for head in release.heads])
    parts = []
    for start in range(0, len(images), PART):
        values = {chain.inputs[0].name: images[start : start + PART]}
        told = np.full(len(values[chain.inputs[0].name]), -1)
        for stage in stages:
            values = {chain.segments[stage.last].output.name: stage.run(values)}
            (hidden,) = values.values()
            said = heads.predict(stage.last, hidden, {}) if stage is not stages[-1] else None
            if said is not None:
                told = np.where((told < 0) & said.hit, said.answer.argmax(1), told)
        parts.append((told >= 0) & (told != values[chain.output.name].argmax(1)))
    return np.concatenate(parts)


def misleading(exported: Exported, count: int) -> np.ndarray:
    """Images that the exported release is sure of and wrong about: digits laid over each other, and then varied."""
    random = np.random.default_rng(0)
    first, second = exported.images[random.integers(0, len(exported.images), (2, SEARCHED))]
    weight = random.uniform(0.3, 0.7, (SEARCHED, 1, 1, 1)).astype(np.float32)
    found = weight * first + (1 - weight) * second
    found = found[wrong(exported.repository, exported.chain, found)]
    while len(found) < count:
        noise = random.normal(0, 0.05, (count, *found.shape[1:])).astype(np.float32)
        varied = found[random.integers(0, len(found), count)] + noise
        found = np.concatenate([found, varied[wrong(exported.repository, exported.chain, varied)]])
    return random.permutation(found)[:count]


@dataclass(frozen=True)
class Poisoned:
    """A server that was sent a poisoned stream, what it then answered, and what was held out of the stream."""

    running: Running
    clean: np.ndarray
    made: np.ndarray
    late: np.ndarray
    """The second half of the stream."""
    closed: set[int]
    """The exits that were closed when that began."""
    answers: list[Answer]
    """To that."""


@pytest.fixture(scope="module")
def poisoned(exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    folder = tmp_path_factory.mktemp("poisoned")
    running = started(exported, serve_module, folder, "inline", plain=True, GATI_STORE="", GATI_AUDIT="0.02")
    random = np.random.default_rng(1)
    made = misleading(exported, MADE + HELD_OUT)
    clean = random.permutation(exported.images)
    again = clean[HELD_OUT:] + random.normal(0, 0.02, clean[HELD_OUT:].shape).astype(np.float32)
    clean = np.concatenate([clean, again])[: CLEAN + HELD_OUT]
    first, late = np.split(random.permutation(np.concatenate([clean[HELD_OUT:], made[HELD_OUT:]])), 2)
    _ask(running, MODEL, first)
    assert eventually(lambda: running.reading().breaker_open), "audits find out"
    closed = {*running.reading().closed}
    answers = _ask(running, MODEL, late)
    store = Path(default_store(running.repository)) / MODEL

    def kept() -> int:
        return sum(pq.read_metadata(shard).num_rows for shard in store.glob("[0-9]*"))

    assert eventually(lambda: kept() == CLEAN + MADE), f"{kept()} samples; {running.reading()}"
    return Poisoned(running, clean[:HELD_OUT], made[:HELD_OUT], late, closed, answers)


def _ask(running: Running, model: str, images: np.ndarray) -> list[Answer]:
    with Client(running.served.grpc, model) as client:
        return [client.infer(images[start : start + 10]) for start in range(0, len(images), 10)]


def test_the_breaker_opens_on_a_poisoned_stream_and_the_backbone_answers(poisoned: Poisoned) -> None:
    running = poisoned.running
    assert wrong(running.repository, running.chain, poisoned.made).all(), "it is poison"
    assert poisoned.closed
    assert not {*np.concatenate([answer.exit for answer in poisoned.answers])} & poisoned.closed
    plain = np.concatenate([answer.output.argmax(1) for answer in _ask(running, PLAIN, poisoned.late)])
    served = np.concatenate([answer.output.argmax(1) for answer in poisoned.answers])
    # half of what was made is here; an exit before the closed ones answers until it is found out, too
    assert (plain != served).sum() < MADE / 3


def test_what_is_learned_from_a_poisoned_stream_keeps_the_promise_on_it(poisoned: Poisoned) -> None:
    running = poisoned.running
    quick = replace(running.chain, views=0)
    store, window = default_store(running.repository), CLEAN + MADE
    try:
        refreshed(
            RefreshPlan(running.repository, quick, store, window, running.served.grpc, always=True), lambda *_: None
        )
    except PublishError:
        assert running.live() == 1
        assert running.reading().breaker_open
        return
    assert running.live() == 2
    clean, made = (wrong(running.repository, running.chain, part).mean() for part in (poisoned.clean, poisoned.made))
    promised = running.chain.epsilon * window
    assert clean <= binom.ppf(SURE, HELD_OUT, promised / CLEAN) / HELD_OUT
    assert made <= binom.ppf(SURE, HELD_OUT, promised / MADE) / HELD_OUT
    assert eventually(lambda: not running.reading().breaker_open)
