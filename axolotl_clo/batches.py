"""Micro-batches by tokens instead of examples: each row once in an epoch, as many for every rank."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from math import ceil

import numpy as np
from torch.utils.data import BatchSampler

# The reference is scored in batches so many times as large as training's on a GPU; a backward pass would take as much.
REFERENCE_BATCHES = 2


class TokenBatchSampler(BatchSampler):
    """Batches of at most ``budget`` tokens, for `accelerate` to hand out, one after the other, to the ranks.

    Every epoch has the same number of batches, which the trainer relies on. Rows of nearly one length change places
    between epochs and batches change their order, both drawn from seed and epoch alone, so that a resumed run goes on
    as it would have. The batches of a step hold nearly the same number of tokens.
    """

    batch_size = None  # type: ignore[assignment]  # they differ
    drop_last = False

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        *,
        ranks: int = 1,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            lengths: tokens of each row.
            budget: tokens a batch may have, no fewer than the longest row has.
            ranks: the number of batches is a multiple of this.
            seed: of the order.
            epoch: tells the epoch when one begins, from 0.
        """
        # Rounded, so that there are rows to change places with: on average 2 % more than the truth.
        self.costs = np.minimum([_round_up(length) for length in lengths], budget)
        self.ranks, self.seed, self.epoch = ranks, seed, epoch
        ordered = -np.sort(-self.costs)
        places = pack(ordered.tolist(), budget, multiple_of=ranks)
        places.sort(key=lambda batch: int(ordered[batch].sum()))
        self._steps = [places[i : i + ranks] for i in range(0, len(places), ranks)]

    def __len__(self) -> int:
        return len(self._steps) * self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        numbers = np.random.default_rng((self.seed, self.epoch()))
        drawn = numbers.permutation(len(self.costs))
        rows = drawn[np.argsort(-self.costs[drawn], kind="stable")]
        for step in numbers.permutation(len(self._steps)):
            for batch in numbers.permutation(self.ranks):
                yield rows[self._steps[step][batch]].tolist()

    @property
    def repeated(self) -> int:
        """Rows that come twice, because there are too few to give every rank a batch of its own."""
        return sum(map(len, chain.from_iterable(self._steps))) - len(self.costs)


def pack(costs: Sequence[int], budget: int, multiple_of: int = 1) -> list[list[int]]:
    """Spread items over as few batches as fit, evenly.

    The longest first, each into what is the emptiest batch then (R. L. Graham, "Bounds on multiprocessing timing
    anomalies", 1969), with more batches until none is too full.

    Args:
        costs: of the items, none above ``budget``.
        budget: what the costs of a batch may come to.
        multiple_of: the number of batches is a multiple of this.

    Returns:
        For each batch the numbers of its items. Where there are fewer items than batches, some come twice.
    """
    order = sorted(range(len(costs)), key=lambda item: -costs[item])
    halves = sum(cost > budget / 2 for cost in costs)
    groups = ceil(max(sum(costs) / budget, halves) / multiple_of)
    while True:
        count = groups * multiple_of
        batches: list[list[int]] = [[] for _ in range(count)]
        emptiest = [(0, i) for i in range(count)]
        for item in order:
            total, i = emptiest[0]
            heapq.heapreplace(emptiest, (total + costs[item], i))
            batches[i].append(item)
        if max(emptiest)[0] <= budget:
            return [batch or [order[-1]] for batch in batches]
        groups += ceil(groups / 100)


def _round_up(length: int) -> int:
    """To five leading bits."""
    unit = 1 << max(length.bit_length() - 5, 0)
    return ceil(length / unit) * unit
