"""Turn logits into one distribution, and draw the token from that very distribution.

The order is fixed: repetition penalty, temperature, top-k, top-p, min-p, typical-p, softmax. Each
step is a pure function from logits to logits, in which whatever a filter removes becomes −inf, with
the arithmetic of the processor of that name in `transformers`, so that the kept sets agree. Where
that library leaves the order of equal logits to an unstable sort (top-p), the lowest id is first.

Reading a value waits for the device. On the CPU that is free: bad input raises at once, and filters
run on a shortlist of the leading tokens when a glance shows that it holds all that they can keep.
On other devices nothing waits: the filters run on the whole vocabulary, and a bad row becomes NaN
throughout, which `poisoned` reports as a tensor for the caller to read at its next wait.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, final

import numpy
import torch

from foredraft.types import Bool, Float, Int, Logits, Probs, Tensor

Number = float | int
"""Spelt out, because a type check at run time does not take an int for a float."""

WIDE = 8192
"""Vocabulary size from which a shortlist, and a draw in two stages, repay their own cost."""

HEADS = (64, 1024)
"""Shortlists that top-p tries: 1.7 and 5.4 ms at [8, 256000] on one core; a full sort takes 150."""

BLOCK = 256
"""Tokens in a block of the draw in two stages."""


@final
@dataclass(frozen=True, slots=True)
class Sampler:
    """A law for the next token: how logits become probabilities, and how an id is drawn from them.

    The defaults switch every filter off. Temperature 0 is greedy: all the mass goes to the highest
    logit, the lowest id on ties, and of the other settings only the repetition penalty matters.

    >>> sampler = Sampler(temperature=0.7, top_p=0.9)
    >>> probs = sampler.probs(torch.tensor([2.0, 1.0, 0.0, -1.0]))
    >>> token = sampler.draw(probs, generator=torch.Generator().manual_seed(0))
    """

    temperature: Number = 1.0
    top_k: Number = 0  # a fraction is refused in words, below
    top_p: Number = 1.0
    min_p: Number = 0.0
    typical_p: Number = 1.0
    repetition_penalty: Number = 1.0

    def __post_init__(self) -> None:
        _demand(
            "temperature",
            self.temperature,
            lambda value: 0 <= value < math.inf,
            "a finite number from 0 up; 0 is greedy, 1 leaves the logits as they are",
        )
        _demand("top_k", self.top_k, _is_count, "an integer from 0 up; 0 switches it off")
        _demand("top_p", self.top_p, _is_mass, "a mass to keep, in (0, 1]; 1 switches it off")
        _demand(
            "min_p",
            self.min_p,
            lambda value: 0 <= value < 1,
            "a share of the highest probability, in [0, 1); 0 switches it off",
        )
        _demand(
            "typical_p", self.typical_p, _is_mass, "a mass to keep, in (0, 1]; 1 switches it off"
        )
        _demand(
            "repetition_penalty",
            self.repetition_penalty,
            lambda value: 0 < value < math.inf,
            "a finite number above 0; 1 switches it off, more discourages repetition",
        )

    def probs(self, logits: Logits, prefix: Int[Tensor, "... seq"] | None = None) -> Probs:
        """Give the distribution of the next token, in float32 (in float64 for float64 logits).

        Only the repetition penalty reads `prefix`: the ids so far, one sequence for each row of
        logits. Shorter sequences are padded with −1, on either side: negative ids are ignored.

        Raises ValueError for a row with NaN or +inf or with nothing above −inf, and for ids beyond
        the vocabulary. On a device other than the CPU such a row comes back as NaN throughout
        (`poisoned`) and such ids are ignored.
        """
        _require_tokens("logits", logits)
        scores = self._penalised(logits.to(_at_least_float32(logits)), prefix)
        if self.temperature == 0:
            return _refuse_poison(greedy(scores), scores)
        shortlist = self._shortlist(scores)
        if shortlist is None:
            return _refuse_poison(self._distribution(scores, self.top_p), scores)
        kept = self._distribution(scores.gather(-1, shortlist.ids), shortlist.top_p)
        return torch.zeros_like(scores).scatter_(-1, shortlist.ids, _refuse_poison(kept, scores))

    def draw(self, probs: Probs, *, generator: torch.Generator) -> Int[Tensor, "*batch"]:
        """Draw one id for each row by inverting its cumulated weights (`invert`).

        Rows need not sum to one, so a residual of speculative decoding is drawn from as it stands.
        A greedy sampler takes the heaviest id, the lowest on ties. An id of weight zero is never
        drawn. A wide row takes two stages, first a block of tokens by its mass, then a token within
        the block: 0.4 ms at [8, 256000] on one core, against 2 to 18 in one stage, which fills a
        float64 copy, and 34 for `torch.multinomial`. A block's mass is a float32 sum of 256 terms,
        no less exact than the terms are.

        Raises ValueError for a row with a negative or non-finite weight or without mass; on another
        device than the CPU such a row gives an arbitrary id.
        """
        _require_tokens("probs", probs)
        _require_weights(probs)
        if self.temperature == 0:
            return probs.argmax(-1)
        place = {"dtype": torch.float64, "device": probs.device}
        if probs.shape[-1] < WIDE:
            return invert(probs, torch.rand(probs.shape[:-1], **place, generator=generator))
        first, second = torch.rand((2, *probs.shape[:-1]), **place, generator=generator)
        blocks = _padded(probs, BLOCK).unflatten(-1, (-1, BLOCK))
        block = invert(blocks.sum(-1), first)
        within = blocks.take_along_dim(block[..., None, None], -2).squeeze(-2)
        return block * BLOCK + invert(within, second)

    def _penalised(self, scores: Logits, prefix: Int[Tensor, "... seq"] | None) -> Logits:
        if self.repetition_penalty == 1:
            return scores
        if prefix is None:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty} but prefix is None; "
                "pass the ids so far as prefix, or set the penalty to 1"
            )
        return penalise_repetition(scores, prefix, self.repetition_penalty)

    def _distribution(self, scores: Logits, top_p: Number | Float[Tensor, "... 1"]) -> Probs:
        if self.temperature != 1:
            scores = scores / self.temperature
        if self.top_k > 0:
            scores = keep_top_k(scores, int(self.top_k))
        if self.top_p < 1:
            scores = keep_top_p(scores, top_p)
        if self.min_p > 0:
            scores = keep_min_p(scores, self.min_p)
        if self.typical_p < 1:
            scores = keep_typical(scores, self.typical_p)
        return scores.softmax(-1)

    def _shortlist(self, scores: Logits) -> "_Shortlist | None":
        if not _may_look(scores) or scores.shape[-1] < WIDE:
            return None
        if self.top_k > 0:
            return _shortlist_by_rank(scores, self)
        if self.top_p < 1:
            return _shortlist_by_mass(scores, self)
        return None


def penalise_repetition(logits: Logits, prefix: Int[Tensor, "... seq"], penalty: Number) -> Logits:
    """Divide the positive logits of the ids in `prefix` by `penalty`; multiply the others by it.

    CTRL, arXiv 1909.05858. An id counts once, however often it occurs; negative ids are padding.
    """
    _require_prefix(prefix, logits)
    if prefix.shape[-1] == 0:
        return logits
    ids = prefix.long().masked_fill(prefix >= logits.shape[-1], -1)
    # Padding repeats an id of its row, which changes nothing. In a row of padding alone it stays
    # negative, and id 0 is written back as it was.
    ids = torch.where(ids < 0, ids.amax(-1, keepdim=True), ids)
    at = ids.clamp(min=0)
    logit = logits.gather(-1, at)
    penalised = torch.where(logit < 0, logit * penalty, logit / penalty)
    return logits.scatter(-1, at, torch.where(ids < 0, logit, penalised))


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Keep the `k` highest logits, and with them all that equal the lowest of these.

    Hierarchical neural story generation, arXiv 1805.04833.
    """
    if k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Logits, mass: Number | Float[Tensor, "... 1"]) -> Logits:
    """Keep the fewest tokens, most probable first, whose probabilities reach `mass`.

    The nucleus of The curious case of neural text degeneration, arXiv 1904.09751. As in
    `transformers`, probabilities cumulate from the lowest up; what stays within 1 − `mass` goes.
    """
    ascending = _sorted(logits)
    n_tokens = logits.shape[-1]
    n_removed = (ascending.softmax(-1).cumsum(-1) <= 1 - mass).sum(-1, keepdim=True)
    n_removed = n_removed.clamp(max=n_tokens - 1)
    cut = ascending.gather(-1, n_removed)
    removed = logits < cut
    if not _may_look(logits) or _splits_ties(ascending, n_removed):
        tied = logits == cut
        n_tied_kept = n_tokens - n_removed - (ascending > cut).sum(-1, keepdim=True)
        removed = removed | (tied & (tied.cumsum(-1) > n_tied_kept))
    return logits.masked_fill(removed, -math.inf)


def keep_min_p(logits: Logits, ratio: Number) -> Logits:
    """Keep the tokens at least `ratio` times as probable as the most probable one.

    Turning up the heat: min-p sampling, arXiv 2407.01082.
    """
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < ratio * probs.amax(-1, keepdim=True), -math.inf)


def keep_typical(logits: Logits, mass: Number) -> Logits:
    """Keep the fewest tokens that reach `mass`, those of surprise nearest to the entropy first.

    Locally typical sampling, arXiv 2202.00666. Ties with the last one stay, as in `transformers`.
    """
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
    deviation = (-log_probs - entropy).abs()
    ascending, order = deviation.sort(-1)
    cumulated = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (cumulated < mass).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(deviation > ascending.gather(-1, last), -math.inf)


def greedy(logits: Logits) -> Probs:
    """Put all the mass on the highest logit, the lowest id on ties."""
    peak, best = logits.max(-1, keepdim=True)
    zero = peak - peak  # NaN where the peak is no finite number, so that the row is poisoned
    return zero.expand_as(logits).scatter(-1, best, zero + 1)


def poisoned(probs: Probs) -> Bool[Tensor, ""]:
    """Say, on the device and without waiting, whether some row of `probs` came from bad logits.

    NaN, +inf or nothing above −inf make the softmax of the whole row NaN: one column tells.
    """
    return probs[..., 0].isnan().any()


def invert(
    weights: Float[Tensor, "*batch vocab"], uniform: Float[Tensor, "*batch"]
) -> Int[Tensor, "*batch"]:
    """Find the first token at which the cumulated weight exceeds the share `uniform` of the total.

    In float64: a float32 sum over 256000 tokens, or a float32 `uniform` with its 2²⁴ steps, would
    lose the rare ones. `uniform` may be anything in [0, 1]. Weights of zero are never found: on the
    CPU they do not raise the sum; on a GPU, whose cumulated sums need not be monotone to the last
    bit, they are ruled out by name.
    """
    cumulated = weights.cumsum(-1, dtype=torch.float64)
    if _may_look(weights):  # in a third of the time
        level = _level(cumulated[..., -1:], uniform[..., None])
        return torch.searchsorted(cumulated, level, right=True).squeeze(-1)
    cumulated = cumulated.masked_fill(weights <= 0, 0.0)
    level = _level(cumulated.amax(-1, keepdim=True), uniform[..., None])
    return (cumulated > level).byte().argmax(-1)


def _level(
    total: Float[Tensor, "*batch 1"], uniform: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch 1"]:
    """Give a share of the total, below it even where rounding says otherwise."""
    return torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))


@final
@dataclass(frozen=True, slots=True)
class _Shortlist:
    """Ids, ascending, among which are all that the filters can keep, and the top-p to use there."""

    ids: Int[Tensor, "... kept"]
    top_p: Number | Float[Tensor, "... 1"]


def _shortlist_by_rank(scores: Logits, sampler: Sampler) -> _Shortlist | None:
    """Find a head that ends below the k-th score: nothing outside it can rank or tie."""
    k = int(sampler.top_k)
    for width in (k + 16, 4 * k + 1024):
        if width > scores.shape[-1] // 8:
            return None
        head = scores.topk(width)
        tempered = head.values / sampler.temperature
        last = tempered[..., -1]
        if bool(((last < tempered[..., k - 1]) | (last == -math.inf)).all()):
            return _Shortlist(head.indices.sort(-1).values, sampler.top_p)
    return None


def _shortlist_by_mass(scores: Logits, sampler: Sampler) -> _Shortlist | None:
    """Find a head whose tokens above its last one hold more than top-p: the cut falls inside it.

    The nucleus of mass p of the vocabulary is the nucleus of mass p / h of a head that holds h.
    """
    probs = (scores / sampler.temperature).softmax(-1)
    total = probs.sum(-1, keepdim=True)  # a softmax of 256000 float32 terms is up to 1e-4 off 1
    peak = probs.amax(-1, keepdim=True) / total
    for width in HEADS:
        if bool((width * peak < sampler.top_p).any()):
            continue  # `width` tokens as probable as the best would still not hold enough
        head = probs.topk(width)
        share = head.values.double() / total
        inside = (share * (share > share[..., -1:])).sum(-1)
        if bool((inside > sampler.top_p).all()):
            ids = head.indices.sort(-1).values
            return _Shortlist(ids, sampler.top_p / share.sum(-1, keepdim=True))
    return None


def _may_look(tensor: Tensor) -> bool:
    """Say whether a value can be read without waiting for a device."""
    return tensor.is_cpu


def _sorted(logits: Logits) -> Logits:
    """Sort each row, ascending; at [8, 256000] NumPy takes 8 ms, `torch.sort` with indices 150."""
    if _may_look(logits):
        return torch.from_numpy(numpy.sort(logits.detach().numpy(), axis=-1))
    return logits.sort(-1).values


def _splits_ties(ascending: Logits, n_removed: Int[Tensor, "... 1"]) -> bool:
    """Say whether some row removes one of several equal logits and keeps another."""
    below = ascending.gather(-1, (n_removed - 1).clamp(min=0))
    return bool((below == ascending.gather(-1, n_removed)).any())


def _padded(rows: Tensor, multiple: int) -> Tensor:
    missing = -rows.shape[-1] % multiple
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows


def _at_least_float32(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def _is_count(value: Number) -> bool:
    return isinstance(value, Integral) and float(value) >= 0


def _is_mass(value: Number) -> bool:
    return 0 < value <= 1


def _demand(name: str, value: object, holds: Callable[[Any], bool], law: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not holds(value):
        raise ValueError(f"{name} is {value!r}; it must be {law}")


def _require_tokens(name: str, rows: Tensor) -> None:
    if rows.dim() == 0 or rows.shape[-1] == 0:
        raise ValueError(
            f"{name} have shape {list(rows.shape)}; the last dimension must hold a token or more"
        )


def _require_prefix(prefix: Tensor, logits: Tensor) -> None:
    if prefix.dim() == 0 or prefix.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"prefix has shape {list(prefix.shape)} and logits {list(logits.shape)}; give one "
            "sequence for each row of logits, padded with -1 where they differ in length"
        )
    if _may_look(prefix) and prefix.numel() > 0 and int(prefix.max()) >= logits.shape[-1]:
        raise ValueError(
            f"prefix holds the id {int(prefix.max())}, outside the vocabulary of "
            f"{logits.shape[-1]}; encode it with the model's own tokenizer, and pad with -1"
        )


def _require_weights(probs: Tensor) -> None:
    if not _may_look(probs) or probs.numel() == 0:
        return
    mass = probs.sum(-1)  # with `amin`, fifty times as fast as one `aminmax`
    if float(probs.amin()) >= 0 and all(0 < m < math.inf for m in mass.flatten().tolist()):
        return
    low = probs.amin(-1)
    bad = ~((low >= 0) & (mass > 0) & (mass < math.inf))
    if bool(bad.any()):
        row = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"probs of row {list(row)} sum to {mass[row]} with the least at {low[row]}; "
            "to be drawn from they must be non-negative and finite, and one of them positive"
        )


def _refuse_poison(
    probs: Float[Tensor, "*batch kept"], scores: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch kept"]:
    if _may_look(probs) and bool(poisoned(probs)):
        raise ValueError(_diagnose(scores))
    return probs


def _diagnose(scores: Tensor) -> str:
    """Name the first fault in scores whose softmax is NaN."""
    if bool(scores.isnan().any()):
        place = scores.isnan().nonzero()[0].tolist()
        return f"logits are NaN at {place}; look for an overflow in the model, or run it in float32"
    if bool((scores == math.inf).any()):
        place = (scores == math.inf).nonzero()[0].tolist()
        return f"logits are +inf at {place}; to force a token, set all the others to -inf instead"
    barred = (scores == -math.inf).all(-1)
    if bool(barred.any()):
        row = barred.nonzero().tolist()[0]
        return f"all logits of row {row} are -inf; leave at least one token finite"
    return (
        f"a temperature this low overflows logits as high as {scores.max()}; raise it, "
        "or set it to 0 for greedy decoding"
    )
