"""What speculative decoding is worth on paper: expected tokens, speed-ups, and their ceilings.

Formulas of Leviathan, Kalman and Matias (arXiv 2211.17192), and their extension to acceptances that
differ by position, to measured costs and to block verification. An `acceptance` is one α for every
position of a draft, or the sequence α_1, α_2, …, where α_k = P(draft k is accepted | k − 1 are).
`length` is γ, and `cost` is c, the time of a draft step ÷ that of a target step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, final

import torch

from foredraft.decoding.verify import RULES
from foredraft.types import Float, Int, Probs, Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

Number = int | float
Acceptance = Number | Sequence[Number]


def overlap(p: Probs, q: Probs) -> Float[Tensor, "*batch"]:
    """Give β = Σ_x min(p, q), the chance that a token drawn from q is accepted for p (theorem 3.5).

    It is 1 less the total variation distance of the two.
    """
    return torch.minimum(p, q).sum(-1)


def expected_tokens(acceptance: Acceptance, length: int) -> float:
    """Give the expected tokens of a round: 1 + Σ_k α_1 ⋯ α_k, for one α (1 − α^{γ+1}) ÷ (1 − α).

    Equation 1 where the acceptances are independent; by position it holds whatever they are.
    """
    return 1.0 + sum(accumulate(_by_position(acceptance, length), mul))


def stand(
    drafts: Int[Tensor, "text drafted"],
    q: Float[Tensor, "text drafted vocab"],
    p: Float[Tensor, "text positions vocab"],
) -> dict[str, Float[Tensor, "text drafted"]]:
    """Give, by rule of verification, the chance that at least i drafts stand, i = 1, 2, ….

    Given the first i drafts; 1 + Σ_i of it is what a round expects of drafts that were drawn from
    `q` for the target laws `p`, which have one position more. It is a product of min(1, p ÷ q) for
    "token" and, for "block", w_i = min(1, w_{i−1} p ÷ q), averaged over the drafts behind them
    (arXiv 2403.10444, where w is called p): never less, and the same for the first draft.
    """
    lengths = torch.full((len(drafts),), drafts.shape[1], device=drafts.device)
    token, block = (RULES[name](drafts, q, p, lengths) for name in ("token", "block"))
    return {"token": token.chances.clamp(max=1).cumprod(-1), "block": block.weights[:, 1:]}


def speedup(acceptance: Acceptance, length: int, *, cost: Number) -> float:
    """Give how many times faster than plain decoding a round is (theorem 3.8).

    Verifying a draft is taken to cost one target step, whatever its length.
    """
    _require_positive("cost", cost)
    return expected_tokens(acceptance, length) / (length * cost + 1)


def best_length(acceptance: Acceptance, *, cost: Number, longest: int = 64) -> int:
    """Give the draft length of the highest `speedup`, the shortest on ties; 0: do not draft.

    Looks no further than the acceptances that are known.
    """
    _require_length("longest", longest)
    if not isinstance(acceptance, int | float):
        longest = min(longest, len(acceptance))
    return max(range(longest + 1), key=lambda length: speedup(acceptance, length, cost=cost))


def arithmetic_factor(acceptance: Acceptance, length: int, *, cost_operations: Number) -> float:
    """Give by what factor a token's arithmetic grows (theorem 3.11).

    `cost_operations` is ĉ: the operations of a draft step ÷ those of a target step.
    """
    _require_positive("cost_operations", cost_operations)
    return (length * cost_operations + length + 1) / expected_tokens(acceptance, length)


def ceiling(cost: Number) -> float:
    """Give 1 ÷ c, the speed-up that no acceptance and no draft length exceeds; 1 if c is more."""
    _require_positive("cost", cost)
    return max(1.0, 1 / cost)


def oracle_tokens(acceptance: Number) -> float:
    """Give 1 ÷ (1 − α), the tokens of a round that drafts exactly as far as it will be accepted.

    Section 3.5; infinite for α = 1.
    """
    _require_probability("acceptance", acceptance)
    return math.inf if acceptance == 1 else 1 / (1 - acceptance)


@final
@dataclass(frozen=True, slots=True)
class Costs:
    """What the parts of a round take, measured, all in one unit of time.

    `target` is an autoregressive round with all that goes with it, `draft` one draft step,
    `verify[k]` the target's pass over the k + 1 positions of a draft of k, and `other` whatever
    else a drafting round does.
    """

    target: Number
    draft: Number
    verify: Mapping[int, Number]
    other: Number = 0.0

    def __post_init__(self) -> None:
        _require_positive("target", self.target)
        for length, seconds in self.verify.items():
            _require_positive(f"verify[{length}]", seconds)
        for name, value in (("draft", self.draft), ("other", self.other)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; a time is finite and not negative")

    def round(self, drafted: int) -> Number:
        """Give the time of a round that drafts so many tokens; ValueError if it was not timed."""
        if drafted == 0:
            return self.target
        if drafted not in self.verify:
            raise ValueError(
                f"no verification of {drafted} drafts was timed, only of {sorted(self.verify)}: "
                "measure it, or ask for one of these lengths"
            )
        return drafted * self.draft + self.verify[drafted] + self.other


def predicted_speedup(acceptances: Sequence[Number], length: int, costs: Costs) -> float:
    """Give the speed-up that measured costs and acceptances by position predict.

    E(γ) · t_target ÷ (γ · t_draft + t_verify(γ) + t_other); not to draft (γ = 0) is 1.
    """
    if length == 0:
        return 1.0
    return expected_tokens(acceptances, length) * costs.target / costs.round(length)


def best_measured_length(acceptances: Sequence[Number], costs: Costs) -> int:
    """Give the draft length of the highest `predicted_speedup` among those that were timed.

    The shortest on ties; 0: do not draft. Looks no further than the acceptances that are known.
    """
    lengths = sorted({0} | {length for length in costs.verify if length <= len(acceptances)})
    return max(lengths, key=lambda length: predicted_speedup(acceptances, length, costs))


def position_acceptances(table: "DataFrame") -> list[float]:
    """Estimate α_1, α_2, … from the rounds of a `Trace.table()`, up to the longest draft.

    α_k counts the rounds that drafted at least k tokens and accepted k − 1. Where no round came
    that far it is 0: nothing is known to be gained there.
    """
    drafted, accepted = (table[name].to_numpy() for name in ("drafted", "accepted"))
    found = []
    for k in range(1, int(drafted.max(initial=0)) + 1):
        reached = accepted[(drafted >= k) & (accepted >= k - 1)]
        found.append(float((reached >= k).mean()) if len(reached) else 0.0)
    return found


def _by_position(acceptance: Acceptance, length: int) -> list[Number]:
    _require_length("length", length)
    if isinstance(acceptance, int | float):
        _require_probability("acceptance", acceptance)
        return [acceptance] * length
    if len(acceptance) < length:
        raise ValueError(
            f"acceptances are known for {len(acceptance)} positions, a draft of {length} needs as "
            "many: give more of them, or one number for all"
        )
    for position, each in enumerate(acceptance, 1):
        _require_probability(f"acceptance {position}", each)
    return list(acceptance[:length])


def _require_probability(name: str, value: Number) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a probability is 0 to 1: divide accepted by drafted")


def _require_length(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} is {value}; a draft has 0 tokens (do not draft) or more")


def _require_positive(name: str, value: Number) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and above 0: measure it")
