"""Releases under load: no request fails, none is answered by a mixture, and versions are seen in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, PLAIN, Exported, Serve
from drafts import spread_thresholds
from running import MODES, Running, started

from gati.errors import UnavailableError
from gati.inference.session import open_session
from gati_client import Answer, AsyncClient, Client
from gati_export.releases.publish import KEPT, earlier
from gati_export.releases.rollout import publish_to

RELEASES = 10
REQUESTS = 1000
CLIENTS = 4
ROWS = 6
"""Of a request: enough for hits at both heads and misses in one batch."""

PATIENCE = 60.0
"""Seconds that a thousand requests may keep a small machine busy."""
GROWTH = 24 << 20
"""Bytes that a server's memory may grow by in 20 releases; 1 MB was measured."""


@pytest.fixture(scope="module", params=MODES)
def running(
    request: pytest.FixtureRequest, exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Running:
    return started(exported, serve_module, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def thresholds(exported: Exported) -> dict[int, float]:
    return spread_thresholds(exported.repository, exported.chain, exported.images)


@pytest.fixture(scope="module")
def backbone(exported: Exported) -> np.ndarray:
    """What the plain model answers to each image."""
    session = open_session(exported.repository / PLAIN / "1" / "model.onnx")
    return session.run(None, {exported.chain.inputs[0].name: exported.images})[0]


def check(answer: Answer, expected: np.ndarray, releases: set[int], last: int) -> int:
    """Holds each row against what the one release that answered, or the backbone, gives; returns that release."""
    assert answer.release is not None and answer.exit is not None
    named = set(answer.release.tolist()) - {0}
    assert len(named) <= 1, "heads of two releases answered one request"
    assert named <= releases
    for row, exit_, release, backbone in zip(answer.output, answer.exit, answer.release, expected, strict=True):
        if release == 0:
            assert exit_ == last
            np.testing.assert_allclose(row, backbone, atol=1e-4)
        else:  # marked: the release, then the cut point of its head
            assert row.tolist() == [release, exit_, *[0] * (len(row) - 2)]
    return max(named, default=0)


def publish_marked(running: Running, thresholds: dict[int, float], done: threading.Event) -> list[int]:
    """Publishes releases one after another, each marked with its number; returns the numbers."""
    try:
        return [put_when_heard(running, thresholds) for _ in range(RELEASES)]
    finally:
        done.set()


def put_when_heard(running: Running, thresholds: dict[int, float]) -> int:
    """Publishes a release once the server finds the time to say what it serves: a publisher waits for that for 5 s."""
    deadline = time.monotonic() + PATIENCE
    while True:
        number = running.next_number()
        try:
            assert running.put(number, thresholds).number == number
        except UnavailableError:
            assert running.next_number() == number, "it was published, and not taken"
            if time.monotonic() > deadline:
                raise
        else:
            return number


@contextmanager
def publishing(running: Running, thresholds: dict[int, float]) -> Iterator[tuple[threading.Event, Callable]]:
    """Publishes in a thread meanwhile; gives an event that tells the end, and what gives the numbers."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(publish_marked, running, thresholds, done)
        yield done, future.result


def requests(images: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Rows of requests, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield random.integers(0, len(images), ROWS)


def test_releases_come_and_go_and_no_client_sees_a_failure_a_mixture_or_an_earlier_release(
    running: Running, thresholds: dict[int, float], backbone: np.ndarray
) -> None:
    before = running.put(running.next_number(), thresholds).number
    with publishing(running, thresholds) as (done, numbers):

        def ask(seed: int) -> list[tuple[np.ndarray, Answer]]:
            seen = []
            with Client(running.served.grpc, MODEL) as client:
                load = requests(running.images, seed)
                while not done.is_set() or len(seen) < REQUESTS // CLIENTS:
                    rows = next(load)
                    seen.append((rows, client.infer(running.images[rows])))
                rows = np.arange(running.chain.max_batch)  # after the last release; many rows, so that some hit
                seen.append((rows, client.infer(running.images[rows])))
            return seen

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = list(pool.map(ask, range(CLIENTS)))
        published = numbers()
    allowed = {before, *published}
    last = running.chain.backbone_exit
    seen: set[int] = set()
    for answers in clients:
        order = [check(answer, backbone[rows], allowed, last) for rows, answer in answers]
        order = [release for release in order if release]
        assert order == sorted(order)
        seen |= set(order)
    assert sum(map(len, clients)) >= REQUESTS
    assert len(published) == RELEASES and published[-1] in seen
    assert len(seen) > RELEASES // 2, "the releases were not under load"
    exits = {int(e) for answers in clients for _, answer in answers for e in answer.exit}
    assert exits == {*thresholds, last}


def test_a_thousand_requests_in_flight_at_once_are_all_answered_by_one_release_each(
    running: Running, thresholds: dict[int, float], backbone: np.ndarray
) -> None:
    before = running.put(running.next_number(), thresholds).number
    chosen = [rows for _, rows in zip(range(REQUESTS), requests(running.images, 0), strict=False)]

    async def ask_all() -> list[Answer]:
        async with AsyncClient(running.served.grpc, MODEL) as client:
            await client.metadata()
            return await asyncio.gather(*(client.infer(running.images[rows]) for rows in chosen))

    with publishing(running, thresholds) as (_, numbers):
        answers = asyncio.run(ask_all())
        allowed = {before, *numbers()}
    for rows, answer in zip(chosen, answers, strict=True):
        check(answer, backbone[rows], allowed, running.chain.backbone_exit)


def test_many_releases_leave_few_folders_and_little_memory(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    running = started(exported, serve, tmp_path, "inline")
    real = earlier(running.repository, running.chain, 1)

    def publish(times: int) -> None:
        for _ in range(times):
            publish_to(running.repository, running.chain, real, running.served.grpc)
            running.marks()

    publish(KEPT)
    before = resident_bytes(running.served.server.process.pid)
    publish(20)
    assert resident_bytes(running.served.server.process.pid) - before < GROWTH
    folders = list((running.repository / running.chain.head_model(0)).glob("[0-9]*"))
    assert len(folders) == KEPT


def resident_bytes(parent: int) -> int:
    """Resident memory of a process's children."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in stat.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        if int(fields["PPid"]) == parent:
            total += int(fields["VmRSS"].split()[0]) << 10
    return total
