"""Request sequences for benchmarks: which element of a pool is asked for, and when.

Every sequence is an array of indices into the pool, the same for the same seed. Unless `repeats` is asked for, an
element comes again only when all others that could have been drawn in its place have been used up: a chain should
earn its hits by what it learned, not by exact repeats, which Triton's response cache would answer too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class _Deck:
    """Elements drawn at random: one after the other and reshuffled at the end, or, with repeats, independently."""

    def __init__(self, elements: np.ndarray, rng: np.random.Generator, repeats: bool) -> None:
        self._elements = elements
        self._rng = rng
        self._repeats = repeats
        self._left = elements[:0]

    def draw(self, count: int) -> np.ndarray:
        if self._repeats:
            return self._rng.choice(self._elements, count)
        shuffles = -(-max(0, count - len(self._left)) // len(self._elements))
        parts = [self._left, *(self._rng.permutation(self._elements) for _ in range(shuffles))]
        drawn = np.concatenate(parts)
        self._left = drawn[count:]
        return drawn[:count]


def iid(pool_size: int, n: int, seed: int, *, repeats: bool = False) -> np.ndarray:
    """Requests without any locality: every element of the pool is as likely as the others.

    Args:
        pool_size: Elements in the pool.
        n: Requests.
        seed: Of the sequence.
        repeats: Whether each draw is independent; else the pool is used up, then reshuffled.

    Returns:
        INT64 [n], indices into the pool.

    Raises:
        ValueError: If the pool is empty or `n` is negative.
    """
    _check(1, pool_size=pool_size)
    _check(0, n=n)
    return _Deck(np.arange(pool_size), np.random.default_rng(seed), repeats).draw(n)


def hot(
    classes: np.ndarray,
    n: int,
    *,
    seed: int,
    hot: int = 2,
    share: float = 0.95,
    dwell: int = 2000,
    repeats: bool = False,
) -> np.ndarray:
    """Requests whose popular classes drift: a few classes carry most requests for a while, then others do.

    A request is for a hot class with probability `share`, each hot class as likely as the others; else it is for any
    other element of the pool. The next hot classes are drawn from those that are not hot now, as far as they suffice.

    Args:
        classes: Integer [pool], the (predicted) class of each element.
        n: Requests.
        seed: Of the sequence.
        hot: Classes that are hot at a time; if that is all classes, `share` has no effect.
        share: Of requests that they carry, 0..1.
        dwell: Requests for which they stay hot.
        repeats: Whether each draw is independent; else a class is used up, then reshuffled.

    Returns:
        INT64 [n], indices into the pool.

    Raises:
        ValueError: If an argument is out of its range.
    """
    present, members = np.unique(classes, return_inverse=True)
    _check(0, n=n)
    _check(1, hot=hot, dwell=dwell, classes=len(present))
    if hot > len(present) or not 0 <= share <= 1:
        raise ValueError(f"`hot` goes up to the pool's {len(present)} classes and `share` to 1, not {hot} and {share}.")
    rng = np.random.default_rng(seed)
    decks = [_Deck(np.flatnonzero(members == c), rng, repeats) for c in range(len(present))]
    sizes = np.bincount(members).astype(float)
    popular = np.empty(0, np.int64)
    sequence = np.empty(n, np.int64)
    for start in range(0, n, dwell):
        popular = _next_hot(popular, len(present), hot, rng)
        period = sequence[start : start + dwell]
        asked = _classes_asked(len(period), popular, sizes, share, rng)
        for c in np.unique(asked):
            period[asked == c] = decks[c].draw(int((asked == c).sum()))
    return sequence


def _next_hot(popular: np.ndarray, classes: int, hot: int, rng: np.random.Generator) -> np.ndarray:
    """Classes that are hot next: fresh ones, and former ones only where those don't suffice."""
    fresh = rng.permutation(np.setdiff1d(np.arange(classes), popular))
    return np.concatenate([fresh, rng.permutation(popular)])[:hot]


def _classes_asked(
    n: int, popular: np.ndarray, sizes: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """The class of each of `n` requests; `sizes` are the elements of each class."""
    others = sizes.copy()
    others[popular] = 0
    if not others.any():
        return rng.choice(popular, n)
    rest = rng.choice(len(sizes), n, p=others / others.sum())
    return np.where(rng.random(n) < share, rng.choice(popular, n), rest)


def frames(pool_size: int, n: int, *, seed: int, run: int = 30, repeats: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Requests of a camera: each element of the pool for `run` requests in a row; `jitter` tells the frames apart.

    Args:
        pool_size: Elements (scenes) in the pool.
        n: Requests.
        seed: Of the sequence.
        run: Frames of one scene.
        repeats: Whether scenes are drawn independently; else the pool is used up, then reshuffled.

    Returns:
        INT64 [n], indices into the pool; and INT64 [n], the frame's number within its scene, from 0.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check(1, pool_size=pool_size, run=run)
    _check(0, n=n)
    scenes = iid(pool_size, -(-n // run), seed, repeats=repeats)
    return np.repeat(scenes, run)[:n], np.arange(n) % run


def jitter(image: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Frames of one scene, without end: a hand that shakes, light that flickers, a sensor that is noisy.

    From frame to frame the picture moves by at most one pixel in each direction, a random walk that stays within
    two pixels of where it began (edges are repeated); its brightness is scaled by 1 ± 5 % (σ), and every value gets
    noise of σ 2/255.

    Args:
        image: Float [channels, height, width], values 0..1 (before any normalization).
        rng: What the frames are drawn with.

    Yields:
        Frames of the image's shape and dtype, values 0..1.
    """
    reach = 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    height, width = image.shape[1:]
    offset = np.zeros(2, np.int64)
    while True:
        top, left = offset + reach
        frame = padded[:, top : top + height, left : left + width] * (1 + 0.05 * rng.standard_normal())
        frame = frame + rng.standard_normal(image.shape) * (2 / 255)
        yield np.clip(frame, 0, 1).astype(image.dtype)
        offset = np.clip(offset + rng.integers(-1, 2, 2), -reach, reach)


def film(pool: np.ndarray, index: np.ndarray, frame: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The pictures of a sequence made by `frames`: `jitter` of the scene shown, begun anew at each frame 0.

    Args:
        pool: Float [pool, channels, height, width], values 0..1.
        index: As `frames` gave it.
        frame: Likewise.
        seed: Of the jitter.

    Yields:
        Float [channels, height, width], one for each request.
    """
    rng = np.random.default_rng(seed)
    scene: Iterator[np.ndarray] = iter(())
    for i, number in zip(index, frame, strict=True):
        if number == 0:
            scene = jitter(pool[i], rng)
        yield next(scene)


def _check(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"`{name}` must be at least {least}, not {count}.")
