"""Closes a release's heads when audits show that its promise no longer holds.

Requests are drawn at random, hits and misses alike, before anything is known of them; a hit that was drawn is audited,
and a miss does not differ. For each exit there is a lower bound (gati.promise.betting) on the share of requests that
were answered at it or before it, and otherwise than the backbone would. Where that bound exceeds ε, the exit closes and
all behind it: the certificate covers a chain that is cut short, whose errors are some of its own, but not one with a
head left out, for later heads would be asked what they were not certified on.

That takes no correction for several exits. What differs up to one exit also differs up to the next, on every path, so
that when any bound exceeds ε the last one does, and that happens by chance with probability δ at most.

Frames of a scene are wrong together: of requests of which d depend on one another, each counts for 1/d of one. What
such heads may answer until it is known that they keep to the promise, gati.promise.budget sees to.

A request counts as one that agrees from when it is drawn until its audit says otherwise. Bounds from such counts are
never above what they would be if audits took no time, in whatever order these come back, late, or never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np

from gati.decode import decode
from gati.promise.betting import log_gains, lower_bound, refuted, upper_bound
from gati.promise.budget import START, Budget
from gati.promise.doubt import Doubt

BLOCK = 50
"""Drawn requests between two starts of bets."""
MOST_BLOCKS = 64
LONGEST = 50.0
"""Requests of a scene that are taken for one at most: a camera that stands still would have audits tell nothing."""


@dataclass(frozen=True)
class Alarm:
    """Why exits closed.

    Attributes:
        exit: The first that closed.
        drawn: Requests drawn since its heads first went live.
        differed: Those of them that were answered up to that exit, and not as by the backbone.
        lower: Lower bound on the share of such answers.
    """

    exit: int
    drawn: int
    differed: int
    lower: float

    def __str__(self) -> str:
        return (
            f"{self.differed} of {self.drawn} requests drawn were answered up to exit {self.exit} and not as by the "
            f"backbone, so more than {self.lower:.2%} of all are"
        )


@dataclass
class Block:
    """Requests drawn one after another: its place among all blocks, and what became of its requests.

    Those neither agreed nor differed are on their way still, or their audit was lost.
    """

    number: int
    drawn: int
    agreed: int
    differed: list[int]


class Breaker:
    """Watches one release's heads; what it has closed stays closed.

    Args:
        epsilon: Promised share of differing answers, at most.
        delta: Chance of a false alarm, at most.
        exits: The exits of the release's heads, in order.
        past: What an earlier breaker of the same heads has said of itself (`state`).
        together: How many requests depend on one another, as frames of a scene do, at least 1: so many are one.
            Of longer scenes than `LONGEST`, parts are.

    Attributes:
        alarm: Why exits are closed, None while none is.
        open_exits: The exits that are not.
        budget: What may yet differ of what they answer.

    Raises:
        ValueError: If `past` is not of such a breaker.
    """

    def __init__(
        self,
        epsilon: float,
        delta: float,
        exits: Sequence[int] = (),
        past: dict[str, Any] | None = None,
        together: float = 1.0,
    ) -> None:
        self._epsilon = epsilon
        self._delta = delta
        self._exits = tuple(exits)
        self._blocks = [Block(0, 0, 0, [0] * len(self._exits))]
        self._bounds: tuple[float, float] | None = (0.0, 1.0)
        self._together = min(together, LONGEST)
        self._doubt = Doubt(epsilon, delta, self._together)
        self._lock = Lock()
        self.budget = Budget()
        self.alarm: Alarm | None = None
        self.open_exits = self._exits
        if past is not None:
            self._resume(past)

    def went_live(self) -> None:
        """Takes in that its heads go live, perhaps not for the first time: traffic may be another by now."""
        with self._lock:
            self._doubt.begin()

    def traffic_changed(self) -> None:
        """Takes in that other things are answered than before; the oftener that went well, the less doubt there is."""
        with self._lock:
            self._doubt.traffic_changed()

    @property
    def eager(self) -> bool:
        """Whether to draw more requests than usual: there are open exits, and doubt about them.

        There is from when they go live, and from when traffic changes or some stretch up to then speaks against them,
        until it is over. It depends on what came before alone, so that the bounds hold whatever is made of it.
        """
        return bool(self.open_exits) and not self._doubt.over

    @property
    def knows(self) -> bool:
        """Whether any request was drawn."""
        return any(block.drawn for block in self._blocks)

    @property
    def closed_exits(self) -> tuple[int, ...]:
        """The exits that are closed."""
        return self._exits[len(self.open_exits) :]

    def draw(self, requests: int) -> int:
        """Takes in that requests were drawn; returns a number by which to say what became of them."""
        with self._lock:
            if self._blocks[-1].drawn >= BLOCK:
                self._blocks.append(Block(self._blocks[-1].number + 1, 0, 0, [0] * len(self._exits)))
                self._thin()
            self._blocks[-1].drawn += requests
            self._bounds = None
            return self._blocks[-1].number

    def take_back(self, drawn: int, requests: int) -> None:
        """Takes in that nobody answered some of the requests that were drawn, as `draw` numbered them."""
        with self._lock:
            self._block(drawn).drawn -= requests
            self._bounds = None

    def settle(self, drawn: int, agreed: int, differed: int = 0, exit_: int | None = None, price: float = 1.0) -> None:
        """Takes in what became of requests that were drawn.

        Args:
            drawn: What `draw` said of them.
            agreed: How many were answered as by the backbone.
            differed: How many were not.
            exit_: Where these were answered.
            price: What each of them takes from the budget.
        """
        with self._lock:
            block = self._block(drawn)
            block.agreed += agreed
            self._bounds = None
            was_over = self._doubt.over
            still_open = differed if exit_ in self.open_exits else 0
            self._doubt.take(agreed, still_open)
            self.budget.spend(still_open * price)
            if differed and exit_ is not None:
                block.differed[self._exits.index(exit_)] += differed
                self._judge()
                if was_over and self._leans():
                    self._doubt.suspect()

    def bounds(self) -> tuple[float, float]:
        """A lower and an upper confidence sequence for the share of answers that differ from the backbone's.

        While the share is one and the same, each of them holds at all times together with probability 1 − δ. When it
        rises, the lower one follows soon. Where they contradict each other it has changed, and the upper one is 1.
        """
        with self._lock:
            if self._bounds is None:
                self._bounds = self._bound()
            return self._bounds

    def state(self) -> dict[str, Any]:
        """What it knows, for JSON."""
        with self._lock:
            blocks = [[block.number, block.drawn, block.agreed, *block.differed] for block in self._blocks]
            left = round(self.budget.left, 3)
            return {"alarm": self.alarm and asdict(self.alarm), "left": left, "blocks": blocks}

    def _block(self, drawn: int) -> Block:
        return next(block for block in reversed(self._blocks) if block.number <= drawn)

    def _bound(self) -> tuple[float, float]:
        drawn, differed, weights = self._since_starts()
        lower = lower_bound(drawn, differed[-1], weights, self._delta)
        unknown_or_not = drawn[:1] - sum(block.agreed for block in self._blocks) / self._together
        upper = upper_bound(drawn[:1], unknown_or_not, np.ones(1), self._delta)
        return lower, upper if upper >= lower else 1.0

    def _judge(self) -> None:
        """Closes from the first exit whose bound exceeds ε; what is closed already was judged."""
        drawn, differed, weights = self._since_starts()
        for exit_, count in zip(self.open_exits, differed, strict=False):
            if refuted(self._epsilon, drawn, count, weights, self._delta):
                lower = lower_bound(drawn, count, weights, self._delta)
                requests, wrong = (round(float(some[0]) * self._together) for some in (drawn, count))
                self._close(Alarm(exit_, requests, wrong, lower))
                return

    def _close(self, alarm: Alarm) -> None:
        self.alarm = alarm
        self.open_exits = tuple(exit_ for exit_ in self._exits if exit_ < alarm.exit)
        self._doubt.narrow()
        self.budget.renew()

    def _leans(self) -> bool:
        """Whether some stretch up to now speaks against its open exits."""
        drawn, differed, _ = self._since_starts()
        still = len(self.open_exits)
        return still > 0 and bool(log_gains(self._epsilon, drawn, differed[still - 1]).max() > 0)

    def _since_starts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each start: requests drawn since, [starts]; those that differ up to each exit, [exits, starts]; weight.

        So many as depend on one another count together for one.

        Weights add up to 1: half for the first start, and for start k, 1 / (2 k (k + 1)).
        """
        blocks = self._blocks[::-1]
        drawn = np.cumsum([block.drawn for block in blocks])[::-1]
        differed = np.cumsum(np.cumsum([block.differed for block in blocks], axis=0), axis=1)[::-1]
        number = np.array([block.number for block in self._blocks], float)
        return drawn / self._together, differed.T / self._together, 0.5 / np.maximum(number * (number + 1), 1)

    def _thin(self) -> None:
        """Gives up a start, when there are too many: old ones lie apart in proportion to their age."""
        if len(self._blocks) <= MOST_BLOCKS:
            return
        ages = np.cumsum([block.drawn for block in self._blocks[::-1]])[::-1]
        place = 1 + int(np.argmin(ages[:-3] / ages[2:-1]))
        gone = self._blocks.pop(place)
        block = self._blocks[place - 1]
        block.drawn += gone.drawn
        block.agreed += gone.agreed
        block.differed = [a + b for a, b in zip(block.differed, gone.differed, strict=True)]

    def _resume(self, past: dict[str, Any]) -> None:
        """Goes on from what an earlier breaker said."""
        try:
            blocks = [Block(number, drawn, agreed, differed) for number, drawn, agreed, *differed in past["blocks"]]
            alarm = past["alarm"] and decode(Alarm, past["alarm"], "alarm", exact=True)
            left = float(past.get("left", START))
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"{error!r}") from error
        counts = [count for block in blocks for count in (block.number, block.drawn, block.agreed, *block.differed)]
        numbers = [block.number for block in blocks]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a count is none")
        if numbers[:1] != [0] or numbers != sorted(set(numbers)):
            raise ValueError("its blocks are out of order")
        if any(len(b.differed) != len(self._exits) or b.agreed + sum(b.differed) > b.drawn for b in blocks):
            raise ValueError("its counts do not add up")
        if alarm is not None and alarm.exit not in self._exits:
            raise ValueError("it closes an exit that there is not")
        self._blocks, self._bounds = blocks, None
        if not math.isfinite(left):
            raise ValueError("its budget is none")
        if alarm is not None:
            self._close(alarm)
        self.budget = Budget(left)
