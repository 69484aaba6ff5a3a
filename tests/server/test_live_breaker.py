"""The breaker on a real server: one exit lies, closes alone, stays closed through a kill, and opens with a release."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, PLAIN, Exported, Serve
from handmade import draft, remembering_head, sure_head
from running import MODES, Running, eventually, started

from gati.repository.chain import Mode, chain_path
from gati.repository.release import head_path, valid_releases
from gati.triton.model_control import EXIT_SECONDS
from gati_client import Client
from gati_client.client import Answer
from gati_export.refreshing.learned import _as_it_serves
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.standing import live_release
from gati_export.releases.publish import earlier, publish
from gati_export.releases.rollout import publish_to
from gati_export.report.day import latency, read_day
from gati_export.samples.store import default_store

TOLD = "breaks its promise"


def asked(running: Running, images: np.ndarray) -> Answer:
    with Client(running.served.grpc, MODEL) as client:
        return client.infer(images)


@pytest.mark.parametrize("mode", MODES)
def test_an_exit_that_lies_closes_alone_and_outlives_a_kill(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    running = started(exported, serve, tmp_path, mode, plain=True, GATI_AUDIT="1", GATI_REPLICA="here")
    chain, images, liar = running.chain, exported.images[:32], exported.chain.heads[-1]
    honest = next(valid_releases(running.repository, chain)).heads[0].index
    assert honest < liar
    heads = {honest: head_path(running.repository, chain, honest, 1).read_bytes(), liar: sure_head(chain, liar, 3)}
    number = publish_to(running.repository, chain, draft(heads), running.served.grpc).release.number
    first = asked(running, images)
    assert first.release is not None
    assert first.release.tolist() == [number] * 32
    assert set(first.exit.tolist()) == {honest, liar}

    assert eventually(lambda: _closes(running, images, liar))
    assert running.reading().breaker_open
    assert eventually(lambda: TOLD in running.log())
    _serves_on(running, images, honest, number)

    running.served.server.process.kill()
    running.served.server.process.wait()
    again = started(exported, serve, tmp_path, mode, running.repository, GATI_AUDIT="1", GATI_REPLICA="here")
    assert eventually(lambda: again.live() == number)
    _serves_on(again, images, honest, number)
    assert eventually(lambda: again.reading().closed == (liar,))
    for log in (running.log(), again.log()):
        told = [line for line in log.splitlines() if TOLD in line]
        assert len(told) == 1
        assert f"release {number} {TOLD}" in told[0]
        assert told[0].rstrip('"').endswith(f": exit {liar}")

    _is_remembered(again, liar, number)
    number = publish_to(again.repository, chain, draft(heads), again.served.grpc).release.number
    assert eventually(lambda: not again.reading().closed)  # before its lies are found out once more
    opened = asked(again, images)
    assert opened.release is not None
    assert opened.release.tolist() == [number] * 32
    assert eventually(lambda: _closes(again, images, liar))
    # what the killed server had audited last may be lost: what differs below, this one found
    mended = heads | {liar: remembering_head(chain, liar)}
    number = publish_to(again.repository, chain, draft(mended), again.served.grpc).release.number
    opened = asked(again, images)
    assert opened.release is not None
    assert number in opened.release
    assert set(opened.release.tolist()) <= {0, number}
    again.served.server.stop()
    day = read_day(again.repository, MODEL)
    assert not day.closed
    assert day.happenings[0].words == f"Release {number} went live, and opened exit {liar} again."
    assert day.latest["here"].release == number
    assert day.exits[liar] and day.exits[chain.backbone_exit] and sum(day.exits.values()) >= 64
    assert day.audits[0] > day.audits[1] > 0
    half, whole = (latency(day.all_minutes, 0.5, backbone=backbone) for backbone in (False, True))
    assert half is not None and whole is not None and 0 < half < 10 and 0 < whole < 10
    assert day.bounds is not None and 0 <= day.bounds[0] < day.bounds[1] <= 1


def test_a_rollback_to_heads_that_were_closed_leaves_them_closed(
    exported: Exported, serve: Serve, tmp_path: Path
) -> None:
    running = started(exported, serve, tmp_path, "inline", GATI_AUDIT="1", GATI_REPLICA="here")
    chain, images, liar = running.chain, exported.images[:32], exported.chain.heads[-1]
    lies = draft({liar: sure_head(chain, liar, 3)})
    bad = publish_to(running.repository, chain, lies, running.served.grpc).release.number
    assert eventually(lambda: _closes(running, images, liar))
    first = publish_to(running.repository, chain, earlier(running.repository, chain, 1), running.served.grpc)
    opened = asked(running, images)
    assert opened.release is not None and first.release.number in opened.release
    assert eventually(lambda: not running.reading().closed)

    back = publish_to(running.repository, chain, earlier(running.repository, chain, bad), running.served.grpc)
    answer = asked(running, images)
    assert answer.release is not None and not answer.release.any(), "the backbone answers"
    assert running.live() == back.release.number
    assert eventually(lambda: running.reading().closed == (liar,))
    assert eventually(lambda: f"release {back.release.number} {TOLD}" in running.log())


def test_while_more_differs_than_was_promised_the_backbone_answers_and_that_is_told(
    exported: Exported, serve: Serve, tmp_path: Path
) -> None:
    running = started(exported, serve, tmp_path, "inline", plain=True, GATI_AUDIT="1", GATI_REPLICA="here")
    chain, images = running.chain, exported.images[:400]
    with Client(running.served.grpc, PLAIN) as client:
        labels = np.concatenate([client.infer(part).output.argmax(1) for part in np.array_split(images, 20)])
    liar, told = chain.heads[-1], int(labels[0])
    right, wrong = images[labels == told][:1], images[labels != told][:1]
    publish_to(running.repository, chain, draft({liar: sure_head(chain, liar, told)}), running.served.grpc)
    for place in range(1, 200):
        answer = asked(running, right if place % 20 else wrong)
        assert answer.release is not None
        if answer.release[0] == 0:
            break
        if place % 20 == 0:
            assert eventually(lambda: running.reading().audits[0] == place)  # noqa: B023
    assert place == 41, "each request adds 0.01 to a budget of 1.5, and each lie takes 1"
    assert answer.output.argmax(1) == told
    assert not running.reading().closed, "the breaker is not sure yet"
    assert eventually(lambda: running.reading().held == 1)
    assert eventually(lambda: "the backbone answers until it is made up for" in running.log())
    running.served.server.stop()
    assert read_day(running.repository, MODEL).latest["here"].held == 1


def test_when_what_is_answered_changes_more_is_audited(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    running = started(exported, serve, tmp_path, "inline", GATI_AUDIT="0.02")
    answer = asked(running, exported.images[:32])
    classes, hits = answer.output.argmax(1), np.flatnonzero(answer.exit < running.chain.backbone_exit)
    first, other = hits[0], hits[classes[hits] != classes[hits[0]]][0]
    audits = [0]
    with Client(running.served.grpc, MODEL) as client:
        for image, times in ((first, 900), (first, 400), (other, 400)):
            for _ in range(times):
                client.infer(exported.images[image][None])
            time.sleep(1)  # audits and metrics come after answers
            audits.append(running.reading().audits[0])
    new, known, changed = np.diff(audits)
    assert new > 150, "a release is new: each second one"
    assert known < 30
    assert changed > 60, "of a window of 200 nothing is seen before its end, of the next each second one is drawn"


def test_a_chain_in_bls_mode_ends_while_audits_wait_and_what_it_answered_is_recorded(
    exported: Exported, serve: Serve, tmp_path: Path
) -> None:
    repository, chain = exported.copy(tmp_path, "bls"), replace(exported.chain, mode="bls", epsilon=0.99)
    chain_path(repository, MODEL).write_text(chain.to_json())
    publish(repository, chain, draft({0: sure_head(chain, 0, 3)}))
    slow = repository / chain.segment_model(1) / "config.pbtxt"
    wait = "dynamic_batching {\n  max_queue_delay_microseconds: 200000\n"
    slow.write_text(slow.read_text().replace("dynamic_batching {\n", wait))
    served = serve(repository, GATI_AUDIT="1")
    exits: list[int] = []
    with Client(served.grpc, MODEL) as client:

        def hits() -> bool:
            exits.append(int(client.infer(exported.images[:1]).exit[0]))
            return exits[-1] == 0

        assert eventually(hits)
        assert all(hits() for _ in range(10))
    began = time.monotonic()
    assert served.server.stop() == 0
    assert time.monotonic() - began < EXIT_SECONDS
    shards = [pq.read_table(path) for path in Path(default_store(repository), MODEL).glob("*.parquet")]
    rows = sum(table.num_rows for table in shards)
    unknown = sum(table["gati.answer"].null_count for table in shards)
    assert rows == len(exits) and 0 < unknown <= exits.count(0), "what was not audited any more is recorded as a hit"


def _closes(running: Running, images: np.ndarray, liar: int) -> bool:
    """Asks once more; whether the exit that lies is closed, and no other."""
    asked(running, images)
    return running.reading().closed == (liar,)


def _is_remembered(running: Running, liar: int, number: int) -> None:
    """Holds that a report tells what a server did that was killed, and that the next one is closed since then."""
    day = read_day(running.repository, MODEL)
    said = [(happening.words.partition(":")[0], happening.bad) for happening in day.happenings]
    assert said[:3] == [
        (f"The server started again, with exit {liar} closed.", True),
        (f"Closed exit {liar}", True),
        (f"Release {number} went live.", False),
    ]
    assert day.closed["here"].release == number
    live = live_release(running.repository, running.chain)
    assert live is not None and list(live.closed) == [liar]
    assert set(live.heads) - {index for index, _, _ in live.models} == {liar}, "what replaces it need not be faster"
    plan = RefreshPlan(running.repository, running.chain, "nothing", server=running.served.grpc)
    unread = replace(live, closed=())
    assert list(_as_it_serves(plan, unread).closed) == [liar], (
        "a replica that keeps its journal elsewhere says so itself"
    )
    assert not _as_it_serves(plan, replace(unread, number=number + 1)).closed
    assert not _as_it_serves(replace(plan, server=None), unread).closed


def _serves_on(running: Running, images: np.ndarray, honest: int, number: int) -> None:
    """Holds that the exit before the one that lied answers, and the backbone the rest."""
    answer = asked(running, images)
    with Client(running.served.grpc, PLAIN) as client:
        plain = client.infer(images).output
    assert answer.release is not None
    missed = answer.release == 0
    assert 0 < missed.sum() < len(images)
    assert set(answer.exit[~missed].tolist()) == {honest}
    assert set(answer.release[~missed].tolist()) == {number}
    np.testing.assert_allclose(answer.output[missed], plain[missed], atol=1e-4, rtol=1e-4)
