"""Terms: the promise and the limits that heads must keep, from the command line to the certificate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gati.repository.agreement import DEFAULT, of_numbers
from gati.repository.chain import Chain
from gati_export.families import AUTO

MARK = 8
"""Bytes of a sample's mark, which tells it from others."""
ENOUGH = 20_000
"""How many images to train on, by default: with fewer samples, views are added."""


@dataclass(frozen=True)
class Terms:
    """The promise that heads must keep, their limits, and how they are found.

    Attributes:
        epsilon: Largest share of requests whose answer may differ from the backbone's.
        delta: 1 − confidence of that statement.
        agreement: When answers agree; see `gati.repository.agreement`.
        families: Names of the families of heads to try, or `auto`.
        memory: Bytes that all heads together may take; None for any.
        p99: Seconds that 99 % of requests may take at most; None for any.
        views: Images to train on at least: views are added where samples are fewer.
        seed: The same seed, samples and machine speed give the same heads.
        key: Decides, together with a sample's content, whether it trains or certifies. It comes from the chain's
            segments, which clients do not know.
        proof: Whether to search for a better composition until it is proven that there is none, for some 20 s at most;
            otherwise the search takes a second.
        trained: Marks of samples that always train, whatever their part would be
            (gati_export.certificates.splitting.marks).
    """

    epsilon: float = 0.01
    delta: float = 0.05
    agreement: str = DEFAULT
    families: str = AUTO
    memory: int | None = None
    p99: float | None = None
    views: int = ENOUGH
    seed: int = 0
    key: bytes = b""
    proof: bool = False
    trained: frozenset[bytes] = frozenset()

    @property
    def numbers(self) -> bool:
        """Whether answers are numbers, and not scores of classes."""
        return of_numbers(self.agreement)

    @classmethod
    def of(cls, chain: Chain, seed: int, trained: bytes = b"") -> Terms:
        """The terms that a chain was exported with; for `trained`, see `Chain.read_trained`."""
        return cls(
            epsilon=chain.epsilon,
            delta=chain.delta,
            agreement=chain.agreement,
            families=chain.families,
            memory=chain.memory,
            p99=chain.p99,
            views=chain.views,
            seed=seed,
            key=hashlib.sha256("".join(chain.digests()).encode()).digest(),
            trained=frozenset(trained[start : start + MARK] for start in range(0, len(trained), MARK)),
        )
