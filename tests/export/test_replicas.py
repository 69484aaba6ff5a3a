"""Which replicas names stand for; what servers do with them is in tests/server."""

from __future__ import annotations

import socket

import pytest

from gati_export.releases.replicas import resolved

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a name server knows; addresses stand for themselves."""
    known: dict[str, list[str]] = {}

    def look_up(host: str, port: int, **_: object) -> list[tuple]:
        if host not in known and not host[0].isdigit() and ":" not in host:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        addresses = known.get(host, [host])
        return [(V6 if ":" in address else V4, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_a_name_stands_for_a_replica_at_each_of_its_addresses(names: dict[str, list[str]]) -> None:
    names["triton"] = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    assert resolved("triton:8001") == ("10.0.0.1:8001", "10.0.0.2:8001")
    names["triton"] = ["fd00::1", "fd00::2"]
    assert resolved("triton:8001") == ("[fd00::1]:8001", "[fd00::2]:8001")


def test_a_server_with_addresses_of_both_families_is_one_replica(names: dict[str, list[str]]) -> None:
    names["triton"] = ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]
    assert resolved("triton:8001") == ("10.0.0.1:8001", "10.0.0.2:8001")


def test_a_name_with_one_address_keeps_its_name_and_one_that_nobody_knows_too(names: dict[str, list[str]]) -> None:
    names["one"] = ["10.0.0.1"]
    assert resolved("one:8001,nobody:8001") == ("one:8001", "nobody:8001")


def test_a_replica_that_is_named_twice_counts_once(names: dict[str, list[str]]) -> None:
    names |= {"all": ["10.0.0.1", "10.0.0.2"], "one": ["10.0.0.1"]}
    assert resolved("one:8001,all:8001,10.0.0.2:8001") == ("one:8001", "10.0.0.2:8001")
    assert resolved("one:8001,one:9001,[fd00::1]:8001") == ("one:8001", "one:9001", "[fd00::1]:8001")


def test_localhost_is_one_replica() -> None:
    assert resolved("localhost:8001,127.0.0.1:8001") == ("localhost:8001",)
