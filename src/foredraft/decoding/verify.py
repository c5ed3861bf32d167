"""Decide which drafted tokens stand and what follows them, so that the output law is the target's.

Two rules, both exact. *Token* verification (Leviathan et al., arXiv 2211.17192, algorithm 1) keeps
each token x of a draft with probability min(1, p(x) ÷ q(x)) until the first that falls. *Block*
verification (Sun et al., arXiv 2403.10444, algorithm 2) looks at the draft as a whole and keeps, in
expectation, at least as many. After the last accepted token comes one more: from the residual
norm(max(0, w p − q)) if a draft was turned down there, where w is 1 for token verification and the
block's weight otherwise; from the target's own p if the whole draft stands.

No model, no sampler settings: p and q are the distributions after all filters, and q must be the
law that the token was drawn from. Rows of a batch may have drafts of different lengths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, final

import torch

from foredraft.sampling import Sampler
from foredraft.types import Bool, Float, Int, Tensor

DraftTokens = Int[Tensor, "batch drafted"]
DraftProbs = Float[Tensor, "batch drafted vocab"]
TargetProbs = Float[Tensor, "batch positions vocab"]
Counts = Int[Tensor, " batch"]
PerDraft = Float[Tensor, "batch drafted"]

_AS_IT_STANDS = Sampler()


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """One row's outcome: how many drafts stand, and the token that follows them.

    `kind` is "recovered" if that token was drawn from the residual, "bonus" if all drafts stand.
    """

    n_accepted: int
    token: int
    kind: Literal["recovered", "bonus"]


@final
@dataclass(frozen=True, slots=True)
class Verdicts:
    """The outcome of a batch, on its device: accepted drafts and the token after them, by row."""

    n_accepted: Counts
    token: Counts


def verify(
    draft_tokens: Int[Tensor, " drafted"],
    draft_probs: Float[Tensor, "drafted vocab"],
    target_probs: Float[Tensor, "positions vocab"],
    *,
    generator: torch.Generator,
    verification: str = "token",
) -> Verdict:
    """Verify one draft; what `verify_rows` does, which is what `generate` runs, for one row.

    Raises ValueError for shapes that do not fit and for a drafted token to which `draft_probs` give
    no mass: it cannot have been drawn from them.
    """
    n_drafted = draft_tokens.shape[0]
    require_fitting(draft_tokens[None], draft_probs[None], target_probs[None])
    if n_drafted and bool((_at(draft_probs[None], draft_tokens[None]) <= 0).any()):
        raise ValueError(
            "draft_probs give a drafted token the probability 0: pass the distribution that the "
            "tokens were drawn from, one-hot where they were not drawn at random"
        )
    verdicts = verify_rows(
        draft_tokens[None],
        draft_probs[None],
        target_probs[None],
        torch.tensor([n_drafted], device=draft_tokens.device),
        verification=verification,
        generator=generator,
    )
    n_accepted = int(verdicts.n_accepted)
    kind = "bonus" if n_accepted == n_drafted else "recovered"
    return Verdict(n_accepted, int(verdicts.token), kind)


def verify_rows(
    draft_tokens: DraftTokens,
    draft_probs: DraftProbs,
    target_probs: TargetProbs,
    lengths: Counts,
    *,
    verification: str,
    generator: torch.Generator,
) -> Verdicts:
    """Verify the first `lengths` drafted tokens of each row; nothing waits for the device.

    `target_probs[:, i]` is the target's law after i drafted tokens. What stands behind a row's
    length is ignored.
    """
    n_drafted = draft_tokens.shape[1]
    if n_drafted == 0:
        token = _AS_IT_STANDS.draw(target_probs[:, 0], generator=generator)
        return Verdicts(torch.zeros_like(token), token)
    rule = RULES[verification](draft_tokens, draft_probs, target_probs, lengths)
    uniforms = torch.rand(
        draft_tokens.shape, dtype=torch.float64, device=lengths.device, generator=generator
    )
    within = torch.arange(n_drafted, device=lengths.device) < lengths[:, None]
    n_accepted = rule.count(accepts(uniforms, rule.chances) & within)
    weights = residual(draft_probs, target_probs, rule.weights, n_accepted, lengths)
    return Verdicts(n_accepted, _AS_IT_STANDS.draw(weights, generator=generator))


def accepts(uniforms: PerDraft, chances: PerDraft) -> Bool[Tensor, "batch drafted"]:
    """Say yes with the given chance; a uniform of 0 does not let a chance of 0 through."""
    return uniforms < chances


def residual(
    draft_probs: DraftProbs,
    target_probs: TargetProbs,
    weights: Float[Tensor, "batch positions"],
    n_accepted: Counts,
    lengths: Counts,
) -> Float[Tensor, "batch vocab"]:
    """Give the weights of the token after the accepted ones: max(0, w p − q), or p for a bonus.

    Where rounding leaves no mass, p and q agree, and so do p and the residual.
    """
    rows = torch.arange(len(n_accepted), device=n_accepted.device)
    p = target_probs[rows, n_accepted]
    q = draft_probs[rows, n_accepted.clamp(max=draft_probs.shape[1] - 1)]
    w = weights[rows, n_accepted, None].to(p.dtype)
    rejected = (n_accepted < lengths)[:, None]
    left = torch.where(rejected, (w * p - q).clamp(min=0), p)
    return torch.where(left.sum(-1, keepdim=True) > 0, left, p)


def require_fitting(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor) -> None:
    """Raise ValueError unless the shapes are [batch k], [batch k vocab] and [batch k+1 vocab]."""
    batch, n_drafted = tokens.shape
    vocab = target_probs.shape[-1]
    wanted = (batch, n_drafted, vocab), (batch, n_drafted + 1, vocab)
    if (tuple(draft_probs.shape), tuple(target_probs.shape)) != wanted:
        raise ValueError(
            f"{n_drafted} drafted tokens for each of {batch} rows need probabilities of shape "
            f"{wanted[0]} from the draft and {wanted[1]} from the target; they have "
            f"{tuple(draft_probs.shape)} and {tuple(target_probs.shape)}"
        )


class _Rule(Protocol):
    """The chance of each drafted token, the weight w of the residual after each, and the count."""

    chances: PerDraft
    weights: Float[Tensor, "batch positions"]

    def count(self, accepted: Bool[Tensor, "batch drafted"]) -> Counts: ...


@final
class _TokenRule:
    """Keep each token with min(1, p ÷ q); the first to fall ends the draft."""

    def __init__(
        self, tokens: DraftTokens, draft_probs: DraftProbs, target: TargetProbs, lengths: Counts
    ) -> None:
        self.chances = _ratios(tokens, draft_probs, target)
        self.weights = target.new_ones(target.shape[:2])

    def count(self, accepted: Bool[Tensor, "batch drafted"]) -> Counts:
        """Count the drafts before the first rejected one."""
        return accepted.cumprod(-1).sum(-1)


@final
class _BlockRule:
    """Keep the longest prefix that any of the draft's coins lets stand (2403.10444, eqs. 3 to 5).

    w_i = min(1, w_{i−1} p(x_i) ÷ q(x_i)) is the chance that at least i tokens stand. At the end of
    the draft the coin shows w; before, with z = Σ max(0, w_i p − q), it shows z ÷ (z + 1 − w_i).
    """

    def __init__(
        self, tokens: DraftTokens, draft_probs: DraftProbs, target: TargetProbs, lengths: Counts
    ) -> None:
        ratios = _ratios(tokens, draft_probs, target)
        weights = [torch.ones_like(ratios[:, 0])]
        for ratio in ratios.unbind(1):
            weights.append((weights[-1] * ratio).clamp(max=1))
        self.weights = torch.stack(weights, 1)
        weight = self.weights[:, 1:]
        inner = weight[:, :-1, None] * target[:, 1:-1] - draft_probs[:, 1:]
        z = torch.nn.functional.pad(inner.clamp(min=0).sum(-1), (0, 1))
        below = z + 1 - weight
        coins = torch.where(below > 0, z / below, 1.0)  # w = 1 and p = q after it: all will stand
        last = torch.arange(tokens.shape[1], device=tokens.device) == lengths[:, None] - 1
        self.chances = torch.where(last, weight, coins)

    def count(self, accepted: Bool[Tensor, "batch drafted"]) -> Counts:
        """Find the last draft whose coin said yes."""
        places = torch.arange(1, accepted.shape[1] + 1, device=accepted.device)
        return (accepted * places).amax(-1)


RULES: Mapping[str, type[_TokenRule] | type[_BlockRule]] = {
    "token": _TokenRule,
    "block": _BlockRule,
}


def _ratios(tokens: DraftTokens, draft_probs: DraftProbs, target: TargetProbs) -> PerDraft:
    """Give p(x) ÷ q(x) of each drafted token; NaN, which nothing is below, where both are 0."""
    return _at(target[:, :-1], tokens) / _at(draft_probs, tokens)


def _at(probs: Float[Tensor, "batch drafted vocab"], tokens: DraftTokens) -> PerDraft:
    return probs.gather(-1, tokens[..., None]).squeeze(-1)
