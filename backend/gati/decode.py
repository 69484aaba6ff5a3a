"""Checked reading of dataclasses from JSON, by their type hints."""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MISSING = object()
EXPECTED = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def decode(kind: Any, value: Any, where: str, *, exact: bool = False) -> Any:
    """Reads a value of JSON as a type.

    Args:
        kind: A dataclass, float (finite), int, str, bool, a `Literal` of texts, `X | None`, `tuple[X, ...]`,
            `tuple[X, Y]`, or `dict[int, X]`.
        value: What `json.loads` made of it. Fields that have a default may be missing.
        where: Its place in the file, for messages.
        exact: Whether to refuse keys that a dataclass does not have; else they are passed over.

    Returns:
        The value, of that type.

    Raises:
        ValueError: If it is something else; the message names the place.
        OverflowError: If it is a whole number too large for the float that it should be.
    """
    if value is MISSING:
        raise ValueError(f"{where} is missing")
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where, exact)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (kind,) = (k for k in inner if k is not NoneType)
        return None if value is None else decode(kind, value, where, exact=exact)
    if origin is Literal:
        return _one_of(inner, value, where)
    if origin is tuple:
        return _tuple(inner, value, where, exact)
    if origin is dict:
        return _by_number(inner[1], value, where, exact)
    return _plain(kind, value, where)


def _dataclass(kind: Any, value: Any, where: str, exact: bool) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    hints, fields = get_type_hints(kind), {}
    surplus = sorted(value.keys() - hints.keys())
    if exact and surplus:
        raise ValueError(f"{where} has an unknown field {surplus[0]!r}")
    for field in dataclasses.fields(kind):
        if field.name in value or field.default is dataclasses.MISSING:
            place = f"{where}.{field.name}"
            fields[field.name] = decode(hints[field.name], value.get(field.name, MISSING), place, exact=exact)
    return kind(**fields)


def _one_of(texts: tuple[str, ...], value: Any, where: str) -> str:
    if type(value) is not str or value not in texts:
        place, _, name = where.rpartition(".")
        raise ValueError(f"{place} has an unknown {name}: it is not one of {', '.join(texts)}")
    return value


def _tuple(inner: tuple[Any, ...], value: Any, where: str, exact: bool) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} entries, not {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(decode(kind, one, f"{where}[{i}]", exact=exact) for i, (kind, one) in pairs)


def _by_number(kind: Any, value: Any, where: str, exact: bool) -> dict[int, Any]:
    if not isinstance(value, dict) or not all(key.isdecimal() for key in value):
        raise ValueError(f"{where} is not an object with numbers for keys")
    return {int(key): decode(kind, one, f"{where}[{key}]", exact=exact) for key, one in value.items()}


def _plain(kind: type, value: Any, where: str) -> Any:
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed:  # by type: to isinstance, true would be a number
        raise ValueError(f"{where} is not {EXPECTED[kind]}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is not finite")
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{where} is not Unicode")  # JSON can spell what no file can hold
    return kind(value)
