"""Splitting: which samples train heads, tune them, and calibrate the certificate, and which are one observation.

Frames of one scene say little more than one sample does: they go to one part together, and count once. So do copies, as
long as that certifies enough. Where one text in ten is "thanks", it doesn't, and copies that come apart are requests
like others: what is asked again and again will be, and what heads do with it is part of what they do with the traffic.
But they say nothing of what comes next (gati_export.certificates.certificate).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gati_export.certificates.certificate import Fresh, there_and_needed
from gati_export.certificates.runs import by_appearance
from gati_export.samples.ragged import count, unpadded
from gati_export.terms import MARK, Terms

SHARES = 0.60, 0.15
"""Of the samples, those that train and those that tune; the rest, 25 %, calibrates."""
EXTRA_SHARES, RUN_SHARES = (0.0, 0.30), (0.10, 0.27)
"""The same where there are other samples to train on, and where these come in runs, which those others don't show."""

DIGEST = "bytes and shapes"
"""What a sample's digest is of: another one draws other parts."""

TERMS = Terms()
INPUTS = "inputs"

FEWEST = 5
"""Runs with an input in common are one observation, unless the input is in so many."""
AMPLE = 3
"""And copies are, where there are so many times the inputs that it takes to certify heads without any error."""
TURN = (5**0.5 - 1) / 2
"""Of which the multiples lie evenly in 0..1, whatever their number."""


@dataclass(frozen=True)
class Split:
    """Indices of the samples that train heads, tune them, and calibrate the certificate.

    Attributes:
        train: Int [...], rising, like the others.
        tune: Likewise.
        calibrate: Likewise.
        groups: The run of every sample, and of those joined with it, int [n]. None is in two parts.
        inputs: What every sample asks, int [n]: the same number for copies.
        together: How many samples are to count for one where tests would have runs of one size: that of the run of one,
            on average over pairs of samples of a run, so that long runs among many short ones count as what they are.
            1 where there are no runs.
        way: How the samples were split. Whatever trains in one split never calibrates in another that was made in the
            same way. Empty if samples come in runs: a run's part then depends on the other samples.
        added: How many of them, the last, are no traffic: views, and what was given to train on alone.
    """

    train: np.ndarray
    tune: np.ndarray
    calibrate: np.ndarray
    groups: np.ndarray
    inputs: np.ndarray
    together: float = 1.0
    way: str = ""
    added: int = 0

    @property
    def traffic(self) -> np.ndarray:
        """What was served, or stands for it, in its order, int [...]."""
        return np.arange(len(self.groups) - self.added)

    @property
    def held_out(self) -> np.ndarray:
        """What tunes or calibrates, int [...]."""
        return np.concatenate([self.tune, self.calibrate])

    @property
    def fresh(self) -> Fresh:
        """Which of the samples that calibrate ask what none that trains or tunes asks."""
        asked, groups = self.inputs[self.calibrate], self.groups[self.calibrate]
        order = np.argsort(asked, kind="stable")
        first = np.searchsorted(asked[order], asked)
        turns = np.empty(len(asked), np.int64)
        turns[order] = np.arange(1, len(asked) + 1)
        seen = np.isin(asked, self.inputs[np.concatenate([self.train, self.tune])])
        return Fresh(np.where(seen, 0, turns - first), _joined(asked, groups))

    def grown(self, more: int) -> Split:
        """The same with so many more samples, which are last, each by itself, and train alone."""
        train = np.concatenate([self.train, len(self.groups) + np.arange(more)])
        groups, inputs = (_grown(names, more) for names in (self.groups, self.inputs))
        return replace(self, train=train, groups=groups, inputs=inputs, added=self.added + more)


def _grown(names: np.ndarray, more: int) -> np.ndarray:
    return np.concatenate([names, names.max(initial=-1) + 1 + np.arange(more)])


def split(
    samples: Mapping[str, np.ndarray],
    runs: np.ndarray | None = None,
    *,
    extra: bool = False,
    terms: Terms = TERMS,
    content: str = INPUTS,
) -> Split:
    """Splits samples by their content: 60 % train, 15 % tune, 25 % calibrate.

    What an input does is decided by its content and a key, whenever it is seen: so no copy of a sample that calibrates
    as the only one of its kind was ever trained on, nor was a sample of the same run. Copies go with it; but where too
    little could be certified so, they are dealt out to this part and those behind it: some of those that train also
    tune and calibrate.

    Args:
        samples: Model inputs by name, n rows each.
        runs: The run of each sample, int [n], as `find_runs` gives them; None if each is its own.
        extra: Whether there are others to train on, so that more of these can tune and calibrate.
        terms: What heads are to keep to, and the key.
        content: What samples are of.
    """
    found = [*digests(samples, range(count(samples)))]
    contents: dict[bytes, int] = {}
    inputs = np.array([contents.setdefault(digest, len(contents)) for digest in found], np.int64)
    runs = np.arange(len(found)) if runs is None else runs
    first = shares(runs, extra=extra)
    dealt = _dealt_out(inputs, runs, partial(_ample, kept=1 - sum(first), epsilon=terms.epsilon, delta=terms.delta))
    groups = _joined(np.where(dealt, len(found) + np.arange(len(found)), inputs), runs)
    drawn_by = [_keyed(digest, terms.key) for digest in found]
    own, drawn = (np.digitize(draws, np.cumsum(first)) for draws in _draws(groups, drawn_by, dealt))
    part = np.where(drawn < own, -1, drawn)
    trained = np.array([digest[:MARK] in terms.trained for digest in drawn_by])
    part[np.isin(groups, groups[trained])] = 0
    train, tune, calibrate = (np.flatnonzero(part == which) for which in range(3))
    sizes = np.unique(runs, return_counts=True)[1]
    way = f"{content} by {DIGEST}, {_keyed(b'', terms.key).hex()[:16]}" if len(sizes) == len(found) else ""
    return Split(train, tune, calibrate, groups, inputs, together(sizes), way)


def together(sizes: np.ndarray) -> float:
    """See `Split`, for runs of so many samples, int [runs].

    The mean over samples, which tells how much less these say than as many independent ones, is too little where few
    runs hold many of them: then a breaker's false-alarm rate is above delta (`scripts/simulate_audits.py --among`).
    """
    return float((sizes.astype(float) ** 3).sum() / (sizes.astype(float) ** 2).sum())


def marks(samples: Mapping[str, np.ndarray], index: Sequence[int] | np.ndarray, terms: Terms) -> frozenset[bytes]:
    """What tells the rows at `index` from others, but not what they are; see `Terms.trained`."""
    return frozenset(_keyed(digest, terms.key)[:MARK] for digest in digests(samples, index))


def _keyed(digest: bytes, key: bytes) -> bytes:
    """A digest that tells nobody without the key which part it draws: else clients could choose what calibrates."""
    return hashlib.blake2b(digest, key=key[: hashlib.blake2b.MAX_KEY_SIZE], digest_size=32).digest()


def _dealt_out(inputs: np.ndarray, runs: np.ndarray, ample: Callable[[np.ndarray], bool]) -> np.ndarray:
    """Whether copies of a sample have parts of their own, bool [n]: of all, or in runs of what is in many of these."""
    if len(np.unique(runs)) == len(runs):
        return np.full(len(runs), not ample(np.bincount(inputs)))
    pairs = np.unique([inputs, runs], axis=1)
    return (np.bincount(pairs[0]) >= FEWEST)[inputs]


def _ample(times: np.ndarray, kept: float, epsilon: float, delta: float) -> bool:
    """Whether inputs asked so many times, int [inputs], of which a share is kept to calibrate, certify enough.

    It is assumed that what is asked most often will be among them; else what is not would seem not to be asked at all.
    """
    places = np.arange(0, len(times), 1 / kept).astype(int)
    some = np.sort(times)[::-1][places[places < len(times)]]
    there, needed = there_and_needed(np.repeat(np.arange(len(some)), some), epsilon, delta)
    return there >= AMPLE * needed


def _draws(groups: np.ndarray, digests: Sequence[bytes], dealt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What decides the part of each sample, 0..1: by the digest that speaks for its group, and by the group itself.

    They are the same but where one digest speaks for several groups, of which the first alone has its draw. One that is
    dealt out speaks for others only if all of them are.
    """
    # it must not be chosen by the bytes that draw its part: the least is not uniform
    spokesman: dict[int, tuple[bool, bytes]] = {}
    for group, dealt_out, digest in zip(groups.tolist(), dealt.tolist(), digests, strict=True):
        known = spokesman.get(group)
        if known is None or (dealt_out, digest[8:]) < (known[0], known[1][8:]):
            spokesman[group] = dealt_out, digest
    turns: dict[bytes, int] = {}
    own, drawn = dict[int, float](), dict[int, float]()
    for group, (_, digest) in spokesman.items():
        turns[digest] = turns.get(digest, -1) + 1
        own[group] = int.from_bytes(digest[:8]) / 2**64
        drawn[group] = (own[group] + TURN * turns[digest]) % 1
    names = groups.tolist()
    return np.array([own[group] for group in names]), np.array([drawn[group] for group in names])


def shares(runs: np.ndarray | None, *, extra: bool) -> tuple[float, float]:
    """Of samples of these runs, what trains and what tunes; the rest calibrates."""
    if not extra:
        return SHARES
    return EXTRA_SHARES if runs is None or len(np.unique(runs)) == len(runs) else RUN_SHARES


def fingerprint(samples: Mapping[str, np.ndarray], index: np.ndarray) -> str:
    """SHA-256, in hex, of the rows at `index`, whatever their order."""
    return hashlib.sha256(b"".join(sorted(digests(samples, index)))).hexdigest()


def digests(samples: Mapping[str, np.ndarray], index: Sequence[int] | np.ndarray) -> Iterator[bytes]:
    """SHA-256 of each row's bytes and shapes over all inputs, in the order of their names; padding is left out.

    It is the same whatever else there is: a text is itself among texts of its length, and among longer ones.
    """
    arrays = [samples[name] for name in sorted(samples)]
    for row in index:
        digest = hashlib.sha256()
        for each in unpadded([array[row] for array in arrays]):
            digest.update(each.tobytes())
            digest.update(str(each.shape).encode())
        yield digest.digest()


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The finest groups, int [n], that leave together what either of two groupings has together."""
    first, second = (np.unique(each, return_inverse=True)[1] for each in (first, second))
    # the first grouping's groups are rows, the second's are columns: a sample links one of each
    size = first.max(initial=0) + 1
    links = coo_array((np.ones(len(first), bool), (first, second + size)), shape=(size + len(second),) * 2)
    return by_appearance(connected_components(links, directed=False)[1][first])
