"""Several servers on one repository: a release is rolled out to all of them, whoever dies or hangs meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, Exported, killed
from drafts import in_mode, marked_draft, place, release_files
from publishers import publish_until, run
from running import eventually, gati

from gati.errors import PublishError, UnavailableError
from gati.repository.chain import Chain, Mode
from gati.repository.release import SHUT, numbers_on_disk, valid_releases
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server, running_ports
from gati_client import Client
from gati_export.releases import control
from gati_export.releases.control import Control
from gati_export.releases.publish import Step, withdraw
from gati_export.releases.rollout import Rollout, publish_to, settle

pytestmark = pytest.mark.triton

QUIET = {"GATI_AUDIT": "0", "GATI_STORE": "none"}


@dataclass
class Fleet:
    """Servers on one repository."""

    repository: Path
    chain: Chain
    images: np.ndarray
    servers: list[Server] = field(default_factory=list)

    def start(self, index: int) -> None:
        """Starts a server that has died, where it was."""
        killed(self.servers[index])
        self.servers[index] = Server(self.repository, self.servers[index].ports, QUIET)

    def stop(self) -> None:
        for server in self.servers:
            killed(server)

    @property
    def addresses(self) -> list[str]:
        return [f"{HOST}:{server.ports.grpc}" for server in self.servers]

    def put(self, mark: int, step: Step = lambda _: None) -> Rollout:
        return publish_to(self.repository, self.chain, marked_draft(self.chain, mark), ",".join(self.addresses), step)

    def settle(self) -> list[int | None]:
        """Settles; returns what each serves."""
        return [outcome.release for outcome in settle(self.repository, self.chain, ",".join(self.addresses))]

    def live(self) -> list[int]:
        """What each serves."""
        numbers = []
        for address in self.addresses:
            with Control(address, self.repository) as plane:
                numbers.append(plane.live_release(self.chain))
        return numbers

    def newest(self) -> int:
        return next(valid_releases(self.repository, self.chain)).number

    def marks(self) -> list[int]:
        """The marks that the answers of each carry."""
        found = []
        for address in self.addresses:
            with Client(address, MODEL) as client:
                found.append(round(float(client.infer(self.images[:1]).output[0, 0])))
        return found

    @contextmanager
    def hanging(self, index: int) -> Iterator[None]:
        """Stops a server meanwhile; not its stub, which Triton would not find healthy afterwards."""
        self.servers[index].process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.servers[index].process.send_signal(signal.SIGCONT)

    @contextmanager
    def load(self, *living: int) -> Iterator[None]:
        """Asks these servers meanwhile; no request may fail."""
        done = threading.Event()

        def ask(address: str) -> int:
            count = 0
            with Client(address, MODEL) as client:
                while not done.is_set():
                    client.infer(self.images[:4])
                    count += 1
                    time.sleep(0.005)  # the cores are for the servers
            return count

        with ThreadPoolExecutor(len(living)) as pool:
            futures = [pool.submit(ask, self.addresses[index]) for index in living]
            try:
                yield
            finally:
                done.set()
        assert all(future.result() for future in futures)


def opened(exported: Exported, folder: Path, mode: Mode, servers: int) -> Fleet:
    repository = exported.copy(folder, mode)
    running = [Server(repository, Ports(0, 0, 0), QUIET) for _ in range(servers)]
    return Fleet(repository, in_mode(exported.chain, mode), exported.images, running)


@pytest.fixture(scope="module")
def three(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = opened(exported, tmp_path_factory.mktemp("three"), "inline", 3)
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def two(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = opened(exported, tmp_path_factory.mktemp("two"), "bls", 2)
    yield fleet
    fleet.stop()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that waits for seconds only."""
    monkeypatch.setattr(control, "LOAD_SECONDS", 10.0)
    monkeypatch.setattr(control, "LIVE_SECONDS", 6.0)
    monkeypatch.setattr(control, "PROBE_SECONDS", 1.0)


@contextmanager
def one_more(exported: Exported, folder: Path, refuses: int = 0) -> Iterator[str]:
    """The address of a replica on a disk of its own, which sees nothing of the others', or a damaged release."""
    apart = opened(exported, folder, "inline", 1)
    if refuses:
        files = release_files(apart.chain, refuses, marked_draft(apart.chain, 0))
        spoilt = {name: content + b"!" if "model" in name[1] else content for name, content in files.items()}
        place(apart.repository, apart.chain, refuses, spoilt)
    try:
        yield apart.addresses[0]
    finally:
        apart.stop()


def states(rollout: Rollout) -> list[str]:
    return [replica.state for replica in rollout.replicas]


def test_a_replica_that_is_killed_as_a_release_is_published_has_it_when_it_is_back(
    three: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = three.put(11)
    assert states(before) == ["live"] * 3

    def kill(step: str) -> None:
        if step == "rename 0":
            three.servers[2].process.kill()
            three.servers[2].process.wait()

    result = tmp_path / "result.json"
    options = ["--repository", three.repository, "--server", ",".join(three.addresses[:2]), "--json", result]
    with three.load(0, 1):
        rollout = three.put(12, kill)
        assert states(rollout) == ["live", "live", "down"]
        assert gati("rollback", MODEL, *options, "--server", three.addresses[2]) == 0
        said = capsys.readouterr().out.splitlines()
        three.start(2)
        assert three.put(13).release.number == before.release.number + 3
    number = before.release.number + 2
    assert said[0] == f"Release {number} of digits is live on 2 of 3 replicas: rollback to {before.release.number}."
    assert said[1:3] == [f"  {address}  live" for address in three.addresses[:2]]
    assert re.fullmatch(rf"  {three.addresses[2]}  down: .*\. It takes the release when it starts\.", said[3])
    replicas = json.loads(result.read_text())["replicas"]
    assert [(r["address"], r["state"], r["release"]) for r in replicas] == [
        (three.addresses[0], "live", number),
        (three.addresses[1], "live", number),
        (three.addresses[2], "down", None),
    ]
    assert three.marks() == [13] * 3


def test_a_replica_that_starts_has_what_was_published_while_it_was_away(three: Fleet) -> None:
    three.servers[0].process.kill()
    three.servers[0].process.wait()
    number = three.put(21).release.number
    three.start(0)
    assert three.live() == [number] * 3


def test_a_replica_that_hangs_does_not_hold_up_the_others_and_catches_up(three: Fleet, hasty: None) -> None:
    three.put(31)
    with three.hanging(1), three.load(0, 2):
        rollout = three.put(32)
    assert states(rollout) == ["live", "slow", "live"]
    assert "did not answer within 6 s" in rollout.replicas[1].reason
    assert eventually(lambda: three.live() == [rollout.release.number] * 3)
    assert three.marks() == [32] * 3


def test_a_release_that_one_replica_refuses_is_taken_back_from_all(
    three: Fleet, exported: Exported, tmp_path: Path, hasty: None
) -> None:
    old = three.put(41).release
    with one_more(exported, tmp_path, old.number + 1) as fourth:
        everyone = ",".join([*three.addresses, fourth])
        with three.load(0, 1, 2), pytest.raises(PublishError) as refused:
            publish_to(three.repository, three.chain, marked_draft(three.chain, 42), everyone)
    assert str(refused.value).startswith(f"{fourth} did not take release {old.number + 1} ")
    assert "is damaged" in str(refused.value)
    assert str(refused.value).endswith(
        f"Release {old.number + 1} is withdrawn, and {old.number + 2} brings back the heads of {old.number}, "
        "so that all replicas serve the same."
    )
    assert old.number + 1 not in numbers_on_disk(three.repository, three.chain)
    assert three.live() == [old.number + 2] * 3
    assert three.marks() == [41] * 3


def test_a_rollback_stays_where_one_replica_does_not_take_it(
    three: Fleet, exported: Exported, tmp_path: Path, hasty: None, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = three.put(43).release, three.put(44).release
    number = bad.number + 1
    with one_more(exported, tmp_path, number) as fourth:
        everyone = ",".join([*three.addresses, fourth])
        assert gati("rollback", MODEL, "--repository", three.repository, "--server", everyone) == 1
    said = capsys.readouterr()
    assert f"Release {number} of digits is live on 3 of 4 replicas: rollback to {good.number}." in said.out
    assert f"{fourth}  refuses: " in said.out and "Not all replicas have gone back" in said.err
    assert three.live() == [number] * 3 and three.marks() == [43] * 3


def test_a_release_that_is_shut_stays_where_one_replica_does_not_take_it(
    three: Fleet, exported: Exported, tmp_path: Path, hasty: None
) -> None:
    """What it takes the place of breaks its promise: that must not come back on those that have gone on."""
    broken = three.put(47).release
    draft = marked_draft(three.chain, 48, dict.fromkeys(three.chain.heads[:1], SHUT))
    shut = replace(draft, certificate=replace(draft.certificate, thresholds=dict.fromkeys(draft.heads, SHUT)))
    with one_more(exported, tmp_path, broken.number + 1) as fourth:
        rollout = publish_to(three.repository, three.chain, shut, ",".join([*three.addresses, fourth]))
    assert states(rollout) == ["live", "live", "live", "refuses"]
    assert three.live() == [broken.number + 1] * 3 and 47 not in three.marks()


def test_a_replica_whose_disk_shows_a_release_late_is_no_reason_to_withdraw_it(
    three: Fleet, exported: Exported, tmp_path: Path, hasty: None
) -> None:
    """A network's file system may show a new folder a minute after it was made."""
    with one_more(exported, tmp_path) as fourth:
        draft = marked_draft(three.chain, 49)
        rollout = publish_to(three.repository, three.chain, draft, ",".join([*three.addresses, fourth]))
    assert states(rollout) == ["live", "live", "live", "slow"]
    assert "what it reads is not up to date yet, or its log says why" in rollout.replicas[-1].reason
    assert three.live() == [rollout.release.number] * 3 and three.marks() == [49] * 3


def test_a_release_that_is_served_and_lost_on_disk_is_followed_by_a_higher_one(three: Fleet) -> None:
    three.put(45)
    lost = three.put(46).release.number
    for folder in three.repository.glob(f"*/{lost}"):
        shutil.rmtree(folder)
    assert three.settle() == [lost + 1] * 3
    assert three.marks() == [45] * 3


def test_nothing_is_published_where_no_replica_answers(three: Fleet) -> None:
    before = three.newest()
    with pytest.raises(UnavailableError, match=r"^No Triton server .*:1\. No Triton server .*:2\.$"):
        publish_to(three.repository, three.chain, marked_draft(three.chain, 51), f"{HOST}:1,{HOST}:2")
    assert three.newest() == before


def test_servers_of_one_repository_have_a_log_each_and_are_found(three: Fleet) -> None:
    assert len({server.log for server in three.servers}) == 3
    assert all(f"{HOST}:{server.ports.grpc}" in server.log.read_text() for server in three.servers)
    assert {*running_ports(three.repository)} == {server.ports for server in three.servers}


def test_the_status_of_one_server_of_several_names_the_others(three: Fleet, capsys: pytest.CaptureFixture) -> None:
    assert gati("status", "--repository", three.repository, "--once") == 0
    said = capsys.readouterr()
    addresses = {f"{HOST}:{server.ports.metrics}" for server in three.servers}
    shown, named = ({address for address in addresses if address in text} for text in (said.out, said.err))
    assert len(shown) == 1
    assert named == addresses - shown


# What a killed publisher leaves


def test_a_roll_out_that_was_interrupted_is_finished_by_the_next_run(two: Fleet) -> None:
    old = two.put(61).release
    code = run(publish_until, two.repository, two.chain, marked_draft(two.chain, 62), ",".join(two.addresses), "take")
    assert code == -signal.SIGKILL
    assert two.live() == [old.number] * 2
    with Control(two.addresses[0], two.repository) as plane:
        plane.take(two.chain, next(valid_releases(two.repository, two.chain)))
    assert two.live() == [old.number + 1, old.number]
    options = ["--repository", two.repository, "--server", ",".join(two.addresses)]
    assert gati("refresh", MODEL, *options) == 1  # nothing is recorded, nothing is published
    assert two.live() == [old.number + 1] * 2
    assert two.marks() == [62] * 2


def test_a_withdrawal_that_was_interrupted_is_finished_by_the_next_run(two: Fleet) -> None:
    old = two.put(71).release
    bad = two.put(72).release
    withdraw(two.repository, two.chain, bad.number)
    assert two.settle() == [bad.number + 1] * 2
    assert next(valid_releases(two.repository, two.chain)).origin == old.number
    assert two.marks() == [71] * 2


def test_a_replica_that_hung_is_told_by_the_next_run(two: Fleet, hasty: None) -> None:
    two.put(81)
    with two.hanging(0), two.load(1):
        rollout = two.put(82)
    assert states(rollout) == ["slow", "live"]
    assert eventually(lambda: two.settle() == [rollout.release.number] * 2)
    assert two.marks() == [82] * 2
