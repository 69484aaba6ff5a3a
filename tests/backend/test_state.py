"""State of heads: bounded, starts empty, forgets the oldest."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from handmade import metadata, mixing_head, remembering_head, sure_head, toy_chain

from gati.errors import ReleaseRefused
from gati.inference.head import KEY, open_head
from gati.inference.state import CLASS_MIX, MEMORY_ANSWERS, MEMORY_KEYS, HeadState
from gati.repository.chain import Chain
from gati_export.learning.headfile import stamp

ANSWERS = np.eye(4, dtype=np.float32)


def memory(entries: int = 3) -> HeadState:
    return HeadState({MEMORY_KEYS: (entries, 2), MEMORY_ANSWERS: (entries, 4)})


def test_a_head_without_state_is_fed_none() -> None:
    state = HeadState({})
    state.count(ANSWERS)
    state.remember(np.ones((4, 2), np.float32), ANSWERS)
    assert state.feeds() == {}


def test_the_mix_starts_even_and_follows_the_answers() -> None:
    state = HeadState({CLASS_MIX: (4,)})
    assert state.feeds()[CLASS_MIX].tolist() == [0.25] * 4
    state.count(ANSWERS[[2] * 2000])
    np.testing.assert_allclose(state.feeds()[CLASS_MIX], [0, 0, 1, 0], atol=1e-3)


def test_an_empty_memory_is_far_from_everything() -> None:
    keys = memory().feeds()[MEMORY_KEYS]
    assert np.isfinite(np.square(keys - 1e6).sum(1)).all()
    assert (np.abs(keys) > 1e14).all()


def test_the_ring_keeps_the_newest_and_never_grows() -> None:
    state = memory(3)
    for i in range(100):
        state.remember(np.full((1, 2), i, np.float32), ANSWERS[[i % 4]])
    feeds = state.feeds()
    assert sorted(feeds[MEMORY_KEYS][:, 0].tolist()) == [97, 98, 99]
    assert feeds[MEMORY_KEYS].shape == (3, 2)
    newest = feeds[MEMORY_KEYS][:, 0].argmax()
    assert feeds[MEMORY_ANSWERS][newest].argmax() == 99 % 4


def test_what_was_handed_out_does_not_change_afterwards() -> None:
    state = memory()
    before = state.feeds()
    state.remember(np.ones((1, 2), np.float32), ANSWERS[:1])
    assert (before[MEMORY_KEYS] > 1e14).all()


def test_keys_and_answers_stay_together_under_threads() -> None:
    state = memory(8)

    def write(label: int) -> None:
        for _ in range(200):
            state.remember(np.full((3, 2), label, np.float32), ANSWERS[[label] * 3])

    threads = [threading.Thread(target=write, args=(label,)) for label in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    feeds = state.feeds()
    assert (feeds[MEMORY_KEYS][:, 0] == feeds[MEMORY_ANSWERS].argmax(1)).all()


def opened(chain: Chain, model: bytes) -> dict[str, tuple[int, ...]]:
    _, spec = open_head(stamp(model, metadata(chain)), chain, 0)
    return spec.state


def test_a_head_says_which_state_it_wants() -> None:
    chain = toy_chain()
    assert opened(chain, sure_head(chain, 0, 1)) == {}
    assert opened(chain, mixing_head(chain, 0)) == {CLASS_MIX: (4,)}
    assert opened(chain, remembering_head(chain, 0, 5)) == {MEMORY_KEYS: (5, 4), MEMORY_ANSWERS: (5, 4)}
    _, spec = open_head(stamp(remembering_head(chain, 0), metadata(chain)), chain, 0)
    assert KEY in spec.outputs


def test_state_of_the_wrong_shape_is_refused() -> None:
    chain = toy_chain()
    model = onnx.load_from_string(mixing_head(chain, 0))
    next(i for i in model.graph.input if i.name == CLASS_MIX).type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ReleaseRefused, match="which does not fit"):
        opened(chain, model.SerializeToString())


def test_state_of_unbounded_size_is_refused() -> None:
    chain = toy_chain()
    model = onnx.load_from_string(remembering_head(chain, 0))
    for value in model.graph.input[1:]:
        value.type.tensor_type.shape.dim[0].dim_param = "entries"
    with pytest.raises(ReleaseRefused, match="'memory_keys' whose size depends on what it is asked"):
        opened(chain, model.SerializeToString())


def test_metadata_that_is_no_json_is_refused() -> None:
    chain = toy_chain()
    with pytest.raises(ReleaseRefused, match="trained behind other segments"):
        open_head(stamp(sure_head(chain, 0, 1), {"gati.segments": "{"}), chain, 0)
