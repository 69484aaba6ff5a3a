from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_client import Answer, InvalidRequest, Metadata, ServerError, TensorSpec
from gati_client.codec import decode, encode, fit, parameters, tensors
from gati_client.transport import Address

X = TensorSpec("x", "FP32", (-1, 3))
IDS = TensorSpec("input_ids", "INT64", (-1, -1))
MASK = TensorSpec("attention_mask", "INT64", (-1, -1))
ONE = Metadata("one", ("1",), "", (X,), (TensorSpec("y", "FP32", (-1, 2)),))
TWO = Metadata("two", ("1",), "", (IDS, MASK), ())


class Result:
    """What both protocols' results offer."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.as_numpy = arrays.get


@pytest.mark.parametrize(
    "dtype, value",
    [
        ("FP32", np.float64(1.5)),
        ("FP32", np.int64(7)),
        ("FP32", np.uint8(255)),
        ("FP32", np.bool_(True)),
        ("FP16", np.float64(1.5)),
        ("FP64", np.float32(1.5)),
        ("INT64", np.int8(-3)),
        ("UINT8", np.int64(255)),
        ("INT32", np.bool_(True)),
    ],
)
def test_casts_that_keep_the_value(dtype: str, value: np.generic) -> None:
    array = fit(TensorSpec("x", dtype, (-1,)), np.array([value]))
    assert array.dtype == TensorSpec("x", dtype, ()).numpy
    assert array[0] == value


@pytest.mark.parametrize(
    "dtype, value",
    [
        ("INT64", np.float32(1)),
        ("UINT8", np.int64(256)),
        ("UINT8", np.int64(-1)),
        ("INT64", np.uint64(2**63)),
        ("FP16", np.float32(1e6)),
        ("FP16", np.int64(10**6)),
        ("FP32", np.float64(1e300)),
        ("FP32", np.complex64(1)),
        ("BOOL", np.int64(1)),
        ("FP32", np.str_("1")),
        ("BYTES", np.int64(1)),
    ],
)
def test_casts_that_would_lose_it(dtype: str, value: np.generic) -> None:
    with pytest.raises(InvalidRequest, match="'x'.*" + dtype):
        fit(TensorSpec("x", dtype, (-1,)), np.array([value]))


def test_not_a_number_and_infinity_pass() -> None:
    assert np.isposinf(fit(X, [[np.inf, 0, 1]])[0, 0])
    assert np.isnan(fit(X, [[np.nan, 0, 1]])[0, 0])


def test_strings_become_bytes() -> None:
    assert fit(TensorSpec("x", "BYTES", (-1,)), ["a", "b"]).dtype == object


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_integers_survive(numbers: list[int]) -> None:
    assert fit(TensorSpec("x", "INT32", (-1,)), numbers).tolist() == numbers


@pytest.mark.parametrize(
    "value, words",
    [
        (np.zeros(3), r"one row of shape \[3\] without a batch dimension; FP32 \[batch, 3\] is expected"),
        (np.zeros((2, 4)), r"shape \[2, 4\]; FP32 \[batch, 3\] is expected"),
        (np.zeros((1, 1, 3)), r"shape \[1, 1, 3\]"),
        (np.zeros((0, 3)), "empty batch"),
        ([[1, 2, 3], [4]], "can't be made an array"),
    ],
)
def test_shapes_that_do_not_fit(value: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as error:
        fit(X, value)
    assert str(error.value).endswith(".")


def test_one_number_a_row_may_come_without_a_dimension_of_its_own() -> None:
    assert fit(TensorSpec("x", "FP32", (-1, 1)), [1, 2]).tolist() == [[1], [2]]
    with pytest.raises(InvalidRequest, match="empty batch"):
        fit(TensorSpec("x", "FP32", (-1, 1)), [])


def test_ways_to_give_inputs() -> None:
    array = np.ones((2, 3), np.float32)
    for given_ in (encode(ONE, array, {}), encode(ONE, {"x": array}, {}), encode(ONE, None, {"x": array})):
        assert list(given_) == ["x"]
        np.testing.assert_array_equal(given_["x"], array)


@pytest.mark.parametrize(
    "metadata, inputs, named, words",
    [
        (ONE, None, {}, "not at all"),
        (ONE, [[1, 2, 3]], {"x": [[1, 2, 3]]}, "twice"),
        (ONE, {}, {}, "empty"),
        (ONE, {"z": [[1, 2, 3]]}, {}, "has no input 'z'; it has 'x'"),
        (TWO, [[1]], {}, "several inputs; name them: 'input_ids': INT64"),
    ],
)
def test_names_that_do_not_fit(metadata: Metadata, inputs: object, named: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        encode(metadata, inputs, named)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tensors_carry_shape_and_datatype(protocol: str) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}")
    (tensor,) = tensors(module.InferInput, ONE, encode(ONE, [[1, 2, 3]], {}))
    assert (tensor.name(), tensor.datatype(), list(tensor.shape())) == ("x", "FP32", [1, 3])


def test_the_mode_is_always_said() -> None:
    assert parameters(True) == {"gati_mode": "exact"}
    assert parameters(False) == {"gati_mode": "cached"}


def test_a_chain_says_where_it_answered() -> None:
    chain = Metadata(
        "c", (), "", (), (*ONE.outputs, TensorSpec("exit", "INT32", (-1, 1)), TensorSpec("release", "INT64", (-1, 1)))
    )
    answer = decode(
        chain, Result(y=np.eye(2), exit=np.array([[0], [3]], np.int32), release=np.array([[7], [0]], np.int64))
    )
    assert list(answer.outputs) == ["y"]
    assert answer.exit is not None and answer.exit.tolist() == [0, 3]
    assert answer.release is not None and answer.release.tolist() == [7, 0]
    assert answer.hit is not None and answer.hit.tolist() == [True, False]


def test_a_plain_model_does_not() -> None:
    answer = decode(ONE, Result(y=np.eye(2)))
    assert (answer.exit, answer.release, answer.hit) == (None, None, None)
    np.testing.assert_array_equal(answer.output, np.eye(2))


def test_an_output_of_the_same_name_but_another_type_is_the_models_own() -> None:
    own = Metadata("own", (), "", (), (TensorSpec("exit", "FP32", (-1, 4)),))
    assert list(decode(own, Result(exit=np.zeros((1, 4)))).outputs) == ["exit"]


def test_several_outputs_have_no_single_one() -> None:
    with pytest.raises(InvalidRequest, match=r"take yours from `outputs` \(a, b\)"):
        _ = Answer({"a": np.zeros(1), "b": np.zeros(1)}).output


def test_metadata_of_both_protocols_is_the_same() -> None:
    http = {
        "name": "m",
        "versions": ["1"],
        "platform": "p",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [],
    }
    grpc = {**http, "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]}
    assert Metadata.from_json(http) == Metadata.from_json(grpc) == Metadata("m", ("1",), "p", (X,), ())


@pytest.mark.parametrize("fields", [{}, {"name": "m", "inputs": [{}], "outputs": []}, []])
def test_metadata_that_is_none(fields: dict[str, object]) -> None:
    with pytest.raises(ServerError, match="not the metadata"):
        Metadata.from_json(fields)


@pytest.mark.parametrize(
    "url, address",
    [
        ("localhost:8001", Address("grpc", False, "localhost:8001")),
        ("host", Address("grpc", False, "host:8001")),
        ("grpc://host:1", Address("grpc", False, "host:1")),
        ("grpcs://host", Address("grpc", True, "host:443")),
        ("http://host", Address("http", False, "host:8000")),
        ("https://host/triton/", Address("http", True, "host:443/triton")),
        ("http://[::1]:8000", Address("http", False, "[::1]:8000")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert Address.from_url(url) == address


@pytest.mark.parametrize("url", ["", "ftp://host", "grpc://", "grpc://host:x", "grpc://host/path", "http://u:p@host"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidRequest, match="not the URL of a server"):
        Address.from_url(url)
