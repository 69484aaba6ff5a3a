"""Faults against a real `gati serve`: whoever is killed, answers come again, and releases and samples stay whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, Exported, Serve
from drafts import ALWAYS, in_mode, marked_draft
from hostile import HARMS
from publishers import publish_often, refresh_once, start
from running import GATI, eventually, started
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from gati.errors import GatiError
from gati.repository.release import numbers_on_disk, valid_releases
from gati.repository.workspace import workspace
from gati.settings import STORE
from gati.triton.ports import HOST, Ports, choose
from gati.triton.stubs import NAME, SHARED_MEMORY
from gati_client import Client, ClientError
from gati_export.releases.control import Control
from gati_export.releases.rollout import publish_to
from gati_export.samples.store import default_store, read_recent

pytestmark = pytest.mark.triton

ROUNDS = {"publisher": 24, "refresher": 16, "orchestrator": 6, "server": 4}
SECONDS = 60
PATIENCE = "--patience", "5"
HANGS = f"The process of {MODEL!r} hangs; it is killed."
ORCHESTRATOR = NAME, f"/{MODEL}/1/"
TWO_HEADS = {0: ALWAYS, 2: ALWAYS}
SAMPLES = 500
"""That are recorded before anyone is killed: enough to train with."""


class Supervised:
    """`gati serve` on ports of its own, started again when it ends, as a supervisor would; and a client that asks."""

    def __init__(self, exported: Exported, folder: Path) -> None:
        self.repository, self.chain, self.images = exported.copy(folder), exported.chain, exported.images
        self.ports = choose(Ports(0, 0, 0), HOST)
        self.address = f"{HOST}:{self.ports.grpc}"
        self.said = folder / "said"
        self.answered = 0
        self.releases: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._supervise, self._ask)]
        for thread in self._threads:
            thread.start()

    def _supervise(self) -> None:
        options = [f"--{name}-port={port}" for name, port in vars(self.ports).items()]
        with self.said.open("a") as said:
            while not self._stop.is_set():
                command = [*GATI, "serve", str(self.repository), *options, "--audit", "0", *PATIENCE]
                self.process = subprocess.Popen(command, stdout=said, stderr=said)
                while self.process.poll() is None and not self._stop.wait(0.05):
                    pass
            self.process.terminate()
            self.process.wait(SECONDS)

    def _ask(self) -> None:
        """Asks again and again, a new connection after each failure; notes which release answered."""
        turn = 0
        while not self._stop.is_set():
            with suppress(ClientError), Client(self.address, MODEL) as client:
                while not self._stop.is_set():
                    turn += 1
                    answer = client.infer(
                        self.images[np.arange(16 * turn, 16 * turn + 16) % len(self.images)], timeout=5
                    )
                    assert answer.release is not None
                    self.releases.append(int(answer.release.max()))
                    self.answered += 1
                    self._stop.wait(0.01)
            self._stop.wait(0.05)

    def answers(self) -> bool:
        """Whether requests that are sent from now on are answered."""
        before = self.answered
        return eventually(lambda: self.answered > before + 1, SECONDS)

    def live(self) -> int:
        with Control(self.address, self.repository) as control:
            return control.live_release(self.chain)

    def below(self, name: str, argument: str = "") -> list[int]:
        """Processes of this name that work on the repository, and on that argument of theirs."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                arguments = path.read_bytes().decode(errors="replace").split("\0")
                if Path(arguments[0]).name == name and f"{self.repository}{argument}" in "".join(arguments):
                    found.append(int(path.parent.name))
        return found

    def shards(self) -> list[Path]:
        return sorted((workspace(self.repository) / "samples" / MODEL).glob("[0-9]*.parquet"))

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)


@pytest.fixture(scope="module")
def supervised(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    for _ in range(3):  # another test's server may get one of the ports first, and answer in its place
        running = Supervised(exported, tmp_path_factory.mktemp("faults"))
        if running.answers() and running.below("tritonserver"):
            break
        running.close()
    assert running.below("tritonserver")
    yield running
    running.close()


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join(SECONDS)


def test_whoever_is_killed_answers_come_again_and_nothing_is_left_half_done(
    supervised: Supervised, tmp_path: Path
) -> None:
    chance, run = random.Random(7), supervised
    draft = marked_draft(run.chain, 5, TWO_HEADS)
    assert eventually(lambda: sum(pq.read_metadata(p).num_rows for p in run.shards()) > SAMPLES, 2 * SECONDS)

    def publisher() -> None:
        process = start(publish_often, run.repository, run.chain, draft, run.address, 9, tmp_path / "numbers")
        time.sleep(chance.uniform(0, 0.5))
        kill(process)

    def refresher() -> None:
        process = start(refresh_once, run.repository, run.chain, default_store(run.repository), SAMPLES, run.address)
        time.sleep(chance.uniform(0, 1.5))
        kill(process)

    def one_of(*which: str) -> Callable[[], None]:
        def die() -> None:
            time.sleep(chance.uniform(0, 0.3))
            os.kill(run.below(*which)[0], signal.SIGKILL)

        return die

    victims = {
        "publisher": publisher,
        "refresher": refresher,
        "orchestrator": one_of(*ORCHESTRATOR),
        "server": one_of("tritonserver"),
    }
    rounds = [victim for victim, count in ROUNDS.items() for _ in range(count)]
    chance.shuffle(rounds)
    assert len(rounds) == 50
    highest = live = 1
    for victim in rounds:
        victims[victim]()
        assert run.answers(), victim
        releases = [release.number for release in valid_releases(run.repository, run.chain)]
        assert live <= (live := run.live()) <= releases[0], victim
        highest = max(highest, releases[0])
        assert releases[0] == highest, f"{victim}: a release that was complete is gone"
    release = publish_to(run.repository, run.chain, marked_draft(run.chain, 6), run.address).release
    assert release.number > max(highest, live)
    assert numbers_on_disk(run.repository, run.chain)[0] == release.number == run.live()
    assert not list((workspace(run.repository) / "staging").glob("*"))
    assert HANGS not in run.said.read_text(), "nobody hung, however busy the machine was"
    seen = [number for number in run.releases if number]
    assert seen == sorted(seen) and len(set(seen)) > 1, "releases were not seen in order"
    assert eventually(lambda: len(run.below("triton_python_backend_stub")) == 1), "processes of killed servers are left"
    rows = sum(pq.read_metadata(path).num_rows for path in run.shards())
    assert read_recent(default_store(run.repository), run.chain, 10**9).window.samples >= rows


def test_a_killed_orchestrator_is_started_again(supervised: Supervised) -> None:
    before = supervised.below(*ORCHESTRATOR)
    said = supervised.said.read_text().count("was killed; it is loaded again")
    os.kill(before[0], signal.SIGKILL)
    assert supervised.answers()
    assert not set(before) & set(supervised.below(*ORCHESTRATOR))
    assert supervised.said.read_text().count(f"The process of {MODEL!r} was killed; it is loaded again.") == said + 1
    with urllib.request.urlopen(f"http://{HOST}:{supervised.ports.metrics}/metrics", timeout=5) as page:
        lines = [line.rpartition(" ")[0] for line in page.read().decode().splitlines() if line.startswith("gati_")]
    assert len(lines) == len(set(lines)), "each series is there once"


def test_an_orchestrator_that_hangs_is_killed_and_started_again(supervised: Supervised) -> None:
    (before,) = supervised.below(*ORCHESTRATOR)
    os.kill(before, signal.SIGSTOP)
    assert eventually(lambda: before not in supervised.below(*ORCHESTRATOR), SECONDS)
    assert supervised.answers()
    assert supervised.said.read_text().count(HANGS) == 1


def test_a_hostile_head_is_refused_while_requests_are_answered(supervised: Supervised) -> None:
    for harm in HARMS:
        draft = marked_draft(supervised.chain, 9)
        draft.heads[0] = harm(draft.heads[0])
        with pytest.raises(GatiError, match=harm.reason):
            publish_to(supervised.repository, supervised.chain, draft, supervised.address)
    assert supervised.answers()


def test_a_killed_server_leaves_no_shared_memory(supervised: Supervised) -> None:
    maps = Path(f"/proc/{supervised.below('tritonserver')[0]}/maps").read_text()
    regions = {line.split()[5] for line in maps.splitlines() if f"{SHARED_MEMORY}/triton" in line}
    assert regions
    os.kill(supervised.below("tritonserver")[0], signal.SIGKILL)
    assert supervised.answers()
    assert not [region for region in regions if Path(region).exists()]


def test_a_release_is_loaded_though_the_clock_was_set_back(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    """In BLS mode Triton loads what it is told to only where it is newer, by its date, than what it has loaded."""
    repository, chain = exported.copy(tmp_path, "bls"), in_mode(exported.chain, "bls")
    future = time.time() + 3600
    for path in (repository / chain.head_model(0)).rglob("*"):
        os.utime(path, (future, future))
    running = started(exported, serve, tmp_path, "bls", repository)
    assert running.put(3).number == 2
    assert running.put(4).number == 3
    assert running.marks() == ([4] * 4, [3] * 4)


# Nothing can be written


def as_nobody(arguments: list[str], **how: Any) -> subprocess.Popen[str]:
    """Runs a command without root's right to write everywhere."""
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    return subprocess.Popen([*drop, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.fixture
def sealed(exported: Exported, tmp_path: Path) -> Iterator[Path]:
    """A repository that can't be written, nor anything beside it."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to change that")
    repository = exported.copy(tmp_path / "sealed")
    folders = [repository.parent, *(path for path in repository.rglob("*") if path.is_dir()), repository]
    for folder in folders:
        folder.chmod(0o555)
    yield repository
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_repository_that_can_not_be_written_is_served_and_nothing_is_kept(
    exported: Exported, sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    said, store = tmp_path / "said.json", tmp_path / "store"
    store.mkdir()
    store.chmod(0o777)
    if elsewhere:
        monkeypatch.setenv(STORE, str(store))
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    process = as_nobody([*GATI, "serve", str(sealed), *ports, "--json", str(said)])
    assert eventually(lambda: process.poll() is not None or said.exists(), SECONDS)
    try:
        assert process.poll() is None, process.communicate()
        with Client(json.loads(said.read_text())["grpc"], MODEL) as client:
            answer = client.infer(exported.images[:4])
        assert answer.release is not None and answer.release.any()
    finally:
        process.terminate()
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    warnings = [line for line in err.splitlines() if "Warning" in line]
    assert len(warnings) == 1 and "nothing is kept" in warnings[0]
    assert [path.name for path in sealed.parent.iterdir()] == [sealed.name]
    assert bool(list(store.rglob("*.parquet"))) == elsewhere


def test_publishing_to_a_repository_that_can_not_be_written_is_one_sentence(sealed: Path) -> None:
    process = as_nobody([*GATI, "rollback", MODEL, "--repository", str(sealed), "--to", "1"])
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert err.count("\n") == 1 and "can't be written (" in err and "nothing can be published" in err


# What a client may send


LARGE = np.zeros((1, 1, 4096, 8192), np.float32)
"""128 MiB."""


def refused_by_http(supervised: Supervised, body: bytes) -> urllib.error.URLError | ConnectionError:
    url = f"http://{HOST}:{supervised.ports.http}/v2/models/{MODEL}/infer"
    with pytest.raises((urllib.error.URLError, ConnectionError)) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body), timeout=30)
    return caught.value


def test_a_request_that_is_too_large_or_none_gets_its_status_and_the_server_lives(supervised: Supervised) -> None:
    before = supervised.below("tritonserver")
    tensor = grpc.InferInput("image", list(LARGE.shape), "FP32")
    tensor.set_data_from_numpy(LARGE)
    with (
        grpc.InferenceServerClient(supervised.address) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        client.infer(MODEL, [tensor])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    for body in (b"", b"{", b"[" * 100_000):
        error = refused_by_http(supervised, body)
        assert isinstance(error, urllib.error.HTTPError) and error.code >= 400
    assert supervised.answers()
    assert supervised.below("tritonserver") == before


def test_a_body_that_crashes_triton_stops_the_service_only_for_a_moment(supervised: Supervised) -> None:
    """Triton 2.51 does not survive a JSON body of this size."""
    refused_by_http(supervised, LARGE.tobytes())
    assert supervised.answers()


@pytest.mark.parametrize("name", ["../models/digits", "..%2f..%2fetc", "digits/../digits", "/etc/passwd", "digits/1"])
def test_a_model_s_name_is_no_path(supervised: Supervised, name: str) -> None:
    tensor = grpc.InferInput("image", [1, 1, 16, 16], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1, 16, 16), np.float32))
    with grpc.InferenceServerClient(supervised.address) as client:
        with pytest.raises(InferenceServerException):
            client.infer(name, [tensor])
        with pytest.raises(InferenceServerException):
            client.load_model(name)
    assert supervised.answers()


def test_shared_memory_is_closed_without_the_token(supervised: Supervised) -> None:
    """Else a client could have the server's own memory read and written, by the name of its region."""
    region = "/" + Path(next(iter(SHARED_MEMORY.glob("triton_gati*")))).name
    with grpc.InferenceServerClient(supervised.address) as client, pytest.raises(InferenceServerException):
        client.register_system_shared_memory("mine", region, 64)
    url = f"http://{HOST}:{supervised.ports.http}/v2/systemsharedmemory/region/mine/register"
    body = json.dumps({"key": region, "offset": 0, "byte_size": 64}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body), timeout=5)
    assert caught.value.code == 403
