"""What ONNX Runtime says of a request becomes the client's to know, and what it says of the machine the log's."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from graphs import Graph
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from gati.errors import RequestError
from gati.inference.loaded import _run
from gati.inference.session import open_session, run


def test_inputs_that_do_not_go_together_are_the_clients_to_change() -> None:
    graph = Graph()
    graph.node("Add", graph.input("ids", ["n", "length"]), graph.input("mask", ["n", "length"]), name="y")
    session = open_session(graph.model("y").SerializeToString())
    ids = np.zeros((1, 3), np.float32)
    asked = partial(_run, run, session, ["y"])
    assert asked({"ids": ids, "mask": ids}).shape == (1, 3)
    with pytest.raises(RequestError, match=r"^the model can't take these inputs: .*running Add node"):
        asked({"ids": ids, "mask": ids[:, :2]})


@pytest.mark.parametrize("said", ["bad allocation", "Failed to allocate memory for requested buffer", "CUDA failure 2"])
def test_what_the_machine_fails_at_is_not(said: str) -> None:
    def fails(*_: Any) -> list[Any]:
        raise RuntimeException(said)

    with pytest.raises(RuntimeException):
        _run(fails, None, ["y"], {})
