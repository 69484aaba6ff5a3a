"""The offline job beside a real server: once, and again and again while requests go on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, Exported, Serve
from drafts import marked_draft
from running import GATI, Running, eventually, gati, started

from gati.errors import PublishError
from gati.repository.chain import chain_path
from gati.repository.release import Release, valid_releases
from gati.repository.workspace import workspace
from gati.system.proc import children
from gati_client import Client
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.refresh import refreshed
from gati_export.releases.publish import earlier
from gati_export.releases.rollout import publish_to
from gati_export.report.history import turns
from gati_export.samples.activations import open_segments, run_batches
from gati_export.samples.store import read_recent

LOW = -1e9
"""A threshold that every row reaches."""


@pytest.fixture(scope="module")
def running(exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server that records. Its promise is one that few samples can certify, and it learns from these alone."""
    folder = tmp_path_factory.mktemp("refresh")
    repository = exported.copy(folder)
    chain = replace(exported.chain, epsilon=0.05, views=0)
    chain_path(repository, MODEL).write_text(chain.to_json())
    return replace(started(exported, serve_module, folder, "inline", repository, GATI_STORE=""), chain=chain)


@pytest.fixture(scope="module")
def images(exported: Exported) -> np.ndarray:
    """[2800, 1, 16, 16]: all different."""
    noise = np.random.default_rng(0).normal(0, 0.02, (3, *exported.images.shape)).astype(np.float32)
    return np.concatenate(exported.images + noise)[:2800]


def ask(running: Running, images: np.ndarray, recorded: int) -> None:
    """Sends images, and waits until so many samples are on disk."""
    with Client(running.served.grpc, MODEL) as client:
        for start in range(0, len(images), 32):
            client.infer(images[start : start + 32])
    store = workspace(running.repository) / "samples" / MODEL
    assert eventually(
        lambda: sum(pq.read_metadata(shard).num_rows for shard in store.glob("[0-9]*.parquet")) == recorded
    )


def test_refresh_learns_from_what_was_served(
    running: Running, images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [MODEL, "--repository", running.repository, "--server", running.served.grpc]
    ask(running, images[:64], 64)
    assert gati("refresh", *options) == 1
    error = capsys.readouterr().err
    assert "Error: Nothing is published, the live release stays: Too few samples" in error
    assert running.live() == 1

    ask(running, images[64:1400], 1400)
    result = tmp_path / "result.json"
    assert gati("refresh", *options, "--always", "--json", result) == 0
    assert "Release 2 of digits is live." in capsys.readouterr().out
    assert running.live() == 2
    fields = json.loads(result.read_text())
    release = next(valid_releases(running.repository, running.chain))
    assert Release.from_json(json.dumps({"format": 2, **fields["release"]})) == release
    assert release.reason == "refresh" and release.window.samples == 1400
    with Client(running.served.grpc, MODEL) as client:
        answer, exact = client.infer(images[:32]), client.infer(images[:32], exact=True)
    assert set(answer.release.tolist()) <= {0, 2} and answer.hit.any()
    assert (answer.output.argmax(1) == exact.output.argmax(1)).mean() > 0.9
    failed, made = turns(running.repository, MODEL)
    assert (failed.live, failed.release, failed.samples) == (1, None, 64)
    assert (made.live, made.release, made.samples) == (1, 2, 1400)
    assert made.plain_seconds and made.live_seconds and made.new_seconds
    assert made.new_seconds < made.plain_seconds and made.live_differs is not None


def test_a_rollback_while_a_refresh_is_at_work_stays(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, chain, live = running.repository, running.chain, running.live()

    def roll_back(what: str, share: float) -> None:
        if what == "Write heads" and share == 1:
            publish_to(repository, chain, earlier(repository, chain), running.served.grpc)

    store = str(workspace(repository) / "samples")
    done = refreshed(RefreshPlan(repository, chain, store, server=running.served.grpc, always=True), roll_back)
    assert done.rollout is None and running.live() == live + 1
    assert done.turn.why.startswith(f"Release {live + 1} was published meanwhile, by a rollback perhaps")
    assert next(valid_releases(repository, chain)).reason.startswith("rollback to")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gati_export.refreshing.refresh.note", full)
    done = refreshed(RefreshPlan(repository, chain, store, server=running.served.grpc, always=True), lambda *_: None)
    assert done.release is not None and running.live() == live + 2, "what is published is told, whatever comes then"
    assert done.turn.why.endswith("That could not be written down (No space left on device).")


def test_a_release_that_breaks_its_promise_is_shut_where_nothing_can_take_its_place(
    running: Running, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, chain, store = running.repository, running.chain, str(workspace(running.repository) / "samples")
    draft = marked_draft(chain, 7, {0: LOW})
    draft = replace(draft, certificate=replace(draft.certificate, thresholds={0: LOW}))
    liar = publish_to(repository, chain, draft, running.served.grpc).release
    plan = RefreshPlan(repository, replace(chain, memory=1), store, server=running.served.grpc)
    done = refreshed(plan, lambda *_: None)
    assert done.release is not None and running.live() == liar.number + 1
    assert re.match(
        r"The live release differs on \d\d\.\d\d% of the held-out samples, and is shut: No head", done.turn.why
    )
    assert str(done.release.certificate) == "All heads are shut: the backbone answers every request."
    with Client(running.served.grpc, MODEL) as client:
        answer = client.infer(images[:32])
    assert not answer.hit.any() and not answer.release.any()
    with pytest.raises(PublishError, match="Nothing is published, the live release stays"):
        refreshed(plan, lambda *_: None)
    # a server is busy on these cores
    monkeypatch.setattr("gati_export.learning.training.measure_segments", lambda *_: 1 / 0)
    done = refreshed(replace(plan, chain=chain, always=True), lambda *_: None)
    assert done.release is not None and running.live() == liar.number + 2
    assert done.turn.live_differs == 0 and done.turn.live_seconds == done.turn.plain_seconds


def test_refresh_learns_from_features_where_no_input_is_kept(
    exported: Exported, serve: Serve, images: np.ndarray, tmp_path: Path
) -> None:
    repository = exported.copy(tmp_path)
    chain = replace(exported.chain, epsilon=0.05, views=0)
    chain_path(repository, MODEL).write_text(chain.to_json())
    running = started(exported, serve, tmp_path, "inline", repository, GATI_STORE="", GATI_RECORD="features")
    with Client(running.served.grpc, MODEL) as client:
        said = client.infer(images[32:64], exact=True).output
    ask(running, images[32:1400], 1368)
    store = str(workspace(repository) / "samples")
    recorded = read_recent(store, chain, 1400)
    assert [*recorded.samples] == [chain.segments[0].output.name]
    sessions = open_segments(chain.segment_paths(repository))
    parts = run_batches(chain, sessions, recorded.samples, np.arange(1368), lambda *_: None)
    outputs = np.concatenate([hidden[-1] for _, hidden in parts])
    apart = np.abs(outputs[None] - said[:, None]).max(axis=2).min(axis=1)  # audits put hits behind misses
    assert (apart < 1e-3).all(), "run on from there, it is the same network"
    done = refreshed(RefreshPlan(repository, chain, store, server=running.served.grpc, always=True), lambda *_: None)
    assert running.live() == 2 and done.release and done.release.window.samples == 1368
    with Client(running.served.grpc, MODEL) as client:
        answer, exact = client.infer(images[1400:1432]), client.infer(images[1400:1432], exact=True)
    assert answer.hit.any() and (answer.output.argmax(1) == exact.output.argmax(1)).mean() > 0.9


@contextmanager
def watching(running: Running, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`gati refresh --watch` beside the server."""
    where = ["--repository", str(running.repository), "--server", running.served.grpc]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*GATI, "refresh", MODEL, *where, "--watch", *options], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_watch_goes_on_over_killed_turns_and_ends_when_it_is_told(
    running: Running, images: np.ndarray, tmp_path: Path
) -> None:
    before, live = len(turns(running.repository, MODEL)), running.live()
    log = tmp_path / "watch.log"
    with watching(running, log, "--every", "1", "--fresh", "700", "--always") as watch:
        assert eventually(lambda: bool(children(watch.pid)), 60)
        (turn,) = children(watch.pid)
        assert os.getpriority(os.PRIO_PROCESS, turn) == 10
        os.kill(turn, signal.SIGKILL)
        assert eventually(lambda: "killed by signal 9" in log.read_text())
        assert eventually(lambda: len(turns(running.repository, MODEL)) == before + 1, 120), log.read_text()
        assert eventually(lambda: running.live() == live + 1)
        ask(running, images[1400:2100], 2164)
        assert eventually(lambda: bool(children(watch.pid)), 60)
        (turn,) = children(watch.pid)
        watch.terminate()
        assert watch.wait(60) == 0
        assert not Path(f"/proc/{turn}").exists()
    with watching(running, tmp_path / "again.log", "--every", "1", "--fresh", "700", "--always") as watch:
        assert eventually(lambda: bool(children(watch.pid)), 60)
        (turn,) = children(watch.pid)
        watch.kill()
        assert eventually(lambda: not Path(f"/proc/{turn}").exists())
    text = log.read_text()
    assert re.search(rf"Release {live + 1} of digits is live\.", text) and "Traceback" not in text
    assert running.marks()[1] and running.live() == live + 1


def test_what_would_break_its_promise_on_traffic_that_came_meanwhile_is_not_published(
    exported: Exported, serve: Serve, images: np.ndarray, tmp_path: Path
) -> None:
    repository = exported.copy(tmp_path)
    chain = replace(exported.chain, epsilon=0.05, views=0)
    chain_path(repository, MODEL).write_text(chain.to_json())
    running = started(exported, serve, tmp_path, "inline", repository, GATI_STORE="")
    ask(running, images[:1400], 1400)
    late = iter([images[1400:1700], overlaid(images)])
    sent = [1400]

    def traffic(what: str, _share: float) -> None:
        """Traffic goes on while the refresh tries what it has learned."""
        if what == "Try heads" and len(sent) == turn:
            sent.append(sent[-1] + 300)
            ask(running, next(late), sent[-1])

    plan = RefreshPlan(
        repository, chain, str(workspace(repository) / "samples"), 1400, running.served.grpc, always=True
    )
    turn = 1
    assert refreshed(plan, traffic).release is not None
    live = running.live()
    assert live == 2
    turn = 2
    done = refreshed(plan, traffic)
    assert done.rollout is None and running.live() == live
    assert re.fullmatch(
        r"Traffic has changed: it would differ on [\d.]+% of 300 samples that were served while it was learned, "
        r"more than promised\.",
        done.turn.why,
    )
    assert turns(repository, MODEL)[-1] == done.turn and done.turn.release is None


def overlaid(images: np.ndarray) -> np.ndarray:
    """[300, 1, 16, 16]: pairs of digits, one laid over the other, which no refresh before has seen."""
    random = np.random.default_rng(5)
    first, second = images[random.integers(0, len(images), (2, 300))]
    weight = random.uniform(0.4, 0.6, (300, 1, 1, 1)).astype(np.float32)
    return weight * first + (1 - weight) * second
