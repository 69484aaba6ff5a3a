"""Reading, checking and splitting samples."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import toy_chain, toy_sample, write_shard
from PIL import Image

from gati.errors import SamplesError
from gati.recording.shard import shard
from gati.repository.chain import Tensor
from gati_export.samples.images import parse_decode
from gati_export.samples.samples import cast_notes, check_samples, load_samples

X = Tensor("x", "FP32", (3, 4, 5))
IDS, MASK = Tensor("ids", "INT64", (-1,)), Tensor("mask", "FP32", (-1,))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)


@pytest.fixture
def encoded(images: np.ndarray) -> list[bytes]:
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    return files


def rows(n: int = 7) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3, 4, 5)).astype(np.float32)


def write_table(path: Path, columns: dict, metadata: dict[str, dict[str, str]] | None = None) -> Path:
    table = pa.table(columns)
    fields = [field.with_metadata((metadata or {}).get(field.name, {})) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path)
    return path


@pytest.mark.parametrize("arrays", [{"x": rows()}, {"images": rows()}, {"images": rows(), "label": np.arange(7)}])
def test_npz_of_a_model_with_one_input(tmp_path, arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    samples = load_samples(tmp_path / "s.npz", inputs=[X])
    assert list(samples) == ["x"]
    assert np.array_equal(samples["x"], rows())


def test_npy(tmp_path):
    np.save(tmp_path / "anything.npy", rows().astype(np.float64))
    assert load_samples(tmp_path / "anything.npy", inputs=[X])["x"].dtype == np.float32
    assert list(load_samples(tmp_path / "anything.npy")) == ["anything"]


def test_inputs_come_in_the_models_order_without_extras(tmp_path):
    np.savez(tmp_path / "s.npz", label=np.zeros(2), mask=np.ones((2, 3)), ids=np.ones((2, 3), np.int32))
    samples = load_samples(tmp_path / "s.npz", inputs=[IDS, MASK])
    assert [(name, array.dtype) for name, array in samples.items()] == [("ids", np.int64), ("mask", np.float32)]


def test_parquet_lists_take_the_models_shape_or_the_metadatas(tmp_path):
    flat = [list(map(float, row.ravel())) for row in rows()]
    plain = write_table(tmp_path / "plain.parquet", {"x": flat, "label": list(range(7))})
    told = write_table(tmp_path / "told.parquet", {"x": flat}, {"x": {"shape": json.dumps([3, 4, 5])}})
    nested = write_table(tmp_path / "nested.parquet", {"x": rows().tolist()})
    assert np.array_equal(load_samples(plain, inputs=[X])["x"], rows())
    assert np.array_equal(load_samples(nested, inputs=[X])["x"], rows())
    assert load_samples(plain)["x"].shape == (7, 60)
    assert load_samples(told)["x"].shape == (7, 3, 4, 5)


def test_what_was_served_is_samples_like_any(tmp_path):
    table = shard(toy_chain(), [toy_sample(0), toy_sample(2, known=False)])
    write_shard(str(tmp_path), table, 1 << 20)
    for names in (None, ["x"], ["data"]):
        (found,) = load_samples(tmp_path, names=names).items()
        np.testing.assert_array_equal(found[1], np.arange(16, dtype=np.float32).reshape(4, 4))
        assert found[0] == "x"


def test_parquet_tensors_and_scalars(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(rows())
    table = pa.table({"x": tensors, "age": pa.array(np.arange(7.0))})
    pq.write_table(table, tmp_path / "s.parquet")
    samples = load_samples(tmp_path / "s.parquet", inputs=[X, Tensor("age", "FP32", (1,))])
    assert np.array_equal(samples["x"], rows())
    assert samples["age"].shape == (7, 1)


def test_a_folder_is_read_in_order_of_paths(tmp_path):
    (tmp_path / "b").mkdir()
    write_table(tmp_path / "b" / "1.parquet", {"ids": [[5, 6]]})
    write_table(tmp_path / "a.parquet", {"ids": [[1, 2], [3, 4]]})
    (tmp_path / "_unfinished.parquet").write_bytes(b"PAR1")
    assert load_samples(tmp_path, inputs=[IDS])["ids"].tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("as_struct", [False, True])
def test_encoded_images(tmp_path, images, encoded, as_struct):
    column = [{"bytes": e, "path": "x"} for e in encoded] if as_struct else encoded
    path = write_table(tmp_path / "s.parquet", {"image": column, "label": list(range(6))})
    decode = parse_decode("mean=0.5,0.4,0.3 std=0.2")
    samples = load_samples(path, inputs=[X], decode=decode)
    expected = (images / 255 - [0.5, 0.4, 0.3]) / 0.2
    np.testing.assert_allclose(samples["x"], expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert sorted(load_samples(path, decode=decode)) == ["image", "label"]


def test_lists_of_any_length_for_a_dimension_that_may_vary(tmp_path):
    texts = [[1, 2], [3], [4, 5, 6]]
    path = write_table(tmp_path / "s.parquet", {"ids": texts, "mask": [[1.0] * len(text) for text in texts]})
    samples = load_samples(path, inputs=[IDS, MASK])
    assert [row.tolist() for row in samples["ids"]] == texts
    assert {row.dtype for row in samples["ids"]} == {np.dtype(np.int64)}
    assert {row.dtype for row in samples["mask"]} == {np.dtype(np.float32)}
    with pytest.raises(SamplesError, match=re.escape("has shape [1], and the model takes [2]")):
        load_samples(path, inputs=[Tensor("ids", "INT64", (2,))])
    (tmp_path / "s.parquet").rename(tmp_path / "a.parquet")
    write_table(tmp_path / "b.parquet", {"ids": [[7, 8]], "mask": [[1.0, np.nan]]})
    with pytest.raises(SamplesError, match="1 of 4 rows of input 'mask'"):
        load_samples(tmp_path, inputs=[IDS, MASK])
    assert [row.tolist() for row in load_samples(tmp_path, inputs=[IDS])["ids"]] == [*texts, [7, 8]]
    signals = write_table(tmp_path / "n.parquet", {"x": [[[1, 2], [3, 4]], [[5], [6]]]})
    samples = load_samples(signals, inputs=[Tensor("x", "FP32", (2, -1))])
    assert [row.tolist() for row in samples["x"]] == [[[1, 2], [3, 4]], [[5], [6]]]


def test_integers_of_several_lengths_for_floats_are_said(tmp_path):
    path = write_table(tmp_path / "s.parquet", {"mask": [[1, 2], [30]]})
    samples = load_samples(path)
    assert cast_notes(samples, [MASK]) == [
        "Samples of 'mask' are int64, 1 to 30, and taken as FP32 as they are: that has to be what clients send."
    ]


def test_pictures_of_any_size_for_a_network_that_takes_them(tmp_path, encoded):
    small = io.BytesIO()
    Image.new("RGB", (2, 3)).save(small, "PNG")
    path = write_table(tmp_path / "s.parquet", {"image": [*encoded, small.getvalue()]})
    samples = load_samples(path, inputs=[Tensor("x", "FP32", (3, -1, -1))], decode=parse_decode(""))
    assert [row.shape for row in samples["x"]] == [(3, 4, 5)] * 6 + [(3, 3, 2)]
    assert not samples["x"][-1].any() and samples["x"][0].any()
    first = encoded[0]
    for other in (np.zeros((3, 4, 5), np.uint8), np.zeros((4, 5), np.float32)):
        with pytest.raises(SamplesError, match="differ in type"):
            load_samples(
                path, decode=lambda row, other=other: np.zeros((3, 4, 5), np.float32) if row == first else other
            )


def test_an_empty_file_among_others_says_nothing(tmp_path):
    write_table(tmp_path / "a.parquet", {"ids": [[1, 2], [3, 4]]})
    pq.write_table(pa.table({"ids": pa.nulls(0)}), tmp_path / "b.parquet")
    assert load_samples(tmp_path, inputs=[IDS])["ids"].tolist() == [[1, 2], [3, 4]]
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SamplesError, match="no rows"):
        load_samples(tmp_path, inputs=[IDS])


def test_image_option(encoded):
    assert parse_decode("")(encoded[0]).shape == (3, 4, 5)
    assert parse_decode("8x6 gray")(encoded[0]).shape == (1, 6, 8)
    assert parse_decode("hwc 8x6 rgb")(encoded[0]).shape == (6, 8, 3)
    assert parse_decode("rgb")(encoded[0]).max() <= 1


def test_a_decoder_of_the_users_own(tmp_path, encoded, monkeypatch):
    (tmp_path / "own_decoder.py").write_text("def size(encoded):\n    return [len(encoded), 1.5]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = write_table(tmp_path / "s.parquet", {"image": encoded})
    samples = load_samples(path, inputs=[Tensor("x", "FP32", (2,))], decode=parse_decode("own_decoder:size"))
    assert samples["x"][:, 0].tolist() == [len(e) for e in encoded]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("32", "does not know the word '32'"),
        ("0x4", "does not know"),
        ("mean=a", "can't read 'mean=a'"),
        ("gray mean=1,2,3", "takes one number"),
        ("std=0", "positive"),
        ("mean=nan", "finite"),
        ("chw hwc", "one of chw and hwc"),
        ("no_such_package:decode", "could not be imported"),
        ("json:no_such_name", "no function or class"),
    ],
)
def test_image_options_that_are_wrong(option, says):
    with pytest.raises(SamplesError, match=says):
        parse_decode(option)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"ids": np.ones((2, 3), np.int64)}, "lack the model's input 'mask' and hold 'ids'"),
        ({"ids": np.ones((2, 3), np.int64), "mask": np.ones((3, 3))}, "'ids' 2, 'mask' 3"),
        ({"ids": np.ones((0, 3), np.int64), "mask": np.ones((0, 3))}, "no rows"),
        ({"ids": np.ones((2, 3)), "mask": np.ones((2, 3))}, "'ids' is float64"),
        ({"ids": np.ones((2, 3, 1), np.int64), "mask": np.ones((2, 3))}, "shape"),
        ({"ids": np.ones((4, 2), np.int64), "mask": np.array([[1, np.nan], [1, 1], [np.inf, 0], [0, 0]])}, "2 of 4"),
        ({"ids": np.full((1, 2), 2**63, np.uint64), "mask": np.ones((1, 2))}, "can't hold"),
        ({"ids": np.ones((1, 2), np.int64), "mask": np.full((1, 2), 1e39)}, "1 of 1 rows"),
        ({"ids": np.ones((1, 2), np.int64), "mask": np.array([["a", "b"]])}, "convert"),
        ({"ids": np.int64(3), "mask": np.int64(3)}, "no rows"),
    ],
)
def test_samples_that_do_not_fit(tmp_path, arrays, says):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(SamplesError, match=says):
        load_samples(tmp_path / "s.npz", inputs=[IDS, MASK])
    with pytest.raises(SamplesError, match=says):
        check_samples(arrays, [IDS, MASK])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.npz", None, "no samples at"),
        ("none.parquet", None, "no samples at"),
        ("s.npz", b"PK", "damaged"),
        ("s.npy", b"", "damaged"),
        ("s.parquet", b"PAR1", "not a Parquet file"),
        ("s.csv", b"1,2", "give .npz, .npy or Parquet"),
    ],
)
def test_files_that_are_no_samples(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SamplesError, match=says):
        load_samples(tmp_path / name, inputs=[X])


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.array([{}, {}], object))
    with pytest.raises(SamplesError, match="more than plain arrays"):
        load_samples(tmp_path / "s.npz", inputs=[X])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"ids": [[1, 2], []]}, "holds nothing"),
        ({"ids": [[[1, 2]], [[3], [4]]]}, "has shape"),
        ({"ids": [[[1, 2]], []]}, "has shape"),
        ({"ids": [[[1, 2], [3]]]}, "a row whose lists differ in length"),
        ({"ids": [[1, 2], None]}, "no value in 1 rows"),
        ({"ids": [[1, 2], [3, None]]}, "values missing"),
        ({"ids": ["a", "b"]}, "holds string"),
        ({"ids": [b"a", b"b"]}, "--image"),
        ({"other": [1, 2]}, "lack the model's input 'ids'"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, says):
    with pytest.raises(SamplesError, match=says):
        load_samples(write_table(tmp_path / "s.parquet", columns), inputs=[IDS])


def test_images_that_do_not_fit(tmp_path, encoded):
    small = io.BytesIO()
    Image.new("RGB", (2, 2)).save(small, "PNG")
    path = write_table(tmp_path / "s.parquet", {"image": [encoded[0], small.getvalue()]})
    with pytest.raises(SamplesError, match=re.escape("has shape [3, 2, 2], and the model takes [3, 4, 5]")):
        load_samples(path, inputs=[X], decode=parse_decode(""))
    with pytest.raises(SamplesError, match="--image"):
        load_samples(path)
    broken = write_table(tmp_path / "b.parquet", {"image": [encoded[0], b"no image"]})
    with pytest.raises(SamplesError, match="Row 1 of column 'image' can't be decoded"):
        load_samples(broken, decode=parse_decode(""))


def test_nothing_to_decode_is_said(tmp_path, images):
    """Else a scaling that --image asks for would be left out, and nobody would know."""
    rows = images.transpose(0, 3, 1, 2).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=rows)
    column = [row.reshape(-1) for row in rows]
    for path in (tmp_path / "s.npz", write_table(tmp_path / "s.parquet", {"x": column, "photo": [b"a"] * len(rows)})):
        with pytest.raises(SamplesError, match=rf"{path.name} holds none of them; leave --image out"):
            load_samples(path, inputs=[X], decode=parse_decode("5x4 rgb mean=0.5"))


def test_a_column_that_is_there_twice(tmp_path):
    rows = pa.array([[1, 2], [3, 4]])
    pq.write_table(pa.Table.from_arrays([rows, rows], names=["ids", "ids"]), tmp_path / "s.parquet")
    with pytest.raises(SamplesError, match="several columns 'ids'"):
        load_samples(tmp_path / "s.parquet", inputs=[IDS])


def test_an_empty_folder(tmp_path):
    with pytest.raises(SamplesError, match="no Parquet files"):
        load_samples(tmp_path, inputs=[X])


@pytest.mark.parametrize(
    ("given_dtype", "wanted", "fits"),
    [
        ("uint8", "FP32", True),
        ("float64", "FP16", True),
        ("int64", "INT32", True),
        ("int64", "UINT8", True),
        ("bool", "INT64", True),
        ("float32", "INT64", False),
        ("float32", "BOOL", False),
        ("int64", "BOOL", False),
    ],
)
def test_casts(given_dtype, wanted, fits):
    samples, inputs = {"x": np.ones((2, 2), given_dtype)}, [Tensor("x", wanted, (2,))]
    if fits:
        assert check_samples(samples, inputs)["x"].dtype == inputs[0].numpy
    else:
        with pytest.raises(SamplesError, match="convert"):
            check_samples(samples, inputs)
