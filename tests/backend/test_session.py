"""Sessions: their threads leave the processor to others when a run has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import Graph

from gati.inference.session import MOST_THREADS, THREADS, open_session, run_chain, threads

SIDE = 1024
PAUSES = """
import sys, time
import numpy as np
from gati.inference.session import open_session, run

session = open_session(sys.argv[1])
row = {"x": np.ones((8, int(sys.argv[2])), np.float32)}
run(session, ["y"], row)
time.sleep(0.2)
begun, used = time.perf_counter(), time.process_time()
for _ in range(20):
    run(session, ["y"], row)
    time.sleep(0.03)
print((time.process_time() - used) / (time.perf_counter() - begun))
"""


def test_threads_do_not_wait_busily_between_runs(tmp_path: Path) -> None:
    graph = Graph()
    graph.linear(graph.input("x", ["batch", SIDE]), SIDE, SIDE, name="y")
    command = [sys.executable, "-c", PAUSES, str(graph.save(tmp_path / "net.onnx", "y")), str(SIDE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {THREADS: "2"})
    assert float(done.stdout) < 0.5  # of one core; a thread that waits busily for the next run takes one


def test_threads_are_as_many_as_asked_for_else_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "3")
    assert threads() == 3
    monkeypatch.delenv(THREADS)
    for cores, expected in ((5, 5), (100, MOST_THREADS)):
        monkeypatch.setattr("gati.inference.session.cores", lambda cores=cores: cores)
        assert threads() == expected


def test_a_chain_reads_what_was_given_at_first_and_what_those_before_gave(tmp_path: Path) -> None:
    first, second = Graph(), Graph()
    first.node("Neg", first.input("x", ["n"]), name="h")
    second.node("Add", second.input("h", ["n"]), second.input("mask", ["n"]), name="y")
    paths = [first.save(tmp_path / "first.onnx", "h"), second.save(tmp_path / "second.onnx", "y")]
    feeds = {"x": np.float32([1, 2]), "mask": np.float32([10, 20])}
    found = run_chain([*map(open_session, paths)], feeds)
    assert {name: values.tolist() for name, values in found.items()} == {
        "x": [1, 2],
        "mask": [10, 20],
        "h": [-1, -2],
        "y": [9, 18],
    }
    assert feeds.keys() == {"x", "mask"}


@pytest.mark.parametrize("module", ["gati.inference.session", "gati_export.samples.activations"])
def test_nobody_is_told_of_models_that_are_opened(tmp_path: Path, module: str) -> None:
    """ONNX Runtime puts a file into the temporary folder as soon as it may tell its makers."""
    graph = Graph()
    graph.linear(graph.input("x", ["batch", 2]), 2, 2, name="y")
    path, home = graph.save(tmp_path / "net.onnx", "y"), tmp_path / "home"
    home.mkdir()
    code = f"import sys, {module}; from pathlib import Path; from gati.inference.session import open_session\n"
    code += "open_session(Path(sys.argv[1]))"
    silencing = {"ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in silencing}
    environment |= {"TMPDIR": str(home), "HOME": str(home)}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)
    assert [*home.rglob("*")] == []
