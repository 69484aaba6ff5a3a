"""What is served beside scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import label_tail, toy_chain

from gati.errors import GatiError, RepositoryError
from gati.inference.tail import Tail
from gati.repository.chain import Chain, Tensor

SCORES = np.array([[0, 3, 1, 2], [9, 3, 1, 2]], np.float32)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """A chain with a label, whose tail is on disk."""
    chain, tail = label_tail(toy_chain())
    chain.tail_path(tmp_path).parent.mkdir(parents=True)
    chain.tail_path(tmp_path).write_bytes(tail)
    return chain


def test_only_what_is_wanted_is_computed(chain: Chain, tmp_path: Path) -> None:
    tail = Tail(tmp_path, chain)
    made = tail.outputs(SCORES, {"label", "y", "exit"})
    assert made.keys() == {"label"}
    assert made["label"].tolist() == [1, 0]
    assert tail.outputs(SCORES, {"y", "release"}) == {}


def test_scores_that_it_can_not_take_are_told(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(GatiError, match="label can't be computed of the scores"):
        Tail(tmp_path, chain).outputs(SCORES[0], {"label"})


def test_a_tail_that_is_missing_another_or_damaged_is_refused(chain: Chain, tmp_path: Path) -> None:
    path = chain.tail_path(tmp_path)
    with pytest.raises(RepositoryError, match=r"tail\.onnx is not the one that chain\.json names"):
        Tail(tmp_path, replace(chain, tail="0" * 64))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RepositoryError, match="is not the one"):
        Tail(tmp_path, chain)
    path.unlink()
    with pytest.raises(RepositoryError, match=r"tail\.onnx can't be read"):
        Tail(tmp_path, chain)


def test_a_manifest_says_what_is_served(chain: Chain) -> None:
    assert Chain.from_json(chain.to_json()) == chain
    assert chain.served == (chain.output, Tensor("label", "INT64", ()))
    assert toy_chain().served == (chain.output,)
