"""The processes of a server's models: whose they are, and which were killed; by processes that only look like them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from running import eventually

from gati.system.proc import arguments, children, descendants
from gati.triton import stubs
from gati.triton.stubs import NAME, Stubs, end_orphans, model_of
from gati_export.bench.processes import peak_mib

CONTAINER = "unshare", "--fork", "--pid", "--kill-child"
Start = Callable[..., subprocess.Popen[bytes]]


def can_contain() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*CONTAINER, "true"], check=False).returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts what looks like the process of an instance of a model, and waits until told to end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(
        model: str, instance: str, server: int = os.getpid(), within: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        file = tmp_path / "models" / model / "1" / "model.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("echo\nread _\n")  # it is the shell that reads it
        sizes, rest = ("1048576", "1"), (str(server), "backends", "1", instance)
        words = [str(tmp_path / NAME), str(file), f"region-{instance}", *sizes, *rest]
        command = [*within, "bash", "-c", 'exec -a "$0" /bin/sh "$@"', *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_the_model_of_a_process_is_known_whatever_its_instance_is_named(start: Start) -> None:
    for instance in ("toy_0_0", "toy_0_1", "toy_1_0", "fast_0"):
        process = start("toy", instance)
        assert process.pid in children(os.getpid()) and process.pid in descendants(os.getpid())
        assert model_of(arguments(process.pid)) == "toy"
    assert model_of(arguments(os.getpid())) is None
    assert model_of([]) is None
    one, all_four = peak_mib(os.getpid(), ["other"]), peak_mib(os.getpid(), ["toy"])
    assert one is None and all_four is not None and all_four > 4 * 0.3


def test_of_two_processes_of_a_model_each_that_is_killed_is_told_once(start: Start) -> None:
    first, second, other = start("toy", "toy_0_0"), start("toy", "toy_0_1"), start("other", "other_0_0")
    seen = Stubs(os.getpid())
    assert seen.killed() == []
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    assert seen.killed() == [], "Triton may be about to wait for it"
    assert seen.killed() == ["toy"]
    assert seen.killed() == []
    assert seen.end(second.pid) == "toy" and seen.end(first.pid) is None
    os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)
    assert [seen.killed() for _ in range(3)] == [[], ["toy"], []]
    assert other.poll() is None


def test_a_process_that_was_killed_before_anybody_saw_it_is_told_once(start: Start) -> None:
    seen = Stubs(os.getpid())
    seen.expect("toy")
    assert [seen.killed() for _ in range(2)] == [["toy"], []]
    process = start("toy", "toy_0_0")
    seen.expect("toy")
    assert seen.killed() == [], "it is there"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seen.expect("toy")
    assert [seen.killed() for _ in range(3)] == [[], ["toy"], []], "it was seen, and may be waited for"


def test_what_a_killed_server_leaves_is_ended_if_it_does_not_end_by_itself(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stubs, "ENDING_SECONDS", 0.2)
    monkeypatch.setattr(stubs, "SHARED_MEMORY", tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, ours, other = start("toy", "toy_0_0", gone.pid), start("toy", "toy_0_1"), start("toy", "toy_1_0", gone.pid)
    regions = [tmp_path / f"region-toy_{instance}" for instance in ("0_0", "0_1")]
    for region in regions:
        region.touch()
    end_orphans(tmp_path / "elsewhere")
    assert not eventually(lambda: any(process.poll() for process in (left, ours, other)), 0.5)
    other.kill()
    end_orphans(tmp_path / "models")
    assert left.poll() is None, "it may be writing what it has recorded"
    assert eventually(lambda: left.poll() is not None and not regions[0].exists(), 5)
    assert ours.poll() is None and regions[1].exists(), "its server is there"


@pytest.mark.skipif(not can_contain(), reason="no container can be made here")
def test_a_container_s_processes_are_left_alone(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from outside, its servers have other numbers, and its paths may be any repository's."""
    monkeypatch.setattr(stubs, "ENDING_SECONDS", 0.2)
    monkeypatch.setattr(stubs, "SHARED_MEMORY", tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    theirs, ours = start("toy", "toy_0_0", gone.pid, CONTAINER), start("toy", "toy_0_1", gone.pid)
    assert model_of(arguments(children(theirs.pid)[0])) == "toy"
    end_orphans(tmp_path / "models")
    assert eventually(lambda: ours.poll() is not None, 5)
    assert not eventually(lambda: theirs.poll() is not None, 1)
