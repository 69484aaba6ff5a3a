"""Releases against a running server: good ones go live, bad ones change nothing, in both modes."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import MODEL, Exported, Serve
from drafts import ALWAYS, DAMAGES, damaged, in_mode, marked_draft, place
from publishers import publish_until, race, run
from running import MODES, Running, eventually, gati, started
from tritonclient import grpc as triton

from gati.errors import PublishError, ReleaseRefused, UnavailableError
from gati.repository.chain import Mode
from gati.repository.release import numbers_on_disk, valid_releases
from gati.repository.secret import read_or_create_token
from gati.repository.workspace import workspace
from gati.serving.watch import GRACE_SECONDS
from gati.triton.model_control import HEADER, is_ready
from gati_export.releases import control
from gati_export.releases.control import Control
from gati_export.releases.rollout import publish_to

TWO_HEADS = {0: ALWAYS, 2: ALWAYS}


@pytest.fixture(scope="module", params=MODES)
def running(
    request: pytest.FixtureRequest, exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Running:
    """One server a mode, for tests that leave a server as it was but for its releases."""
    return started(exported, serve_module, tmp_path_factory.mktemp(request.param), request.param)


def test_a_release_that_is_published_to_a_server_answers_the_next_request(running: Running) -> None:
    for mark in (11, 12):
        release = running.put(mark)
        assert running.marks() == ([mark] * 4, [release.number] * 4)
    assert eventually(lambda: running.reading().release == release.number)


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_nobody_asks_says_which_release_it_serves(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    running = started(exported, serve, tmp_path, mode)
    assert eventually(lambda: running.reading().release == 1, 20)


def test_two_publishers_at_once_are_both_taken(running: Running, tmp_path: Path) -> None:
    number, draft = running.next_number(), marked_draft(running.chain, 13)
    first, second = race(running.repository, running.chain, draft, running.served.grpc, 2, tmp_path)
    assert sorted(first + second) == list(range(number, number + 4))
    assert running.marks() == ([13] * 4, [number + 3] * 4)


def test_a_head_that_triton_has_unloaded_is_a_miss(running: Running) -> None:
    if running.chain.mode == "inline":
        pytest.skip("inline, heads are no models of Triton's")
    release = running.put(14)
    assert running.marks()[1] == [release.number] * 4
    token = read_or_create_token(running.repository)
    with triton.InferenceServerClient(running.served.grpc) as client:
        client.unload_model(running.chain.head_model(0), headers={f"triton-grpc-protocol-{HEADER}": token})
    assert eventually(lambda: running.marks()[1] == [0] * 4)
    release = running.put(15)
    assert running.marks() == ([15] * 4, [release.number] * 4)


# A publisher that dies


@pytest.mark.parametrize("step", ["check", "rename 2", "prune", "take"])
def test_a_server_goes_on_when_its_publisher_is_killed_and_ends_with_the_right_release(
    running: Running, step: str
) -> None:
    old = running.put(21)
    draft = marked_draft(running.chain, 22, TWO_HEADS)
    code = run(publish_until, running.repository, running.chain, draft, running.served.grpc, step)
    assert code == -signal.SIGKILL
    landed = step in ("prune", "take")
    if landed and running.chain.mode == "inline":
        assert eventually(lambda: running.live() == old.number + 1)
    assert running.marks() in (([21] * 4, [old.number] * 4), ([22] * 4, [old.number + 1] * 4))
    release = running.put(23)
    assert release.number > old.number + (step != "check")
    assert running.marks() == ([23] * 4, [release.number] * 4)
    assert not list((workspace(running.repository) / "staging").glob("*"))


# Releases that are none


def test_a_running_server_goes_on_with_the_old_release_and_says_what_it_refused(running: Running) -> None:
    old = running.put(31)
    refused, first = running.reading().refused, running.next_number()
    numbers = {first + i: damage for i, damage in enumerate(DAMAGES)}
    for number, damage in numbers.items():
        place(running.repository, running.chain, number, damaged(running.chain, number, damage))
    assert eventually(lambda: running.reading().refused >= refused + len(DAMAGES), GRACE_SECONDS + 20)
    assert running.marks() == ([31] * 4, [old.number] * 4)
    log = running.log()
    for number, damage in numbers.items():
        assert re.search(rf"release {number} is not taken: .*{damage.reason}", log), damage.name
        if "incomplete" not in damage.reason and "has no" not in damage.reason:  # which may be for a moment only
            with Control(running.served.grpc, running.repository) as plane, pytest.raises(ReleaseRefused) as told:
                plane._probe(running.chain, number)
            assert re.search(damage.reason, str(told.value)), damage.name
    assert running.reading().refused == refused + len(DAMAGES), "each is counted once"
    release = running.put(32)
    assert release.number > max(numbers)
    assert running.marks() == ([32] * 4, [release.number] * 4)


def test_a_version_folder_that_is_none_does_not_stop_the_next_release(running: Running) -> None:
    old = running.put(33)
    (running.repository / running.chain.head_model(0) / f"{old.number + 1}.tmp").mkdir()
    assert running.marks() == ([33] * 4, [old.number] * 4)
    running.put(34)
    assert running.marks()[0] == [34] * 4


@pytest.mark.parametrize("mode", MODES)
def test_a_server_starts_on_a_repository_full_of_bad_releases_and_serves_the_good_one(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    repository, chain = exported.copy(tmp_path, mode), in_mode(exported.chain, mode)
    good = publish_to(repository, chain, marked_draft(chain, 41, TWO_HEADS), None).release
    for number, damage in enumerate(DAMAGES, good.number + 1):
        place(repository, chain, number, damaged(chain, number, damage))
    for name in ("70.tmp", "99999999999999999999"):
        (repository / chain.head_model(0) / name).mkdir()
    (repository / chain.head_model(2) / "1").mkdir(parents=True, exist_ok=True)
    running = started(exported, serve, tmp_path, mode, repository)
    assert eventually(lambda: running.live() == good.number)
    assert running.marks() == ([41] * 4, [good.number] * 4)
    said = "\n".join(running.served.server.refused)
    if mode == "inline":
        assert eventually(lambda: running.reading().refused == len(DAMAGES), GRACE_SECONDS + 20)
        said = running.log()
    for damage in DAMAGES:
        assert re.search(damage.reason, said), damage.name
    release = running.put(42)
    assert release.number > good.number + len(DAMAGES)
    assert running.marks() == ([42] * 4, [release.number] * 4)


# A server that does not take a release


@pytest.mark.parametrize("name", ["model.onnx", "release.json"])
def test_a_release_that_the_server_does_not_take_is_withdrawn(
    running: Running, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = running.put(51)

    def damage(step: str) -> None:
        if step == "rename 0":  # after the publisher's own checks
            for file in (workspace(running.repository) / "staging").rglob(name):
                file.write_bytes(file.read_bytes()[:100])

    with monkeypatch.context() as patch:
        patch.setattr(control, "LIVE_SECONDS", GRACE_SECONDS + 2)  # of this release alone: good ones may take longer
        with pytest.raises(PublishError, match=r"did not (load|take)") as refused:
            publish_to(running.repository, running.chain, marked_draft(running.chain, 52), running.served.grpc, damage)
    assert one_sentence(str(refused.value))
    assert is_ready(running.served.server.ports.http)
    assert next(valid_releases(running.repository, running.chain)) == old
    assert old.number + 1 not in numbers_on_disk(running.repository, running.chain)
    assert running.marks() == ([51] * 4, [old.number] * 4)
    release = running.put(53)
    assert release.number == old.number + 2
    assert running.marks() == ([53] * 4, [release.number] * 4)


def test_a_publisher_with_another_token_can_load_nothing(running: Running) -> None:
    old = running.put(61)
    token = workspace(running.repository) / "token"
    right = token.read_text()
    token.write_text("wrong\n")
    try:
        if running.chain.mode == "inline":  # nothing needs to be loaded
            assert running.put(62).number == old.number + 1
            return
        with pytest.raises(PublishError, match=r"did not load .*: the token beside the repository is not") as refused:
            running.put(62)
    finally:
        token.write_text(right)
    assert one_sentence(str(refused.value))
    assert next(valid_releases(running.repository, running.chain)) == old
    assert running.marks() == ([61] * 4, [old.number] * 4)


@pytest.mark.parametrize("mode", MODES)
def test_a_release_whose_server_goes_away_is_taken_at_the_next_start(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    running = started(exported, serve, tmp_path, mode)

    def end(step: str) -> None:
        if step == "take":
            running.served.server.stop()

    with pytest.raises(UnavailableError, match=r"Release 2 is on disk: the next start takes it\.$") as gone:
        publish_to(running.repository, running.chain, marked_draft(running.chain, 71), running.served.grpc, end)
    assert "\n" not in str(gone.value)
    again = started(exported, serve, tmp_path, mode, running.repository)
    assert eventually(lambda: again.live() == 2)
    assert again.marks() == ([71] * 4, [2] * 4)


# The commands


def one_sentence(text: str) -> bool:
    return "\n" not in text and "Traceback" not in text and text.endswith(".")


def test_rollback_is_live_when_it_says_so(running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = running.put(81), running.put(82)
    result = tmp_path / "result.json"
    options = ["--repository", running.repository, "--server", running.served.grpc]
    assert gati("rollback", MODEL, *options, "--json", result) == 0
    number = second.number + 1
    assert f"Release {number} of digits is live: rollback to {first.number}." in capsys.readouterr().out
    assert running.marks() == ([81] * 4, [number] * 4)
    assert json.loads(result.read_text())["reason"] == f"rollback to {first.number}"
    assert gati("rollback", MODEL, *options, "--to", second.number) == 0
    assert running.marks() == ([82] * 4, [number + 1] * 4)


def test_status_shows_what_the_server_counts(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = running.put(91)
    time.sleep(1)  # until what was asked before is counted
    before = running.reading().requests
    running.marks()
    assert eventually(lambda: running.reading().requests == before + 4)
    result = tmp_path / "status.json"
    assert gati("status", MODEL, "--metrics", running.served.metrics, "--once", "--json", result) == 0
    table = capsys.readouterr().out
    assert re.search(rf"release\W+{release.number}\b", table)
    fields = json.loads(result.read_text())
    assert fields["release"] == release.number
    assert sum(fields["exits"].values()) == before + 4
    assert fields["p50_ms"] > 0 and not fields["breaker_open"]
