"""An interpolated Kneser-Ney n-gram model: what counting alone knows about the held-out text.

Kneser & Ney (ICASSP 1995) with interpolation and one discount an order, as in Chen & Goodman
(1999), equations 2 and 3. A neural model that does not clearly beat it has learnt little.
"""

from dataclasses import dataclass

import numpy as np

from foredraft.training.corpus import VOCAB_SIZE

BITS = 12
"""Bits a token: five tokens of a 4,096-word vocabulary fit into one 64-bit integer."""


@dataclass(frozen=True, slots=True)
class _Order:
    """The n-grams of one order, as sorted packed integers with their counts, and their contexts."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    context_totals: np.ndarray
    context_types: np.ndarray
    discount: float


@dataclass(frozen=True, slots=True)
class NGram:
    """A fitted model; `orders[k]` holds the (k+1)-grams."""

    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, tokens: np.ndarray, n: int = 5) -> "NGram":
        """Count all n-grams of a token stream; lower orders count distinct left neighbours."""
        if not 1 <= n * BITS < 64:
            raise ValueError(f"n={n}: 1 to {63 // BITS} tokens fit into a 64-bit integer")
        if int(tokens.max(initial=0)) >= 1 << BITS:
            raise ValueError(f"token {int(tokens.max())} needs more than {BITS} bits")
        grams, counts = _counted(_packed(tokens, n))
        orders = [_order(grams, counts)]
        for size in range(n - 1, 0, -1):
            # Distinct n-grams that end in the same tokens have distinct left neighbours.
            types = _counted(_packed(tokens, size + 1))[0] if size < n - 1 else grams
            grams, counts = _counted(types & _ones(size))
            orders.append(_order(grams, counts))
        return cls(tuple(reversed(orders)))

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """Give the natural logarithm of P(token | those before it) from the n-th token on."""
        n = len(self.orders)
        packed = _packed(tokens, n)
        probability = np.full(len(packed), 1.0 / VOCAB_SIZE)
        for size, order in enumerate(self.orders, start=1):
            probability = _interpolated(order, packed & _ones(size), probability)
        return np.log(probability)


def _packed(tokens: np.ndarray, n: int) -> np.ndarray:
    """Pack each run of n tokens into an integer, the last token lowest."""
    wide = tokens.astype(np.int64)
    packed = np.zeros(len(wide) - n + 1, dtype=np.int64)
    for offset in range(n):
        packed = (packed << BITS) | wide[offset : len(wide) - n + 1 + offset]
    return packed


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the distinct values, ascending, and how often each occurs."""
    ordered = np.sort(values)
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    return ordered[starts], np.diff(starts, append=len(ordered))


def _ones(size: int) -> int:
    return (1 << (BITS * size)) - 1


def _order(grams: np.ndarray, counts: np.ndarray) -> _Order:
    contexts, n_types = _counted(grams >> BITS)
    starts = np.cumsum(n_types) - n_types
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return _Order(
        grams=grams,
        counts=counts,
        contexts=contexts,
        context_totals=np.add.reduceat(counts, starts),
        context_types=n_types,
        discount=once / (once + 2 * twice) if once else 0.0,
    )


def _interpolated(order: _Order, packed: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Mix an order's discounted counts with the next lower order's probability."""
    gram, has_gram = _find(order.grams, packed)
    context, has_context = _find(order.contexts, packed >> BITS)
    total = order.context_totals[context]
    seen = np.where(has_gram, order.counts[gram] - order.discount, 0.0) / total
    spared = order.discount * order.context_types[context] / total
    return np.where(has_context, seen + spared * lower, lower)


def _find(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return index, values[index] == wanted
