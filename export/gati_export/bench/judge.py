"""What a contender answers: whether as the backbone does, and from which exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gati.errors import BenchError
from gati.repository.agreement import parse_agreement
from gati.repository.chain import Chain
from gati_client import Answer, Client
from gati_client.errors import ClientError
from gati_export.samples.ragged import count, rows_at


@dataclass(frozen=True)
class Answers:
    """Share of requests answered as the backbone does, if that was seen; and shares by exit, the backbone's last."""

    agreement: float | None
    exits: dict[str, float]


def ask(address: str, model: str, requests: Mapping[str, np.ndarray]) -> Iterator[Answer]:
    """The answers to some requests, inputs by name, [n, ...], asked one after the other.

    Raises:
        BenchError: If a request fails.
    """
    try:
        with Client(address, model) as client:
            for row in range(count(requests)):
                yield client.infer(rows_at(requests, [row]))
    except ClientError as error:
        raise BenchError(f"{model!r} failed on a request of the benchmark: {error}") from error


def judge(address: str, model: str, chain: Chain, requests: Mapping[str, np.ndarray], outputs: np.ndarray) -> Answers:
    """Asks a model some requests, one after the other.

    Args:
        address: The server's, HOST:GRPC_PORT.
        model: The model's name.
        chain: What is served, for its inputs and what agreement means.
        requests: Inputs by name, [n, ...].
        outputs: What the backbone says to them, [n, classes].

    Raises:
        BenchError: If a request fails.
    """
    answers, exits = np.empty_like(outputs), np.full(len(outputs), -1)
    for row, answer in enumerate(ask(address, model, requests)):
        answers[row] = answer.output[0]
        if answer.exit is not None:
            exits[row] = answer.exit.ravel()[0]
    agreement = float(parse_agreement(chain.agreement)(answers, outputs).mean())
    return Answers(agreement, shares(exits[exits >= 0]))


def shares(exits: np.ndarray) -> dict[str, float]:
    """The share of requests that left at each exit, of the exits of all of them, [n]."""
    seen, counts = np.unique(exits, return_counts=True)
    return {str(exit_): float(count) / len(exits) for exit_, count in zip(seen, counts, strict=True)}


def exits_of(found: Mapping[str, float], count: int) -> np.ndarray:
    """The exits, in no order, of as many requests as these shares were taken of: int64 [count]."""
    return np.repeat([int(exit_) for exit_ in found], np.rint(np.array([*found.values()]) * count).astype(int))
