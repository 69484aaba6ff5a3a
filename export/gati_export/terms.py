"""Terms: what heads are to keep to, from the command line to the certificate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gati.agreement import DEFAULT, of_numbers
from gati.chain import Chain
from gati_export.families import AUTO

MARK = 8
"""Bytes that tell a sample from others."""
ENOUGH = 20_000
"""Samples to train on that are aimed at, if nothing else is asked for."""


@dataclass(frozen=True)
class Terms:
    """What heads are to keep to.

    Attributes:
        epsilon: Largest share of requests whose answer may differ from the backbone's.
        delta: 1 − confidence of that.
        agreement: When answers don't differ; see `gati.agreement`.
        families: Names of the families of heads to try, or `auto`.
        memory: Bytes that all heads together may take; None for any.
        p99: Seconds that 99 % of requests may take at most; None for any.
        views: Images to train on at least: views are added where samples are fewer.
        seed: The same seed, samples and machine speed give the same heads.
        key: What decides, with a sample's content, whether it trains or certifies: the chain's segments, which clients
            don't know.
        proof: Whether to search for a better composition until there can be none, or for some 20 s; else for a second.
        trained: Marks of samples that train whatever part they would have by that (gati_export.splitting.marks).
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
        """Whether answers are numbers, and not which class has the largest score."""
        return of_numbers(self.agreement)

    @classmethod
    def of(cls, chain: Chain, seed: int, trained: bytes = b"") -> Terms:
        """What a chain's heads are to keep to, as its export had it; for `trained`, see `Chain.read_trained`."""
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
