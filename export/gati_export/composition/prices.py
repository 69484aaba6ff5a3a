"""Prices: what it takes at least to answer samples, by Lagrangian decomposition.

Every sample chooses heads, and whether they hit it, for itself alone, but pays for that; every cut point chooses one
head and threshold for all, and earns what they pay. Whatever the prices, that takes no longer than the best
composition. Prices that were learned, by gradient ascent on the bound, make both sides want nearly the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor as Torch

from gati_export.composition.tree import Prices, Tree

COOLING = ((0.03, 100), (0.01, 150), (0.003, 300), (0.001, 300))
"""How prices are learned: how blurred choices are, as a share of the backbone's time, and steps at that."""
LARGE = 50_000
"""Heads × samples beyond which steps are fewer, so that learning takes no longer: some 10 s."""
BLUR = 0.04
"""How blurred those of cut points are, as a share of that of all samples together."""
BLOCKED = 1e6
"""What can't be chosen costs, in units of the backbone's time."""


class Market:
    """What samples pay and cut points earn; heads are padded to as many at every cut point, [cut points, heads, n]."""

    def __init__(self, tree: Tree, kind: torch.dtype = torch.float64) -> None:
        self.tree, self.kind = tree, kind
        widest = max(map(len, tree.at))
        levels, counts = np.zeros((tree.cuts, widest, tree.n), int), np.zeros((tree.cuts, widest, 1), int)
        wrong, costs = np.zeros(levels.shape, bool), np.zeros((2, *counts.shape))
        for cut, numbers in enumerate(tree.at):
            for slot, head in enumerate(tree.heads[number] for number in numbers):
                levels[cut, slot], wrong[cut, slot] = head.levels, head.wrong
                counts[cut, slot], costs[:, cut, slot, 0] = len(head.thresholds), (head.seconds, head.bytes)
        costs[0][counts == 0] = BLOCKED
        self.shape, self.wrong = levels.shape, torch.from_numpy(wrong).to(kind)
        self.seconds, bytes_ = torch.from_numpy(costs).to(kind)
        self.bytes = bytes_ / self.budget
        self.order = torch.from_numpy(levels.argsort(axis=2, kind="stable"))
        ordered = np.sort(levels, axis=2)
        ends = (ordered < counts) & (ordered != np.pad(ordered[:, :, 1:], ((0, 0), (0, 0), (0, 1)), constant_values=-1))
        self.unhit = torch.from_numpy(np.where(levels < counts, 0, BLOCKED)).to(kind)
        self.unset = torch.from_numpy(np.where(ends, 0, BLOCKED)).to(kind)

    @property
    def budget(self) -> float:
        """Bytes that a price of bytes is for."""
        return max(self.tree.bytes, 1) if self.tree.bytes < math.inf else math.inf

    def clear(self, x: Torch, heat: float) -> tuple[Torch, Torch, Torch]:
        """What samples pay at least, and cut points earn at most.

        Args:
            x: Prices: of every sample's hit and of its miss of every head; then, as roots, those of an error and of all
                bytes. Roots are never negative when squared, and are counted in tenths so that all prices are learned
                at the same pace.
            heat: How blurred choices are, so that there is a gradient; 0 for the bound itself.

        Returns:
            Time and prices of a sample that remains before cut point k [cut points + 1, n], prices alone of one that
            does not [cut points + 1, n], and, negative, what cut points earn [cut points].
        """
        tree = self.tree
        hit, miss = x[:-2].view(2, *self.shape)
        error, byte = (x[-2:] / 10) ** 2
        nothing = torch.zeros_like(hit[:, :1])
        owed = byte * self.bytes - (hit - miss).gather(2, self.order).cumsum(2) - miss.sum(2, keepdim=True) + self.unset
        earned = _least(torch.cat([nothing[:, :, 0], owed.flatten(1)], 1), heat * BLUR * tree.n)
        hit = hit + self.unhit
        gone = _least(torch.cat([nothing, miss, hit], 1), heat)
        gone = torch.cat([gone.flip(0).cumsum(0).flip(0), nothing[0]])
        passed = _least(torch.cat([nothing, miss + self.seconds], 1), heat)
        answered = _least(hit + self.seconds + error * self.wrong, heat) + gone[1:]
        remain = [nothing[0, 0] + tree.segments[-1]]
        for cut in reversed(range(tree.cuts)):
            either = torch.stack([remain[0] + passed[cut], answered[cut]])
            remain.insert(0, _least(either[None], heat)[0] + tree.segments[cut])
        return torch.stack(remain), gone, earned

    def total(self, x: Torch, heat: float) -> Torch:
        """The bound, as `clear` has it."""
        remain, _, earned = self.clear(x.to(self.kind), heat)
        allowed = torch.tensor([self.tree.errors, self.tree.bytes < math.inf])
        return remain[0].sum() + earned.sum() - (allowed * (x[-2:] / 10) ** 2).sum()

    def prices(self, x: Torch) -> Prices:
        """What the search needs of them."""
        remain, gone, earned = self.clear(x, 0.0)
        later = torch.cat([earned.flip(0).cumsum(0).flip(0), torch.zeros(1)])
        error, byte = ((x[-2:] / 10) ** 2).tolist()
        return Prices((remain - gone).numpy(), (gone.sum(1) + later).numpy(), error, byte / self.budget)


def _least(values: Torch, heat: float) -> Torch:
    """The smallest of values [..., choices, n or none]; heated, something smooth below it."""
    return -heat * torch.logsumexp(values / -heat, 1) if heat else values.amin(1)


def no_prices(tree: Tree) -> Prices:
    """Only errors have one: a sample is answered by the first head that can hit it, or by the first that is right."""
    market = Market(tree)
    tries = torch.zeros(6, 2 * math.prod(market.shape) + 2, dtype=torch.float64)
    tries[:, -2] = torch.tensor([0, 3, 5, 7, 10, 20])
    return market.prices(max(tries, key=lambda x: float(market.total(x, 0.0))))


def learn_prices(tree: Tree) -> Prices:
    """Prices that make the bound large, by L-BFGS on bounds that are blurred less and less."""
    market = Market(tree, torch.float32)

    def fall(x: np.ndarray, heat: float) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(x).requires_grad_()
        value = -market.total(point, heat) / tree.n
        value.backward()
        return value.item(), np.asarray(point.grad)

    x = np.zeros(2 * math.prod(market.shape) + 2)
    x[-2:] = 10, tree.bytes < math.inf
    share = min(1, LARGE / (len(tree.heads) * tree.n))
    for heat, most in COOLING:
        steps = math.ceil(most * share)
        x = minimize(fall, x, (heat,), jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxfun": 2 * steps}).x
    return Market(tree).prices(torch.from_numpy(x))
