"""chain.json: what is written is read again, and what is damaged is said to be."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import toy_chain
from hypothesis import given
from hypothesis import strategies as st

from gati.errors import RepositoryError
from gati.repository.chain import DTYPES, Chain, Segment, Tensor, chain_path, find_chains, read_chain, sha256_of

names = st.text(min_size=1, max_size=12)
tensors = st.builds(
    Tensor, names, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(-1, 512), max_size=4).map(tuple)
)
shares = st.floats(0, 1)
segments = st.builds(Segment, st.integers(0, 9), st.lists(names, max_size=3).map(tuple), tensors, names, shares)
chains = st.builds(
    Chain,
    names,
    st.sampled_from(["inline", "bls"]),
    st.lists(tensors, min_size=1, max_size=3).map(tuple),
    tensors,
    st.lists(segments, min_size=1, max_size=4).map(
        lambda found: tuple(replace(s, index=i) for i, s in enumerate(found))
    ),
    shares,
    shares,
    st.integers(1, 128),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(chains)
def test_what_is_written_is_read_again(chain: Chain) -> None:
    assert Chain.from_json(chain.to_json()) == chain


@given(st.integers(0, 2000))
def test_a_text_cut_short_is_damaged(length: int) -> None:
    text = toy_chain().to_json()
    with pytest.raises(RepositoryError, match=r"^chain\.json is damaged"):
        Chain.from_json(text[: min(length, len(text) - 3)])


@given(values)
def test_any_other_json_is_refused(value: Any) -> None:
    with pytest.raises(RepositoryError):
        Chain.from_json(json.dumps(value))


@given(st.sampled_from(sorted(json.loads(toy_chain().to_json()))), values)
def test_a_field_that_holds_anything_is_read_or_refused(field: str, value: Any) -> None:
    fields = json.loads(toy_chain().to_json()) | {field: value}
    try:
        Chain.from_json(json.dumps(fields))
    except RepositoryError:
        return


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"format": 2}, "another version of gati", id="format of the future"),
        pytest.param({"mode": "magic"}, "unknown mode", id="unknown mode"),
        pytest.param({"segments": []}, "names no segments", id="no segments"),
        pytest.param({"surplus": 1}, "damaged", id="unknown field"),
        pytest.param({"output": {"name": "y", "dtype": "BF16", "shape": [4]}}, "unknown datatype", id="datatype"),
        pytest.param({"engine": "abacus"}, "unknown engine", id="unknown engine"),
        pytest.param({"epsilon": "e"}, "chain.epsilon is not a number", id="text for a number"),
        pytest.param({"epsilon": float("nan")}, "chain.epsilon is not finite", id="number that is none"),
        pytest.param({"delta": 10**400}, "damaged", id="number too large"),
        pytest.param({"max_batch": "32"}, "chain.max_batch is not a whole number", id="text for a whole number"),
        pytest.param({"max_batch": 32.0}, "chain.max_batch is not a whole number", id="fraction for a whole number"),
        pytest.param({"max_batch": True}, "chain.max_batch is not a whole number", id="truth for a whole number"),
        pytest.param({"tail": None}, "chain.tail is not a text", id="nothing for a text"),
        pytest.param({"labels": "abc"}, "chain.labels is not a list", id="text for a list"),
        pytest.param(
            {"output": {"name": "y", "dtype": "FP32", "shape": ["4"]}},
            "chain.output.shape\\[0\\] is not a whole number",
            id="text for a size",
        ),
        pytest.param(
            {"output": {"name": "y", "dtype": "FP32", "shape": [4], "scale": 2}},
            "chain.output has an unknown field 'scale'",
            id="unknown field of a tensor",
        ),
    ],
)
def test_a_chain_that_this_version_can_not_run_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(RepositoryError, match=says):
        Chain.from_json(json.dumps(json.loads(toy_chain().to_json()) | change))


def test_a_chain_is_found_by_its_manifest(tmp_path: Path) -> None:
    _write(tmp_path, toy_chain())
    (tmp_path / "plain" / "1").mkdir(parents=True)
    assert find_chains(tmp_path) == ["toy"]
    assert read_chain(tmp_path, "toy") == toy_chain()


def test_a_model_that_is_no_chain_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no chain named 'plain'"):
        read_chain(tmp_path, "plain")


def test_bytes_that_are_no_text_are_damaged(tmp_path: Path) -> None:
    _write(tmp_path, toy_chain()).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RepositoryError, match=r"chain\.json is damaged"):
        read_chain(tmp_path, "toy")


def test_a_folder_that_was_renamed_is_told_apart_from_its_chain(tmp_path: Path) -> None:
    _write(tmp_path, toy_chain())
    (tmp_path / "toy").rename(tmp_path / "other")
    with pytest.raises(RepositoryError, match="is the chain 'toy', not 'other'"):
        read_chain(tmp_path, "other")


def test_a_segment_is_held_against_its_digest(tmp_path: Path) -> None:
    chain = toy_chain()
    path = chain.segment_path(tmp_path, 1)
    with pytest.raises(RepositoryError, match="can't be read"):
        chain.check_segment(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a segment")
    with pytest.raises(RepositoryError, match=r"not the one that chain\.json names"):
        chain.check_segment(tmp_path, 1)
    mine = replace(chain, segments=tuple(replace(s, sha256=sha256_of(path)) for s in chain.segments))
    mine.check_segment(tmp_path, 1)


def _write(repository: Path, chain: Chain) -> Path:
    path = chain_path(repository, chain.model)
    path.parent.mkdir(parents=True)
    path.write_text(chain.to_json())
    return path


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (1, "not in order"),
        (-1, "not in order"),
        ("../../secret", "index is not a whole number"),
        (None, "index is not a whole number"),
    ],
)
def test_segments_are_where_their_place_says_and_nowhere_else(index: Any, says: str) -> None:
    fields = json.loads(toy_chain().to_json())
    fields["segments"][0]["index"] = index
    with pytest.raises(RepositoryError, match=says):
        Chain.from_json(json.dumps(fields))


def test_what_an_older_chain_does_not_say_has_its_default() -> None:
    chain = toy_chain()
    fields = json.loads(chain.to_json()) | {"delta": 1}
    for later in ("agreement", "families", "memory", "p99", "views", "engine", "outputs", "tail", "labels"):
        del fields[later]
    assert Chain.from_json(json.dumps(fields)) == replace(
        chain, delta=1.0, **{f.name: f.default for f in dataclasses.fields(Chain) if f.name not in fields}
    )


@pytest.mark.parametrize("model", ["../models/toy", "/etc", "other"])
def test_a_chain_is_read_under_its_own_name_only(tmp_path: Path, model: str) -> None:
    path = chain_path(tmp_path / "models", "toy")
    path.parent.mkdir(parents=True)
    path.write_text(toy_chain().to_json())
    with pytest.raises(RepositoryError):
        read_chain(tmp_path / "models", model)
