"""Sessions: opened by several threads of a process at once, as a release is loaded while requests come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from graphs import Graph

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
