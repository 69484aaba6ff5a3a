"""Sessions: opened by several threads of a process at once, as a release is loaded while requests come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from graphs import Graph

from gati.session import THREADS

OPENED_AT_ONCE = """
import sys, threading, time
import onnxruntime as ort
from gati.session import open_session

size = ort.set_global_thread_pool_sizes

def slowly(*sizes):
    time.sleep(0.2)  # whoever comes second comes while the first is at it
    size(*sizes)

ort.set_global_thread_pool_sizes = slowly
opened = []
threads = [threading.Thread(target=lambda: opened.append(open_session(sys.argv[1]))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(opened))
"""


def test_threads_that_open_the_first_sessions_at_once_all_get_theirs(tmp_path: Path) -> None:
    graph = Graph()
    graph.linear(graph.input("x", ["batch", 2]), 2, 2, name="y")
    path = graph.save(tmp_path / "net.onnx", "y")
    done = subprocess.run([sys.executable, "-c", OPENED_AT_ONCE, str(path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


OPENED_TO_SERVE = """
import sys
from gati.session import open_session, run, stop_waiting
import numpy as np

if "shared before" in sys.argv:
    open_session(sys.argv[1])
stop_waiting()
session = open_session(sys.argv[1])
run(session, ["y"], {"x": np.ones((1, 2), np.float32)})
options = session.get_session_options()
print(options.use_per_session_threads, options.intra_op_num_threads)
"""


@pytest.mark.parametrize(
    ("threads", "before", "expected"),
    [("2", "", "True 2"), ("8", "", "True 8"), ("9", "", "False 0"), ("2", "shared before", "False 0")],
)
def test_sessions_that_serve_have_threads_of_their_own_where_these_are_few(
    threads: str, before: str, expected: str, tmp_path: Path
) -> None:
    graph = Graph()
    graph.linear(graph.input("x", ["batch", 2]), 2, 2, name="y")
    command = [sys.executable, "-c", OPENED_TO_SERVE, str(graph.save(tmp_path / "net.onnx", "y")), before]
    environment = os.environ | {THREADS: threads}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{expected}\n"
