"""Checked reading of dataclasses from JSON, by their type hints."""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

MISSING = object()
EXPECTED = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def decode(kind: Any, value: Any, where: str) -> Any:
    """Reads a value of JSON as a type.

    Args:
        kind: A dataclass, float (finite), int, str, bool, `X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[int, X]`.
        value: What `json.loads` made of it. Keys that a dataclass does not have are passed over.
        where: Its place in the file, for messages.

    Returns:
        The value, of that type.

    Raises:
        ValueError: If it is something else; the message names the place.
    """
    if value is MISSING:
        raise ValueError(f"{where} is missing")
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (kind,) = (k for k in inner if k is not NoneType)
        return None if value is None else decode(kind, value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is dict:
        return _by_number(inner[1], value, where)
    return _plain(kind, value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    hints, fields = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value or field.default is dataclasses.MISSING:
            place = f"{where}.{field.name}"
            fields[field.name] = decode(hints[field.name], value.get(field.name, MISSING), place)
    return kind(**fields)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} entries, not {len(kinds)}")
    return tuple(decode(kind, one, f"{where}[{i}]") for i, (kind, one) in enumerate(zip(kinds, value, strict=True)))


def _by_number(kind: Any, value: Any, where: str) -> dict[int, Any]:
    if not isinstance(value, dict) or not all(key.isdecimal() for key in value):
        raise ValueError(f"{where} is not an object with numbers for keys")
    return {int(key): decode(kind, one, f"{where}[{key}]") for key, one in value.items()}


def _plain(kind: type, value: Any, where: str) -> Any:
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed:  # by type: to isinstance, true would be a number
        raise ValueError(f"{where} is not {EXPECTED[kind]}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is not finite")
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{where} is not Unicode")  # JSON can spell what no file can hold
    return kind(value)
