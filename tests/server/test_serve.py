"""`gati serve` as a user runs it: a process with a server under it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MODEL, PLAIN, Exported
from running import GATI, until
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

from gati.errors import UnavailableError
from gati.repository.chain import Mode
from gati.repository.workspace import workspace
from gati.system.proc import arguments, children, descendants
from gati.triton import server
from gati.triton.log import failure
from gati.triton.model_control import HEADER, ModelControl, is_ready
from gati.triton.ports import HOST, Ports, choose
from gati.triton.server import running_ports
from gati.triton.slot import Slot
from gati.triton.stubs import SHARED_MEMORY, Stubs, model_of
from gati_client import Client
from gati_export.samples.store import default_store, read_recent

pytestmark = pytest.mark.triton

FREE = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
SECONDS = 60


@dataclass(frozen=True)
class Running:
    """`gati serve` at work, and what its --json says."""

    process: subprocess.Popen[str]
    repository: Path
    said: dict[str, Any]

    def images(self, images: np.ndarray, protocol: str = "http", **where: Any) -> np.ndarray:
        api: Any = {"http": http, "grpc": grpc}[protocol]
        tensor = api.InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        with api.InferenceServerClient(self.said[protocol]) as client:
            return client.infer(MODEL, [tensor], **where).as_numpy("exit")


Start = Callable[..., Running]


PROXY = {"http_proxy": f"http://{HOST}:9", "HTTP_PROXY": f"http://{HOST}:9"}
"""Nobody listens there: servers on this machine are not asked through a proxy, and none is told the token."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `gati serve`, and ends what a test has left running."""
    started: list[subprocess.Popen[str]] = []

    def run(repository: Path, *options: str, under: Sequence[str] = ()) -> Running:
        said = tmp_path / f"serve-{len(started)}.json"
        command = [*under, *GATI, "serve", str(repository), *FREE, "--json", str(said), *options]
        process = subprocess.Popen(
            command, env=os.environ | PROXY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        until(lambda: process.poll() is not None or (said.exists() and said.read_text().endswith("}\n")))
        assert process.poll() is None, process.communicate()
        return Running(process, repository, json.loads(said.read_text()))

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=SECONDS)


def refused(*arguments: str) -> str:
    """Runs a command that must fail in one sentence; returns it."""
    done = subprocess.run([*GATI, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Starting tritonserver")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("Error: ")
    assert "Traceback" not in done.stderr
    return errors[0]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _shared_memory(pids: list[int]) -> set[str]:
    """The shared memory that processes have mapped."""
    found = set()
    for pid in pids:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found |= {line.split()[5] for line in maps if "/dev/shm/triton" in line}
    return found


@pytest.mark.parametrize(
    ("mode", "number"), [("inline", signal.SIGINT), ("bls", signal.SIGTERM)], ids=["inline, SIGINT", "bls, SIGTERM"]
)
def test_a_signal_ends_it_with_everything_written_and_nothing_left(
    exported: Exported, start: Start, tmp_path: Path, mode: Mode, number: int
) -> None:
    running = start(exported.copy(tmp_path, mode), "--audit", "0")
    idle = http.InferenceServerClient(running.said["http"])  # holds its connection open
    tensor = http.InferInput("image", [16, 1, 16, 16], "FP32")
    tensor.set_data_from_numpy(exported.images[:16])
    idle.infer(MODEL, [tensor])
    below = descendants(running.process.pid)
    memory = _shared_memory([running.said["pid"]])
    assert running.said["pid"] in below
    assert memory
    assert len(running_ports(running.repository)) == 1
    running.process.send_signal(number)
    out, err = running.process.communicate(timeout=SECONDS)
    assert running.process.returncode == 0
    assert err.splitlines()[-1] == "Stopping ..."
    until(lambda: not any(_alive(pid) for pid in below))
    assert not [name for name in memory if Path(name).exists()]
    assert running_ports(running.repository) == []
    assert read_recent(default_store(running.repository), exported.chain, 100).window.samples == 16
    for protocol in ("grpc", "http", "metrics"):
        assert running.said[protocol] in out
    assert MODEL in out
    idle.close()


def test_a_killed_command_takes_its_server_along(exported: Exported, start: Start, tmp_path: Path) -> None:
    running = start(exported.copy(tmp_path))
    below = descendants(running.process.pid)
    running.process.kill()
    until(lambda: not any(_alive(pid) for pid in below))
    again = start(running.repository)
    assert again.images(exported.images[:1]).shape == (1, 1)


def test_a_command_that_is_started_again_waits_for_the_ports_of_the_one_that_was_killed(
    exported: Exported, start: Start, tmp_path: Path
) -> None:
    running = start(exported.copy(tmp_path))
    os.kill(running.said["pid"], signal.SIGSTOP)  # it takes its time
    running.process.kill()
    running.process.wait()
    ports = [text for p in ("grpc", "http") for text in (f"--{p}-port", running.said[p].rpartition(":")[2])]
    resume = threading.Timer(3, os.kill, (running.said["pid"], signal.SIGCONT))
    resume.start()
    again = start(running.repository, *ports)
    resume.join()
    assert again.said["grpc"] == running.said["grpc"]
    assert again.images(exported.images[:1]).shape == (1, 1)


def test_what_a_server_said_that_was_killed_is_kept_when_the_next_one_runs(
    exported: Exported, start: Start, tmp_path: Path
) -> None:
    running = start(exported.copy(tmp_path))
    log = workspace(running.repository) / "server.log"
    os.kill(running.said["pid"], signal.SIGKILL)
    _, err = running.process.communicate(timeout=SECONDS)
    assert str(log) in err
    said = log.read_text()
    start(running.repository)
    assert log.with_name("server.log.1").read_text() == said != log.read_text()


def test_the_answer_under_way_is_given_before_the_end(exported: Exported, start: Start, tmp_path: Path) -> None:
    running = start(exported.copy(tmp_path), "--workers", "1")
    api = grpc.InferenceServerClient(running.said["grpc"])
    told: list[Any] = []
    tensor = grpc.InferInput("image", [32, 1, 16, 16], "FP32")
    tensor.set_data_from_numpy(exported.images[:32])
    for _ in range(40):
        api.async_infer(MODEL, [tensor], lambda result, error: told.append(error), parameters={"gati_mode": "exact"})
    until(lambda: len(told) > 0)
    running.process.terminate()
    running.process.communicate(timeout=SECONDS)
    until(lambda: len(told) == 40)
    allowed = (
        "is not ready",
        "not found",
        "unavailable",
        "is not found",
        "Socket closed",
        "connect",
        "has no available",
    )
    for error in told:
        assert error is None or any(text.lower() in str(error).lower() for text in allowed), str(error)
    assert told.count(None) > 0
    api.close()


def test_no_record_keeps_nothing(exported: Exported, start: Start, tmp_path: Path) -> None:
    running = start(exported.copy(tmp_path), "--no-record")
    running.images(exported.images[:8])
    running.process.terminate()
    out, _ = running.process.communicate(timeout=SECONDS)
    assert "samples  not kept" in out.splitlines()
    assert not Path(default_store(running.repository)).exists()


def test_its_server_s_end_is_the_end(exported: Exported, start: Start, tmp_path: Path) -> None:
    running = start(exported.copy(tmp_path))
    below = descendants(running.process.pid)
    os.kill(running.said["pid"], signal.SIGKILL)
    _, err = running.process.communicate(timeout=SECONDS)
    assert running.process.returncode == 1
    assert "tritonserver ended by itself" in err.splitlines()[-1]
    until(lambda: not any(_alive(pid) for pid in below))


def test_models_are_controlled_only_with_the_token(exported: Exported, start: Start, tmp_path: Path) -> None:
    running = start(exported.copy(tmp_path, plain=True))
    path = workspace(running.repository) / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text().strip()
    with grpc.InferenceServerClient(running.said["grpc"]) as client:
        for headers in (None, {f"triton-grpc-protocol-{HEADER}": "guessed"}):
            for call in (client.load_model, client.unload_model):
                with pytest.raises(InferenceServerException):
                    call(PLAIN, headers=headers)
        client.load_model(PLAIN, headers={f"triton-grpc-protocol-{HEADER}": token})
    url = f"http://{running.said['http']}/v2/repository/models/{PLAIN}/load"
    for headers in ({}, {HEADER: "guessed"}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=5)
        assert caught.value.code == 403
    with urllib.request.urlopen(urllib.request.Request(url, b"{}", {HEADER: token}), timeout=5) as answer:
        assert answer.status == 200
    assert running.images(exported.images[:1]).shape == (1, 1)


READ_ONLY = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
"""Runs a script that may mount, and what it mounts is seen by nobody else."""


@pytest.mark.skipif(
    subprocess.run([*READ_ONLY, "true"], capture_output=True, check=False).returncode != 0,
    reason="no mount namespaces here",
)
def test_it_serves_as_a_container_does(exported: Exported, start: Start, tmp_path: Path) -> None:
    """On all interfaces, from a repository and with a token that are mounted read-only, its log on stderr."""
    repository = exported.copy(tmp_path)
    token = workspace(repository) / "token"
    token.parent.mkdir()
    token.write_text("of-a-secret\n")
    mounts = [f'mount --bind "{path}" "{path}"; mount -o remount,bind,ro "{path}"' for path in (repository, token)]
    script = "; ".join([*mounts, f'if touch "{repository}/file" 2>/dev/null; then exit 9; fi', 'exec "$@"'])
    running = start(repository, "--host", "0.0.0.0", "--log", "-", under=[*READ_ONLY, script, "sh"])
    address = running.said["grpc"].replace("0.0.0.0", "127.0.0.2")  # what binds 127.0.0.1 does not hear this one
    with grpc.InferenceServerClient(address) as client:
        for headers, refusal in ((None, "restricted"), ({f"triton-grpc-protocol-{HEADER}": "of-a-secret"}, "open")):
            with pytest.raises(InferenceServerException, match=refusal):
                client.register_system_shared_memory("theirs", "/nonesuch", 64, headers=headers)
    assert running.images(exported.images[:8]).shape == (8, 1)
    running.process.terminate()
    _, err = running.process.communicate(timeout=SECONDS)
    assert "release 1 is live" in err
    assert read_recent(default_store(repository), exported.chain, 100).window.samples == 8
    left = {path.name for path in workspace(repository).iterdir()}
    assert left - {"breaker"} == {"minutes", "samples", "server.lock", "token"}  # evidence, where one was drawn


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _segment(repository: Path, index: int) -> Path:
    return repository / f"{MODEL}-segment-{index}" / "1" / "model.onnx"


def _other(repository: Path) -> None:
    _segment(repository, 1).write_bytes(_segment(repository, 2).read_bytes())


def _without_backend(repository: Path) -> None:
    path = repository / MODEL / "config.pbtxt"
    path.write_text(path.read_text().replace('"gati"', '"nonesuch"'))


def _damaged_config(repository: Path) -> None:
    (repository / PLAIN / "config.pbtxt").write_text("name: {")


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "chain.json cut": (lambda r: _halve(r / MODEL / "1" / "chain.json"), r"chain.json is damaged"),
    "segment cut": (lambda r: _halve(_segment(r, 1)), f"{MODEL}-segment-1"),
    "another segment": (_other, "is not the one that chain.json names"),
    "unknown backend": (_without_backend, "nonesuch"),
    "config.pbtxt damaged": (_damaged_config, f"'{PLAIN}'"),
}


@pytest.mark.parametrize(
    ("mode", "harm"), [("inline", harm) for harm in HARM if harm != "another segment"] + [("bls", "another segment")]
)
def test_a_damaged_repository_is_told_in_one_sentence(
    exported: Exported, tmp_path: Path, mode: Mode, harm: str
) -> None:
    repository = exported.copy(tmp_path, mode, plain=True)
    damage, names = HARM[harm]
    damage(repository)
    assert names in refused("serve", str(repository), *FREE)
    if harm != "chain.json cut":  # which is told before there is a server
        log = workspace(repository) / "server.log"
        log.write_text(log.read_text().partition("error: creating server")[0])  # as where Triton dies while it unloads
        assert names in failure(log)


def test_a_folder_that_is_no_repository_is_told(tmp_path: Path) -> None:
    assert "is no model repository" in refused("serve", str(tmp_path), *FREE)


@pytest.mark.parametrize("protocol", ["grpc", "http", "metrics"])
def test_a_port_that_is_taken_is_told_with_its_option(exported: Exported, tmp_path: Path, protocol: str) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        options = [*FREE, f"--{protocol}-port", str(port)]
        said = refused("serve", str(exported.copy(tmp_path)), *options)
    assert f"The {protocol} port {port} is not free" in said
    assert f"--{protocol}-port" in said


# Options that are handed on to tritonserver


def test_what_stands_behind_two_dashes_is_handed_on(exported: Exported, start: Start, tmp_path: Path) -> None:
    repository, traces = exported.copy(tmp_path), tmp_path / "traces.json"
    setting = [f"--trace-config=triton,file={traces}", "--trace-config", "level=TIMESTAMPS", "--trace-config=rate=1"]
    running = start(repository, "--", *setting, "--log-format=ISO8601", "--cache-config=local,size=1048576")
    running.images(exported.images[:4])
    running.process.terminate()
    running.process.communicate(timeout=SECONDS)
    assert any(line.get("model_name") == MODEL for line in json.loads(traces.read_text()))
    assert "T" in (workspace(repository) / "server.log").read_text().split(" ")[0], "a date of ISO 8601"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--http-port=1", "tritonserver gets --http-port from gati serve itself"),
        ("--load-model=other", "tritonserver gets --load-model from gati serve itself"),
        ("other", "'other' is no option of tritonserver"),
    ],
)
def test_what_is_not_to_be_handed_on_is_wrong_use(exported: Exported, option: str, said: str) -> None:
    command = [*GATI, "serve", str(exported.repository), *FREE, "--", option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"Error: Invalid value for '[-- OPTION...]': {said}."


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--no-such-option", "unrecognized option '--no-such-option'"),
        ("--trace-config=level", "--trace-config option format is"),
    ],
)
def test_what_triton_says_of_an_option_is_told(exported: Exported, tmp_path: Path, option: str, said: str) -> None:
    assert said in refused("serve", str(exported.copy(tmp_path)), *FREE, "--", option)


@pytest.mark.triton
def test_a_process_that_dies_before_anybody_has_seen_it_is_started_again(exported: Exported, tmp_path: Path) -> None:
    """A request that made it end waited for it, or came again at once."""

    def kill(served: server.Server) -> Path:
        (stub,) = [pid for pid in children(served.process.pid) if model_of(arguments(pid)) == MODEL]
        region = SHARED_MEMORY / arguments(stub)[2]
        os.kill(stub, signal.SIGKILL)
        until(lambda: not arguments(stub))
        assert region.exists()
        return region

    with server.Server(exported.copy(tmp_path), Ports(0, 0, 0), {"GATI_STORE": "none"}) as served:
        region = kill(served)
        until(lambda: served.revive() == [MODEL])
        assert not region.exists(), "who is killed leaves no shared memory"
        kill(served)
        assert served.revive() == [MODEL] and served.revive() == []
        with Client(f"{HOST}:{served.ports.grpc}", MODEL) as client:
            assert len(client.infer(exported.images[:2]).output) == 2


@pytest.mark.triton
def test_a_process_that_nobody_has_seen_does_not_outlive_its_server(exported: Exported, tmp_path: Path) -> None:
    with server.Server(exported.copy(tmp_path), Ports(0, 0, 0), {"GATI_STORE": "none"}) as served:

        def ours() -> set[int]:
            return {pid for pid in children(served.process.pid) if model_of(arguments(pid)) == MODEL}

        before = ours()
        served._control.unload(MODEL)
        served._control.load(MODEL, 60)
        (stub,) = ours() - before
        os.kill(stub, signal.SIGSTOP)  # as one that waits for its server with the GIL held: it does not end by itself
        served.process.kill()
        region = SHARED_MEMORY / arguments(stub)[2]
        assert region.exists()
    assert not arguments(stub) and not region.exists()


@pytest.mark.triton
def test_a_free_port_that_is_taken_before_triton_listens_is_left_to_who_took_it(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Ports] = []
    regions: set[str] = set()
    clean = Stubs.clean
    monkeypatch.setattr(Stubs, "clean", lambda stubs, *given: (regions.update(stubs._regions), clean(stubs, *given)))

    def choose_late(ports: Ports, host: str) -> Ports:
        free = choose(ports, host)
        tries.append(free if tries else replace(free, grpc=other.getsockname()[1]))
        return tries[-1]

    monkeypatch.setattr(server, "choose", choose_late)
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        with server.Server(exported.copy(tmp_path), Ports(0, 0, 0)) as served:
            assert len(tries) == 2 and served.ports == tries[1] and is_ready(served.ports.http)
        tries.clear()
        with pytest.raises(UnavailableError, match=r"has taken a port .* already in use"):
            server.Server(exported.copy(tmp_path / "fixed"), choose(Ports(0, 0, 0), HOST))
        assert len(tries) == 1  # who names ports wants these
    assert len(regions) >= 3 and not [region for region in regions if (SHARED_MEMORY / region).exists()]


def test_a_full_disk_keeps_nobody_from_serving_and_what_goes_away_meanwhile_from_ending(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def cut_off(*_: object) -> None:
        raise IncompleteRead(b"")

    monkeypatch.setattr(Slot, "announce", full)
    with server.Server(exported.copy(tmp_path), Ports(0, 0, 0)) as served:
        assert is_ready(served.ports.http)
        temporary = served._temporary
        assert temporary.is_dir()
        monkeypatch.setattr(ModelControl, "_call", cut_off)
    assert served.process.poll() is not None and not temporary.exists()


def test_a_server_that_can_not_be_watched_is_ended(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    launch = server.Server._launch
    monkeypatch.setattr(
        server.Server, "_launch", lambda served, *how: (launch(served, *how), started.append(served.process.pid))
    )
    monkeypatch.setattr(Stubs, "expect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        server.Server(exported.copy(tmp_path), Ports(0, 0, 0))
    assert len(started) == 1 and not _alive(started[0])


def test_a_log_that_can_not_be_written_is_told(exported: Exported, tmp_path: Path) -> None:
    said = refused("serve", str(exported.copy(tmp_path)), *FREE, "--log", str(tmp_path / "no" / "folder" / "log"))
    assert "No such file or directory" in said
