"""Sessions: their threads leave the processor to others when a run has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from graphs import Graph

from gati.session import MOST_THREADS, THREADS, threads

SIDE = 1024
PAUSES = """
import sys, time
import numpy as np
from gati.session import open_session, run

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
        monkeypatch.setattr("gati.session.cores", lambda cores=cores: cores)
        assert threads() == expected
