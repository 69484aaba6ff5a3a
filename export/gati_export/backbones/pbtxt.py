# protobuf makes its classes at run time, where a type checker does not see them
# pyright: reportAttributeAccessIssue=false
"""A model's configuration as an operator wrote it, perhaps for a newer Triton than this one knows."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from gati.errors import BackboneError, printable

UNKNOWN_FIELD = re.compile(r'has no field named "\w+"')
UNKNOWN_VALUE = re.compile(r'Enum type "(?!inference\.DataType")[\w.]+" has no value named \w+')
"""Of what a tensor is made of, nothing can be left out."""
WHERE = re.compile(r"\d+:\d+ : ('.*': )?", re.DOTALL)
"""What protobuf puts before what it says: the place, and the whole line."""
TOKEN = re.compile(r"#.*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[\w.+-]+|\S")
OPENS, CLOSES, QUOTES = "{<[", "}>]", "\"'"


class Written(NamedTuple):
    """A configuration, and what of it was not understood: names of fields, with their lines."""

    config: ModelConfig
    unknown: tuple[str, ...]


def read_pbtxt(path: Path) -> Written:
    """Reads a configuration; fields, and values of enumerations, that are not known are left out.

    Raises:
        BackboneError: If it can't be read otherwise; it names the line and the column.
    """
    unknown = list[str]()
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise BackboneError(f"{path} can't be read: it is no UTF-8.") from error
    while True:
        try:
            return Written(text_format.Parse(text, ModelConfig()), tuple(unknown))
        except text_format.ParseError as error:
            said, line, column = str(error), error.GetLine() or 1, error.GetColumn() or 1
            start = sum(len(before) + 1 for before in text.split("\n")[: line - 1]) + column - 1
            found = None
            if UNKNOWN_FIELD.search(said):
                found = _field_at(text, start)
            elif UNKNOWN_VALUE.search(said):
                found = _field_of(text, start)
            if found is None:
                what = printable(WHERE.sub("", said, count=1).strip().rstrip("."))[:300]
                raise BackboneError(f"{path} can't be read: line {line}, column {column}: {what}.") from error
            name, first, end = found
            unknown.append(f"{name} (line {line})")
            text = text[:first] + re.sub(r"[^\n]", " ", text[first:end]) + text[end:]  # what follows stays in its place


def _field_at(text: str, start: int) -> tuple[str, int, int] | None:
    """The name of the field that begins somewhere, with those that it is in, and from where to where it goes."""
    tokens = [token for token in TOKEN.finditer(text) if not token[0].startswith("#")]
    place = next((i for i, token in enumerate(tokens) if token.start() == start), None)
    if place is None:
        return None
    name = ".".join([*_around([token[0] for token in tokens[:place]]), tokens[place][0]])
    words = [token[0] for token in tokens[place + 1 :]]
    length = _length(words)
    return None if length > len(words) else (name, start, tokens[place + length].end())


def _field_of(text: str, value: int) -> tuple[str, int, int] | None:
    """The same of the field that has one value, which begins somewhere."""
    before = re.search(r"\w+\s*:\s*\Z", text[:value])
    found = None if before is None else _field_at(text, before.start())
    return found and (f"{found[0]} {TOKEN.match(text, value)[0]}", *found[1:])  # pyright: ignore[reportOptionalSubscript]


def _around(words: list[str]) -> list[str]:
    """Names of the fields that are open behind some words."""
    around, last = list[str](), ""
    for word in words:
        if word in OPENS:
            around.append(last)
        elif word in CLOSES:
            last = around.pop()
        elif re.fullmatch(r"\w+", word):
            last = word
    return [name for name, _ in groupby(around)]  # `input [{` opens twice


def _length(words: list[str]) -> int:
    """How many words behind a field's name are its value, with what ends it; more than there are if it has no end."""
    length = words[:1] == [":"]
    if words[length : length + 1] and words[length] in OPENS:
        depth = 0
        for word in words[length:]:
            depth += (word in OPENS) - (word in CLOSES)
            length += 1
            if not depth:
                break
        else:
            return len(words) + 1
    else:
        length += 1
        while words[length : length + 1] and words[length][0] in QUOTES:  # strings that stand together are one
            length += 1
    return length + (words[length : length + 1] in ([","], [";"]))
