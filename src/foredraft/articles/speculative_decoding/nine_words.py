"""The nine words of article 01 as a language: what speculative decoding emits, enumerated.

Right, with the chances, counts and residuals of the shipped rules, and wrong in several ways.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch

from foredraft.analysis.nine_words import NINE_LOGITS, NINE_WORDS
from foredraft.decoding.verify import RULES, residual, verify_rows
from foredraft.sampling import Sampler
from foredraft.types import Bool, Float, Int, Tensor

DRAFT_LOGITS = (2.2, 2.9, 0.9, 2.5, 0.3, 1.4, 0.6, -0.4, -1.5)
"""What a smaller model thinks of the same nine words: the right ones, in another order."""

HORIZON = 3
"""Words whose joint law is enumerated."""


def laws() -> tuple[Float[Tensor, "last vocab"], Float[Tensor, "last vocab"]]:
    """Give target and draft laws of the next word after each of the nine, in float64.

    After the i-th word the logits are those after the first, moved on by i words.
    """
    p, q = (
        torch.tensor(logits, dtype=torch.float64).softmax(-1)
        for logits in (NINE_LOGITS, DRAFT_LOGITS)
    )
    words = range(len(NINE_WORDS))
    return torch.stack([p.roll(i) for i in words]), torch.stack([q.roll(i) for i in words])


def first_word_laws(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"]) -> pd.DataFrame:
    """Give the parts of one round with one draft, and what it emits, right and wrong, by word.

    `overlap` is the mass that is drafted and accepted, `residual` the law after a rejection;
    `right` puts them together, and `wrong` draws from p again instead.
    """
    overlap = torch.minimum(p, q)
    one = torch.ones(1, 2, dtype=p.dtype)
    rejected, drafted = torch.tensor([0]), torch.tensor([1])
    left = residual(q[None, None], p.expand(1, 2, -1), one, rejected, drafted)[0]
    rest = 1 - overlap.sum()
    laws = {"p": p, "q": q, "overlap": overlap, "residual": left / left.sum()}
    laws |= {"right": overlap + rest * laws["residual"], "wrong": overlap + rest * p}
    return pd.DataFrame({"word": NINE_WORDS, **{name: law.numpy() for name, law in laws.items()}})


@final
@dataclass(frozen=True, slots=True)
class Variant:
    """A way to decode the nine words: one of the shipped rules, or that with a mistake in it."""

    name: str
    verification: str = "token"
    draws_p_again: bool = False
    """After a rejection, from p and not from the residual."""
    drafts_argmax: bool = False
    """The drafts are the argmax of q, and are judged as if they had been drawn from it."""
    takes_back_below: float = 0.0
    """A draft of less confidence than this is taken back, with all that follow it."""


VARIANTS = (
    Variant("token verification"),
    Variant("block verification", verification="block"),
    Variant("drawn from p again after a rejection", draws_p_again=True),
    Variant("argmax drafts, judged as drawn from q", drafts_argmax=True),
    Variant("unsure drafts taken back", takes_back_below=0.15),
)


def mistakes() -> pd.DataFrame:
    """Enumerate each variant's joint law of three words, and how far it is from the target's."""
    p, q = laws()
    wanted = p[0][:, None, None] * p[:, :, None] * p[None]
    rows = []
    for variant in VARIANTS:
        law = joint_law(p, q, variant)
        far = float((law - wanted).abs().sum() / 2)
        exact = variant.name.endswith("verification")
        rows.append({"variant": variant.name, "exact": exact, "total_variation": far})
    return pd.DataFrame(rows)


def joint_law(
    p: Float[Tensor, "last vocab"],
    q: Float[Tensor, "last vocab"],
    variant: Variant,
    *,
    length: int = 2,
) -> Float[Tensor, "vocab vocab vocab"]:
    """Chain rounds to the exact law of the three words after the first, with drafts of `length`."""
    laws = round_laws(p, q, variant, length=length)
    joint = p.new_zeros((len(p),) * HORIZON)
    waiting: dict[tuple[int, ...], float] = {(): 1.0}
    while waiting:
        longer: dict[tuple[int, ...], float] = defaultdict(float)
        for text, mass in waiting.items():
            for emitted, share in laws[text[-1] if text else 0].items():
                longer[(text + emitted)[:HORIZON]] += mass * share
        for text in [text for text in longer if len(text) == HORIZON]:
            joint[text] += longer.pop(text)
        waiting = longer
    return joint


def round_laws(
    p: Float[Tensor, "last vocab"], q: Float[Tensor, "last vocab"], variant: Variant, *, length: int
) -> list[dict[tuple[int, ...], float]]:
    """Give, for each last word, the exact law of what a round emits: all drafts, all coins.

    The coins' chances, the count and the residual are those of the shipped rules.
    """
    words, sides = torch.arange(len(p)), torch.arange(2)
    plan = torch.cartesian_prod(*[words] * (length + 1), *[sides] * length)
    texts, coins = plan[:, : length + 1], plan[:, length + 1 :].bool()
    outcomes = _outcomes(p[texts], q[texts[:, :-1]], texts[:, 1:], coins, variant)
    laws: list[dict[tuple[int, ...], float]] = [defaultdict(float) for _ in p]
    for last, drafts, n_accepted, mass, token in zip(
        texts[:, 0].tolist(),
        texts[:, 1:].tolist(),
        outcomes.n_accepted.tolist(),
        outcomes.mass.tolist(),
        outcomes.token.tolist(),
        strict=True,
    ):
        for word, share in enumerate(token):
            if mass * share:
                laws[last][(*drafts[:n_accepted], word)] += mass * share
    return laws


@final
@dataclass(frozen=True, slots=True)
class _Outcomes:
    n_accepted: Int[Tensor, " outcome"]
    mass: Float[Tensor, " outcome"]
    token: Float[Tensor, "outcome vocab"]


def _outcomes(
    p: Float[Tensor, "outcome positions vocab"],
    q: Float[Tensor, "outcome drafted vocab"],
    drafts: Int[Tensor, "outcome drafted"],
    coins: Bool[Tensor, "outcome drafted"],
    variant: Variant,
) -> _Outcomes:
    """Give the mass of each outcome, how many drafts stand in it, and the law of the last word."""
    sure = q.gather(-1, drafts[..., None]).squeeze(-1)
    lengths = (sure >= variant.takes_back_below).cumprod(-1).sum(-1)
    within = torch.arange(drafts.shape[1]) < lengths[:, None]
    drawn = sure
    if variant.drafts_argmax:
        drawn = (drafts == q.argmax(-1)).to(q.dtype)
    rule = RULES[variant.verification](drafts, q, p, lengths)
    heads = torch.where(within, rule.chances.clamp(max=1), 0.0)
    mass = drawn.prod(-1) * torch.where(coins, heads, 1 - heads).prod(-1)
    n_accepted = rule.count(coins & within)
    left = residual(q, p, rule.weights, n_accepted, lengths)
    if variant.draws_p_again:
        left = p.take_along_dim(n_accepted[:, None, None], 1).squeeze(1)
    return _Outcomes(n_accepted, mass, left / left.sum(-1, keepdim=True))


def first_words(
    *, draws: int, verification: str, generator: torch.Generator
) -> Int[Tensor, " draws"]:
    """Draw, many times over, the first word of a round with two drafts after the first word."""
    p, q = laws()
    texts = torch.zeros(draws, 1, dtype=torch.int64)
    for _ in range(2):
        more = Sampler().draw(q[texts[:, -1]], generator=generator)
        texts = torch.cat([texts, more[:, None]], 1)
    drafts = texts[:, 1:]
    verdicts = verify_rows(
        *(drafts, q[texts[:, :-1]], p[texts], torch.full((draws,), 2)),
        verification=verification,
        generator=generator,
    )
    return torch.where(verdicts.n_accepted > 0, drafts[:, 0], verdicts.token)


def chi_square(tokens: Int[Tensor, " draws"], law: Float[Tensor, " vocab"]) -> float:
    """Give the p-value of Pearson's χ² test that the tokens were drawn from the law."""
    from scipy.stats import chisquare

    counts = torch.bincount(tokens, minlength=len(law)).double()
    return float(chisquare(counts.numpy(), (law / law.sum() * len(tokens)).numpy()).pvalue)
