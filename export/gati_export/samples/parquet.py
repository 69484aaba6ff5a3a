"""Columns of Parquet files as arrays: numbers, lists of them, and encoded images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gati.errors import SamplesError
from gati.recording.shard import ANSWER, EXIT, RELEASE, TIME
from gati_export.samples.images import Decode
from gati_export.samples.ragged import apart, gathered, is_ragged, joined

NEEDS_DECODE = (
    "Column {name!r} holds encoded bytes; say with --image how they become the model's input, "
    'for example --image "32x32 rgb".'
)
NOTHING_TO_DECODE = (
    "--image says how encoded images become arrays, and {name} holds none of them; leave --image out if its numbers "
    "are what the model is sent."
)


def read_parquet(path: Path, names: Sequence[str] | None, decode: Decode | None) -> dict[str, np.ndarray]:
    """Reads columns of a Parquet file, or of all Parquet files in a folder and below it, in order of their paths.

    Args:
        path: File or folder.
        names: Columns to read; None for all that can be arrays. Where one name is asked for and no column has it, the
            only column of lists or images stands for it.
        decode: What makes a row of encoded bytes, or of a struct with the field `bytes`, an array.

    Returns:
        Arrays [rows, *shape] by column, or of objects where rows differ in shape (gati_export.samples.ragged). Lists
        are reshaped by the JSON list in the field's metadata under `shape`.

    Raises:
        SamplesError: If there is no file, a file is damaged, rows differ in rank or type, values are missing, or there
            is nothing to decode.
    """
    files = _files(path)
    schema = _schema(files[0])
    columns = _columns(schema, names, decode)
    if decode is not None and not any(_is_encoded(schema.field(name).type) for name in columns):
        raise SamplesError(NOTHING_TO_DECODE.format(name=path.name))
    parts = [_read(file, columns, decode) for file in files]
    return {name: _together(name, [part[name] for part in parts if len(part[name])]) for name in columns}


def _read(file: Path, columns: Sequence[str], decode: Decode | None) -> dict[str, np.ndarray]:
    schema = _schema(file)
    for name in columns:
        if schema.names.count(name) > 1:
            raise SamplesError(f"{file.name} has several columns {name!r}; leave all but one out.")
        if name not in schema.names:
            raise SamplesError(f"{file.name} lacks the column {name!r}; write the same columns to all files.")
    try:
        table = pq.ParquetFile(file).read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise SamplesError(f"{file.name} is damaged ({error}).") from error
    if not table.num_rows:
        return dict.fromkeys(columns, np.empty((0,)))
    return {name: _array(name, schema.field(name), table.column(name), decode) for name in columns}


def _together(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all files; those of one may be of another shape than those of another."""
    if not parts:
        return np.empty((0,))
    if len({_rank(part) for part in parts}) > 1:
        raise SamplesError(f"Rows of column {name!r} are lists of different depths; write them alike.")
    return joined(parts)


def _rank(rows: np.ndarray) -> int:
    return rows[0].ndim


def _files(path: Path) -> list[Path]:
    """The files to read; hidden ones are another program's, or not finished."""
    if path.is_file():
        return [path]
    files = sorted(f for f in path.rglob("*.parquet") if not f.name.startswith((".", "_")) and f.is_file())
    if not files:
        raise SamplesError(f"Folder {path.name!r} holds no Parquet files; name a folder with samples in it.")
    return files


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise SamplesError(f"{file.name} is not a Parquet file, or was cut short ({error}).") from error


def _columns(schema: pa.Schema, names: Sequence[str] | None, decode: Decode | None) -> list[str]:
    fields = [f for f in schema if f.name not in (ANSWER, EXIT, RELEASE, TIME)]  # beside inputs that were served
    tensors = [f.name for f in fields if _is_list(f.type) or _is_encoded(f.type)]
    if names is not None:
        if len(names) == 1 and names[0] not in schema.names and len(tensors) == 1:
            return tensors
        return [name for name in names if name in schema.names]
    if decode is None and tensors and all(_is_encoded(schema.field(name).type) for name in tensors):
        raise SamplesError(NEEDS_DECODE.format(name=tensors[0]))
    return [f.name for f in fields if _is_number(f.type) or _is_list(f.type) or (decode and _is_encoded(f.type))]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_list(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_number(kind.value_type) or _is_list(kind.value_type)
    return False


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_encoded(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _array(name: str, field: pa.Field, column: pa.ChunkedArray, decode: Decode | None) -> np.ndarray:
    if column.null_count:
        raise SamplesError(f"Column {name!r} has no value in {column.null_count} rows; leave those rows out.")
    if isinstance(column.type, pa.FixedShapeTensorType):
        return np.concatenate([chunk.to_numpy_ndarray() for chunk in column.chunks])
    if _is_encoded(column.type):
        if decode is None:
            raise SamplesError(NEEDS_DECODE.format(name=name))
        return _decoded(name, column, decode)
    if not (_is_number(column.type) or _is_list(column.type)):
        raise SamplesError(f"Column {name!r} holds {column.type}, which is no model's input; write numbers or images.")
    chunks = [rows_of(name, chunk) for chunk in column.chunks if len(chunk)]
    return _reshaped(name, field, joined(chunks)) if chunks else np.empty((0,))


def rows_of(name: str, array: pa.Array) -> np.ndarray:
    """Lists, nested or not, as rows; those of one row and level must be equally long.

    Returns:
        An array [rows, *lengths], or one of objects where rows differ.

    Raises:
        SamplesError: If lists of a row differ in length, or values are missing; it names the column.
    """
    flat, shape = array, [len(array)]
    while not _is_number(flat.type):
        length = _length(flat)
        if length is None and not len(flat):
            return np.empty(shape)  # of rows that hold nothing, it is not known how deep they would be
        if length is None:
            if len(array) == 1:
                raise SamplesError(f"Column {name!r} has a row whose lists differ in length; pad them to one.")
            return gathered([rows_of(name, array.slice(row, 1))[0] for row in range(len(array))])
        flat = flat.flatten()
        shape.append(length)
        if flat.null_count or len(flat) != int(np.prod(shape)):
            raise SamplesError(f"Column {name!r} has rows with values missing inside; leave those rows out.")
    return flat.to_numpy(zero_copy_only=False).reshape(shape)


def _length(array: pa.Array) -> int | None:
    """The length of all lists; None where they differ."""
    if pa.types.is_fixed_size_list(array.type):
        return array.type.list_size
    lengths = pc.unique(pc.list_value_length(array))  # pyright: ignore[reportAttributeAccessIssue]
    return lengths[0].as_py() if len(lengths) == 1 else None


def _reshaped(name: str, field: pa.Field, rows: np.ndarray) -> np.ndarray:
    text = (field.metadata or {}).get(b"shape")
    if text is None or is_ragged(rows):  # then it can't be the shape of all of them
        return rows
    try:
        return rows.reshape(len(rows), *(int(d) for d in json.loads(text)))
    except (ValueError, TypeError) as error:
        raise SamplesError(
            f"Column {name!r} holds {rows[0].size} values a row, and its metadata says shape {text.decode()}; "
            "write the shape that the rows have."
        ) from error


def _decoded(name: str, column: pa.ChunkedArray, decode: Decode) -> np.ndarray:
    """Decodes row by row into one array, so that memory holds the images once, as long as they are of one shape."""
    rows = np.empty((0,))
    for index, encoded in enumerate(_encoded(column)):
        try:
            row = np.asarray(decode(encoded))
        except Exception as error:  # Pillow, or a user's function, may raise anything
            raise SamplesError(
                f"Row {index} of column {name!r} can't be decoded ({type(error).__name__}: {error}); leave it out."
            ) from error
        if index == 0:
            rows = np.empty((len(column), *row.shape), row.dtype)
        if row.dtype != rows[0].dtype or row.ndim != rows[0].ndim:
            raise SamplesError(f"Rows of column {name!r} differ in type, or in the number of dimensions; convert them.")
        if not is_ragged(rows) and row.shape != rows.shape[1:]:
            rows = apart(rows)
        rows[index] = row
    return rows


def _encoded(column: pa.ChunkedArray) -> Iterator[bytes]:
    for chunk in column.chunks:
        for value in chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk:
            yield value.as_py()
