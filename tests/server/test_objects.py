"""Samples and repositories in an object store: a real S3 protocol, real servers, and whoever dies in between."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError
from conftest import MODEL, Exported, Serve
from drafts import ALWAYS, DAMAGES, damaged, marked_draft, release_files
from drafts import place as lay
from handmade import label_tail, toy_chain, write_shard
from handmade import toy_sample as sample
from publishers import SECONDS, run, start
from running import eventually, started
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error
from stores import KEY, SECRET, Store

import gati_export.releases.publish as publishing
import gati_export.releases.sync as syncing
import gati_export.samples.store as reading
from gati.cli import main
from gati.errors import GatiError, PublishError, RepositoryError, UnavailableError
from gati.recording import recorder as recording
from gati.recording.recorder import Recorder
from gati.recording.shard import shard
from gati.repository.chain import Chain, read_chain
from gati.repository.release import Release, numbers_on_disk, valid_releases
from gati.repository.workspace import workspace
from gati.serving.watch import GRACE_SECONDS
from gati.system import backoff
from gati.triton import tryout
from gati_export.releases import control, refusals
from gati_export.releases.origin import Origin
from gati_export.releases.publish import OvertakenError, earlier, prune, publish, withdraw
from gati_export.releases.repository import write_repository
from gati_export.releases.rollout import publish_to, settle
from gati_export.releases.sync import Copy, follow
from gati_export.samples.store import count_since, read_recent
from gati_export.terms import Terms

TOY = toy_chain()
TWO_HEADS = {0: ALWAYS, 2: ALWAYS}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        store.files.mkdir("bucket")
        yield store


@pytest.fixture
def url(store: Store, tmp_path: Path) -> str:
    """A folder of the store that is the test's own."""
    return f"s3://bucket/{tmp_path.name}/models"


@pytest.fixture
def chain(exported: Exported) -> Chain:
    return exported.chain


@pytest.fixture
def publisher(exported: Exported, url: str, tmp_path: Path) -> Path:
    """The exported chain, put to the store."""
    repository = exported.copy(tmp_path / "publisher", plain=True)
    Copy(repository, Origin(url)).push()
    return repository


def pulled(url: str, repository: Path) -> Path:
    Copy(repository, Origin(url)).pull()
    return repository


def put(repository: Path, chain: Chain, mark: int = 2) -> Release:
    return publish(repository, chain, marked_draft(chain, mark, TWO_HEADS))


def numbers(repository: Path, chain: Chain) -> list[int]:
    return [release.number for release in valid_releases(repository, chain)]


def place(store: Store, url: str, files: dict[str, bytes]) -> None:
    for key, content in files.items():
        store.files.pipe_file(f"{url}/{key}", content)


def placed(chain: Chain, number: int) -> dict[str, bytes]:
    """A release's files by key."""
    files = release_files(chain, number, marked_draft(chain, number, TWO_HEADS))
    return {f"{chain.head_model(index)}/{number}/{name}": content for (index, name), content in files.items()}


# Samples


def test_samples_go_to_a_store_within_their_budget_and_are_read_again(store: Store, url: str) -> None:
    table = shard(TOY, [sample(0)])
    size = store.files.size(write_shard(f"{url}/toy", table, 1 << 20))
    for start_ in range(1, 6):
        write_shard(f"{url}/toy", shard(TOY, [sample(2 * start_)]), 3 * size + size // 2)
    kept = store.files.ls(f"{url}/toy", detail=False)
    assert len(kept) == 3 and all(name.endswith(".parquet") for name in kept)
    np.testing.assert_array_equal(read_recent(url, TOY, 100).samples["x"][::2, 0], [24, 32, 40])
    count, mark, oldest = count_since(url, TOY, "")
    assert count == 6 and mark > oldest
    write_shard(f"{url}/toy", table, 1 << 20)
    assert count_since(url, TOY, mark)[0] == 2


def test_of_many_small_shards_the_newest_are_waited_for_together(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        write_shard(f"{url}/toy", shard(TOY, [sample(number)]), 1 << 20)
    rows = len(sample(0).values["x"])
    at_once, read, read_one = list[int](), list[str](), reading._read

    def slow(fs: Any, chain: Chain, name: str) -> Any:
        read.append(name)
        time.sleep(0.1)
        at_once.append(len(read) - len(at_once))
        return read_one(fs, chain, name)

    monkeypatch.setattr(reading, "_read", slow)
    samples = read_recent(url, TOY, 10 * rows).samples["x"]
    np.testing.assert_array_equal(samples, np.concatenate([sample(number).values["x"] for number in range(30, 40)]))
    assert max(at_once) > 4 and len(set(read)) == len(read) <= reading.AHEAD


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "ExpiredToken", "AccessDenied"])
def test_samples_that_a_store_does_not_give_are_not_taken_for_damaged(
    url: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    write_shard(f"{url}/toy", shard(TOY, [sample(0)]), 1 << 20)

    call = S3FileSystem._call_s3

    async def refuse(self: S3FileSystem, method: str, *args: Any, **named: Any) -> Any:
        if method != "get_object":
            return await call(self, method, *args, **named)
        error = {"Error": {"Code": code, "Message": "Not now"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
        raise translate_boto_error(ClientError(error, "GetObject"))

    monkeypatch.setattr(S3FileSystem, "_call_s3", refuse)
    with pytest.raises(UnavailableError, match=rf"^{url}/toy can't be used"):
        read_recent(url, TOY, 100)
    with pytest.raises(UnavailableError, match=rf"^{url}/toy can't be used"):
        count_since(url, TOY, "")


def test_samples_that_are_deleted_as_they_are_read_are_not_taken_for_damaged(store: Store, url: str) -> None:
    """A budget deletes the oldest of them, again and again, where it has room for less than a window."""
    names = [write_shard(f"{url}/toy", shard(TOY, [sample(number)]), 1 << 20) for number in range(3)]
    listed = store.files.ls(f"{url}/toy", detail=False)
    store.files.rm(names[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3FileSystem, "ls", lambda *_, **__: listed)
        recorded = read_recent(url, TOY, 100)
        assert (recorded.window.samples, recorded.left_out) == (4, 0)
        assert count_since(url, TOY, "")[0] == 4


def test_a_store_that_is_away_makes_nobody_wait_and_is_written_again_when_it_is_back(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0.001)
    dropped: list[int] = []
    log: list[str] = []
    recorder = Recorder(TOY, url, 1 << 20, dropped.append, log.append)
    store.go()
    try:
        recorder.record(sample(0))
        assert eventually(lambda: dropped == [2])
        with pytest.raises(UnavailableError, match=f"^{url}/toy can't be used: .*connect"):
            read_recent(url, TOY, 100)
    finally:
        store.come()
    recorder.record(sample(1))
    recorder.close()
    assert dropped == [2]
    assert read_recent(url, TOY, 100).window.samples == 2
    assert len(log) == 1 and log[0].startswith(f"samples can't be written to {url}/toy: ")
    assert KEY not in log[0] and SECRET not in log[0]


# A repository, served


def test_a_chain_from_a_store_is_served_and_takes_what_is_published_elsewhere(
    exported: Exported, serve: Serve, store: Store, publisher: Path, url: str, tmp_path: Path
) -> None:
    chain, samples = exported.chain, f"s3://bucket/{tmp_path.name}/samples"
    pod, stale = pulled(url, tmp_path / "pod"), pulled(url, tmp_path / "stale")
    running = started(exported, serve, tmp_path, "inline", pod, GATI_STORE=samples)
    assert running.live() == 1
    release = put(publisher, chain, 7)
    assert Copy(pod, Origin(url)).pull().pulled == {MODEL: [release.number]}
    assert eventually(lambda: running.live() == release.number)
    assert running.marks() == ([7] * 4, [release.number] * 4)
    settle(stale, chain, running.served.grpc)  # takes for its own what another has published, and withdraws nothing
    assert numbers(stale, chain) == [release.number, 1] and Origin(url).numbers(chain) == [release.number, 1]
    running.served.server.stop()  # writes what it has recorded
    recorded = read_recent(samples, chain, 100)
    np.testing.assert_array_equal(next(iter(recorded.samples.values())), exported.images[:4])
    assert recorded.window.source == f"{samples}/{MODEL}"
    assert KEY not in running.log() and SECRET not in running.log()


def test_a_server_that_refuses_a_release_is_told_from_one_whose_copy_is_late(
    exported: Exported, serve: Serve, publisher: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LIVE_SECONDS", GRACE_SECONDS + 3)
    chain = exported.chain
    pod = pulled(url, tmp_path / "pod")
    running = started(exported, serve, tmp_path, "inline", pod)
    asked = publisher, chain, marked_draft(chain, 8, TWO_HEADS), running.served.grpc
    with pytest.raises(UnavailableError, match="goes on with 1: what it reads is not up to date yet"):
        publish_to(*asked)
    assert Origin(url).numbers(chain) == [2, 1]

    def spoil(step: str) -> None:
        if step == "take":
            lay(pod, chain, 3, damaged(chain, 3, DAMAGES[0]))

    with pytest.raises(PublishError, match=r"goes on with 1: release 3 .* is damaged.* Release 3 is withdrawn, and 4 "):
        publish_to(*asked, spoil)
    assert Origin(url).numbers(chain) == [4, 2, 1]
    pulled(url, pod)
    assert eventually(lambda: running.live() == 4)


def test_what_is_served_and_can_not_be_taken_here_is_not_withdrawn_from_all(
    exported: Exported, serve: Serve, publisher: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = exported.chain
    pod, stale = pulled(url, tmp_path / "pod"), pulled(url, tmp_path / "stale")
    running = started(exported, serve, tmp_path, "inline", pod)
    number = put(publisher, chain, 7).number
    pulled(url, pod)
    assert eventually(lambda: running.live() == number)

    def short(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(syncing, "check_release", short)
        wanted = rf"^Release {number}, which is served, can't be taken from s3://.*: .*no memory\.$"
        with pytest.raises(PublishError, match=wanted):
            settle(stale, chain, running.served.grpc)
    assert Origin(url).numbers(chain) == [number, 1]
    settle(stale, chain, running.served.grpc)
    assert numbers(stale, chain) == [number, 1]


def test_what_another_copy_has_published_meanwhile_is_not_published_over(
    publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    other = pulled(url, tmp_path / "other")
    draft = replace(marked_draft(chain, 8, TWO_HEADS), compared=1)

    def between(step: str) -> None:
        if step == "stage":
            put(other, chain)

    with pytest.raises(OvertakenError, match="Release 2 was published meanwhile, by a rollback perhaps, or can't be"):
        publish(publisher, chain, draft, between)
    assert Origin(url).numbers(chain) == [2, 1]
    assert publish(publisher, chain, replace(draft, compared=None)).number == 4, "whoever asks for it goes over it"


# What is wrong there


def test_a_damaged_or_half_put_release_is_not_taken_and_the_next_one_is(
    store: Store, publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    pod = pulled(url, tmp_path / "pod")
    good = placed(chain, 2)
    model = f"{chain.head_model(0)}/2/model.onnx"
    place(store, url, {key: content for key, content in good.items() if key != model})
    copy = Copy(pod, Origin(url))
    assert "is incomplete" in copy.pull().refused[0]
    place(store, url, {model: good[model]})  # its publisher was at work
    assert copy.pull().pulled == {MODEL: [2]}
    place(store, url, placed(chain, 3) | {f"{chain.head_model(0)}/3/model.onnx": good[model]})
    assert any("is damaged" in reason for reason in copy.pull().refused)
    assert numbers(pod, chain) == [2, 1] == numbers_on_disk(pod, chain)
    assert not any("damaged" in reason for reason in copy.pull().refused), "it was fetched again"
    release = put(publisher, chain)
    assert release.number == 4
    assert copy.pull().pulled == {MODEL: [4]}
    assert numbers(pod, chain) == [4, 2, 1]


def test_what_could_not_be_tried_out_for_a_moment_is_tried_again_ever_more_rarely(
    publisher: Path, chain: Chain, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, tried = pulled(url, tmp_path / "pod"), list[float]()
    number = put(publisher, chain).number
    copy, now = Copy(pod, Origin(url)), 1000.0
    monkeypatch.setattr(backoff, "time", SimpleNamespace(monotonic=lambda: now))

    def short(*_: object) -> None:
        tried.append(now)
        raise MemoryError

    monkeypatch.setattr(tryout, "_opened", {})  # the publisher was this process, too
    with monkeypatch.context() as patch:
        patch.setattr(tryout, "open_head", short)
        for now in range(1000, 1100, 5):
            refused = copy.pull().refused
            assert bool(refused) == (tried[-1] == now) and all("can't be tried out" in reason for reason in refused)
    assert tried == [1000, 1010, 1030, 1070]
    now = 1000 + 2 * refusals.LONGEST_WAIT
    assert copy.pull().pulled == {MODEL: [number]}


def _other_config(text: bytes) -> bytes:
    return text + b'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/tmp/evil.tar.gz" } }\n'


HARMS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "another name": ("{model}/1/chain.json", lambda text: text.replace(b'"digits"', b'"../digits"'), "says that it is"),
    "code": ("{model}/config.pbtxt", _other_config, "not as gati writes it"),
    "another segment": ("{model}-segment-0/1/model.onnx", lambda text: text[:-1], "is not the one that"),
    "no end": ("{model}-segment-1/config.pbtxt", lambda text: text + b"#" * (1 << 20), "larger than"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_chain_with_harm_in_it_is_not_taken(
    name: str, store: Store, publisher: Path, url: str, tmp_path: Path
) -> None:
    key, change, reason = HARMS[name]
    path = f"{url}/{key.format(model=MODEL)}"
    place(store, url, {key.format(model=MODEL): change(store.files.cat_file(path))})
    done = Copy(tmp_path / "pod", Origin(url)).pull()
    assert len(done.refused) == 1 and reason in done.refused[0]
    assert not list((tmp_path / "pod").iterdir())


def test_what_a_chain_makes_of_its_scores_comes_with_it(
    store: Store, exported: Exported, url: str, tmp_path: Path
) -> None:
    repository = exported.copy(tmp_path / "publisher")
    chain, tail = label_tail(exported.chain)
    chain.tail_path(repository).write_bytes(tail)
    write_repository(repository, chain)
    Copy(repository, Origin(url)).push()
    assert chain.read_tail(pulled(url, tmp_path / "pod")) == tail
    assert read_chain(tmp_path / "pod", MODEL) == chain
    place(store, url, {f"{MODEL}/1/tail.onnx": tail[:-1]})
    refused = Copy(tmp_path / "other", Origin(url)).pull().refused
    assert len(refused) == 1 and "tail.onnx is not the one that chain.json names" in refused[0]
    assert not list((tmp_path / "other").iterdir())


def sync_limited(environment: dict[str, str], url: str, repository: Path, said: Path) -> None:
    """Syncs where no file can grow beyond 100 bytes, as on a full disk; writes down what went wrong."""
    os.environ.update(environment)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        Copy(repository, Origin(url)).pull()
    except GatiError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said.write_text(f"{type(error).__name__}: {error}")


def test_a_full_disk_here_is_not_said_to_be_the_stores_fault(
    store: Store, publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    pod, said = pulled(url, tmp_path / "pod"), tmp_path / "said"
    put(publisher, chain)
    assert run(sync_limited, store.environment, url, pod, said) == 0
    assert said.read_text() == f"PublishError: {pod} can't be written (File too large)."
    assert numbers(pulled(url, pod), chain) == [2, 1]


def test_what_could_not_be_written_here_is_not_taken_elsewhere(
    publisher: Path, chain: Chain, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Origin(url).numbers(chain)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(PublishError, match="nothing changed"):
        patch.setattr(publishing, "land", full)
        put(pulled(url, publisher), chain)
    assert Origin(url).numbers(chain) == before
    assert put(publisher, chain).number > max(before) + 1  # a number is never used again


def test_the_names_of_its_classes_come_with_a_chain(store: Store, exported: Exported, url: str, tmp_path: Path) -> None:
    repository = exported.copy(tmp_path / "publisher")
    names = b"zero\none\n"
    chain = replace(exported.chain, labels=(hashlib.sha256(names).hexdigest(),))
    chain.labels_path(repository, 0).write_bytes(names)
    write_repository(repository, chain)
    Copy(repository, Origin(url)).push()
    assert chain.read_labels(pulled(url, tmp_path / "pod"), 0) == names
    place(store, url, {f"{MODEL}/labels-0.txt": b"three\nfour\n"})
    refused = Copy(tmp_path / "other", Origin(url)).pull().refused
    assert len(refused) == 1 and "labels-0.txt is not the one that chain.json names" in refused[0]
    assert not list((tmp_path / "other").iterdir())


def test_what_tells_samples_that_only_train_comes_with_a_chain(exported: Exported, url: str, tmp_path: Path) -> None:
    repository, marks = exported.copy(tmp_path / "publisher"), b"8 bytes." * 3
    chain = replace(exported.chain, trained=hashlib.sha256(marks).hexdigest())
    chain.trained_path(repository).write_bytes(marks)
    write_repository(repository, chain)
    Copy(repository, Origin(url)).push()
    assert chain.read_trained(pulled(url, tmp_path / "pod")) == marks
    assert Terms.of(chain, 0, marks).trained == {b"8 bytes."}


def test_keys_that_lead_out_of_the_folder_lead_nowhere(
    store: Store, publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    text = store.files.cat_file(f"{url}/{MODEL}/1/chain.json")
    head = chain.head_model(0)
    place(store, url, {"../1/chain.json": text, f"{head}/../9/release.json": text, f"{head}/9/../model.onnx": text})
    done = Copy(tmp_path / "in" / "pod", Origin(url)).pull()
    assert any("no name of a model" in reason for reason in done.refused)
    assert done.pulled == {MODEL: [1]}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "publisher"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"pod", "pod.gati"}
    assert {path.name for path in (tmp_path / "in" / "pod" / head).iterdir()} == {"config.pbtxt", "1"}


def test_another_chain_of_that_name_is_left_alone(publisher: Path, url: str, tmp_path: Path) -> None:
    other = tmp_path / "other" / "models"
    shutil.copytree(publisher, other)
    path = other / MODEL / "1" / "chain.json"
    path.write_text(path.read_text().replace('"epsilon": 0.01', '"epsilon": 0.5'))
    before = path.read_text()
    with pytest.raises(RepositoryError, match="holds another 'digits'"):
        Copy(other, Origin(url)).push()
    assert "holds another 'digits'" in Copy(other, Origin(url)).pull().refused[0]
    assert path.read_text() == before


# Publishers


def publish_there(environment: dict[str, str], repository: Path, chain: Chain, times: int) -> None:
    os.environ.update(environment)
    for mark in range(times):
        put(repository, chain, mark)


def test_two_publishers_at_once_never_use_one_number(
    store: Store, publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    copies = [publisher, pulled(url, tmp_path / "second")]
    processes = [start(publish_there, store.environment, copy, chain, 2) for copy in copies]
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0
    first, second = (numbers(copy, chain)[:2] for copy in copies)
    assert sorted(first + second) == [2, 3, 4, 5]
    for copy in copies:
        follow(copy)
    assert numbers(copies[0], chain)[0] == numbers(copies[1], chain)[0] == 5
    assert sorted(Origin(url).numbers(chain)) == [1, 2, 3, 4, 5]


def test_a_release_of_a_number_that_another_has_is_not_put(
    publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    apart = tmp_path / "apart" / "models"
    shutil.copytree(publisher, apart)
    put(apart, chain, 3)  # it knows of no store
    put(publisher, chain, 4)
    with pytest.raises(PublishError, match="Another publisher was first with release 2 of 'digits'"):
        Copy(apart, Origin(url)).push()
    theirs = Origin(url).manifest(chain, 2)
    assert theirs == (publisher / chain.head_model(0) / "2" / "release.json").read_bytes()


def test_what_is_pruned_or_withdrawn_there_goes_here_and_no_number_comes_again(
    store: Store, publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    pod = pulled(url, tmp_path / "pod")
    place(store, url, {key: content for key, content in placed(chain, 2).items() if key.endswith("model.onnx")})
    for mark in (3, 4, 5):
        assert put(publisher, chain, mark).number == mark
    assert pulled(url, pod) and numbers(pod, chain) == [5, 4, 3, 1] == Origin(url).numbers(chain), "half of 2 is there"
    Origin(url).prune(chain, 2)
    withdraw(publisher, chain, 5)
    assert Copy(pod, Origin(url)).pull().removed == {MODEL: [5, 3, 1]}
    assert numbers(pod, chain) == [4]
    assert put(pod, chain).number == 6


def test_heads_that_are_published_again_count_once_in_a_store(publisher: Path, chain: Chain, url: str) -> None:
    put(publisher, chain)
    for _ in range(3):
        publish(publisher, chain, earlier(publisher, chain, 2))
    Origin(url).prune(chain, 2)
    assert Origin(url).numbers(chain) == [5, 2, 1]


def test_a_copy_whose_store_was_emptied_says_so_until_its_chains_are_put_there(
    store: Store, publisher: Path, chain: Chain, url: str
) -> None:
    store.files.rm(url, recursive=True)
    for say in (follow, lambda repository: Copy(repository, Origin(url)).pull()):
        with pytest.raises(RepositoryError, match=rf"^{url} holds no chain: `gati sync --push` puts them there\.$"):
            say(publisher)
    with pytest.raises(SystemExit) as ended:
        main(["sync", url, str(publisher), "--push"])
    assert ended.value.code == 0 and Origin(url).numbers(chain) == [1]
    follow(publisher)


def test_what_a_copy_prunes_is_gone_from_its_disk(
    publisher: Path, chain: Chain, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pulled(url, tmp_path / "pod")
    monkeypatch.setattr(syncing, "prune", lambda *those: prune(*those, kept=1))
    for mark in (2, 3):
        put(publisher, chain, mark)
        pulled(url, pod)
    assert numbers(pod, chain) == [3]
    assert not [path for path in workspace(pod).rglob("*") if path.name in ("model.onnx", "release.json")]


def test_nothing_is_published_while_the_store_is_away(store: Store, publisher: Path, chain: Chain) -> None:
    store.go()
    try:
        with pytest.raises(UnavailableError, match="can't be used"):
            put(publisher, chain)
        with pytest.raises(UnavailableError, match="can't be used"):
            follow(publisher)
    finally:
        store.come()
    assert numbers(publisher, chain) == [1] == numbers_on_disk(publisher, chain)
    assert put(publisher, chain).number == 2


# Whoever is killed


def sync_changes(environment: dict[str, str], url: str, repository: Path, changes: int, push: bool) -> None:
    """Syncs, and is killed before it changes the disk, or puts a file there, once more than so often."""
    os.environ.update(environment)
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > changes:
            os.kill(os.getpid(), signal.SIGKILL)

    origin = Origin(url)
    if push:
        put_one = origin.put
        origin.put = lambda key, path: (count(), put_one(key, path))[1]  # pyright: ignore[reportAttributeAccessIssue]
        Copy(repository, origin).push()
    else:
        rename = os.rename
        os.rename = lambda *paths: (count(), rename(*paths))[1]  # pyright: ignore[reportAttributeAccessIssue]
        Copy(repository, origin).pull()


@pytest.mark.parametrize("push", [False, True], ids=["pull", "push"])
def test_a_sync_that_is_killed_leaves_what_the_next_one_completes(
    push: bool, exported: Exported, store: Store, chain: Chain, url: str, tmp_path: Path
) -> None:
    here = exported.copy(tmp_path / "here", plain=True)
    put(here, chain)
    if not push:
        Copy(here, Origin(url)).push()
    there = tmp_path / "there"
    for changes in (9, 40) if push else (5, 40):
        code = run(sync_changes, store.environment, url, here if push else there, changes, push)
        assert code == (0 if changes == 40 else -signal.SIGKILL)
        if push:
            pulled(url, there)
        assert code == 0 or not (there / MODEL).exists() or numbers(there, chain)
    assert numbers(there, chain) == [2, 1]
    ours = {path.relative_to(here): path for path in here.rglob("*") if path.is_file() and "plain" not in str(path)}
    assert {path.relative_to(there) for path in there.rglob("*") if path.is_file()} == set(ours)
    assert all((there / path).read_bytes() == mine.read_bytes() for path, mine in ours.items())
    assert not (workspace(there) / "sync").exists()


def install_until(environment: dict[str, str], url: str, repository: Path, model: str) -> None:
    """Syncs, and is killed as it is to move a model into the repository."""
    os.environ.update(environment)
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if target == repository / model:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = die
    Copy(repository, Origin(url)).pull()


def test_a_first_sync_that_is_killed_holds_up_no_next_one_though_the_store_has_moved_on(
    store: Store, publisher: Path, chain: Chain, url: str, tmp_path: Path
) -> None:
    put(publisher, chain)
    pod = tmp_path / "pod"
    assert run(install_until, store.environment, url, pod, MODEL) == -signal.SIGKILL
    assert (pod / chain.head_model(0) / "2").exists()
    withdraw(publisher, chain, 2)
    done = Copy(pod, Origin(url)).pull()
    assert done.models == [MODEL] and not done.refused and numbers(pod, chain) == [1]


def test_a_first_push_that_was_killed_names_what_holds_up_another_chain_of_that_name(
    exported: Exported, store: Store, url: str, tmp_path: Path
) -> None:
    here = exported.copy(tmp_path / "here")
    assert run(sync_changes, store.environment, url, here, 0, True) == -signal.SIGKILL
    write_repository(here, replace(exported.chain, epsilon=0.02))
    claim = f"{url}/.gati/{MODEL}/chain"
    with pytest.raises(PublishError, match=f"was first with 'digits' .* killed, remove {claim}, and push again"):
        Copy(here, Origin(url)).push()
    store.files.rm_file(claim)
    Copy(here, Origin(url)).push()
    assert Origin(url).chain(MODEL) == read_chain(here, MODEL)


def test_what_nobody_has_left_there_stays_and_is_named(publisher: Path, chain: Chain, url: str, tmp_path: Path) -> None:
    theirs = tmp_path / "pod" / chain.head_model(0) / "1" / "model.onnx"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("a person's")
    done = Copy(tmp_path / "pod", Origin(url)).pull()
    assert len(done.refused) == 1 and f"holds another {chain.head_model(0)!r}; remove it" in done.refused[0]
    assert theirs.read_text() == "a person's" and not (tmp_path / "pod" / MODEL).exists()


# The command


def test_the_command_says_what_it_did_and_no_secret(
    publisher: Path, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said.json"
    for arguments, code in (
        ([url, str(tmp_path / "pod"), "--json", str(said)], 0),
        ([f"{url}-2", str(tmp_path / "pod")], 1),
        ([url.replace("bucket", "none"), str(tmp_path / "none")], 1),
        ([url.replace("//", f"//{KEY}:{SECRET}@"), str(tmp_path / "none")], 1),
        (["models", str(tmp_path / "none")], 1),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["sync", *arguments])
        assert ended.value.code == code
    out, err = capfd.readouterr()
    assert json.loads(said.read_text())["models"] == [MODEL]
    assert f"{MODEL} is new here." in out
    errors = re.findall(r"^Error: .+\.$", err, re.MULTILINE)
    assert len(errors) == 4 == len(err.splitlines()), err
    assert KEY not in out + err and SECRET not in out + err
