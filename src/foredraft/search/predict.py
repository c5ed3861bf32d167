"""Predict what a skip plan is worth without decoding: tokens per round, and the speed-up.

Along a text that the target wrote, the rounds of speculative decoding are a renewal process. A
round that starts after new token a drafts up to γ tokens, of which the first n are accepted, and
the next one starts after token a + n + 1. The chances of each n are known (`teacher_forced`), so
r_a, the chance that a round starts after token a, follows from those before it, and the expected
rounds of the text are Σ r_a. That is not the same as to take each position for as likely a start
as any other: rounds start more often after rejections, where drafts go on to be bad.

What a round that starts after a yields is 1 + Σ_k P(k − 1 drafts stand) · β_k: the chance that the
k-th stands too is averaged over what the target might have said there, which has less noise than
the chance of what it did say, and the same mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from foredraft.analysis.statistics import Estimate, ratio
from foredraft.decoding.theory import Costs
from foredraft.decoding.trace import Trace
from foredraft.models.config import DecoderConfig
from foredraft.models.skip import SkipPlan
from foredraft.sampling import Sampler
from foredraft.search.teacher_forced import Chances, Rehearsal

CostModel = Callable[[SkipPlan], Costs]
"""What the parts of a round cost under a plan, in any one unit of time."""


@final
@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds of each text at one draft length, counted by what they draft: expected, or made.

    `by_drafted[text, n]` are the rounds that draft n tokens, fewer than γ where a text ends;
    `accepted[text]` the drafts that stand. `places` is how many tokens a text gets: the same as
    `tokens` on average over the target's law.
    """

    length: int
    places: int
    by_drafted: np.ndarray
    accepted: np.ndarray

    @classmethod
    def counted(cls, traces: Iterable[Trace], length: int) -> "Rounds":
        """Count those that were decoded, after the prefill, of one text a trace."""
        rows = [[each.rows[0] for each in trace.rounds[1:]] for trace in traces]
        by_drafted = [
            np.bincount([row.drafted for row in text], minlength=length + 1) for text in rows
        ]
        accepted = [float(sum(row.accepted for row in text)) for text in rows]
        places = max(sum(len(row.tokens) for row in text) for text in rows)
        return cls(length, places, np.stack(by_drafted).astype(float), np.array(accepted))

    @property
    def count(self) -> np.ndarray:
        """Rounds of each text."""
        return self.by_drafted.sum(1)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens that the rounds of each text yield: the drafts that stand, and one each."""
        return self.count + self.accepted

    @property
    def drafted(self) -> np.ndarray:
        """Tokens drafted in each text."""
        return self.by_drafted @ np.arange(self.length + 1)

    def time(self, costs: Costs) -> np.ndarray:
        """Give what each text takes, in the unit of the costs."""
        return self.by_drafted @ np.array([costs.round(n) for n in range(self.length + 1)])


def rounds(chances: Sequence[Chances], length: int) -> Rounds:
    """Follow the rounds along every text; `chances` are those of the first `length` drafts."""
    if not 1 <= length <= len(chances):
        raise ValueError(f"length is {length}: chances are known for 1 to {len(chances)} drafts")
    stands, overlaps = (
        [getattr(each, name).double().cpu().numpy() for each in chances[:length]]
        for name in ("accepted", "overlap")
    )
    n_texts, places = stands[0].shape
    starts = np.zeros((n_texts, places + 1))
    starts[:, 0] = 1.0
    by_drafted, accepted = np.zeros((n_texts, length + 1)), np.zeros(n_texts)
    for a in range(places):
        left = starts[:, a].copy()
        drafted = min(length, places - a - 1)  # what a text may still get, less the round's last
        by_drafted[:, drafted] += left
        for k in range(drafted):
            accepted += left * overlaps[k][:, a + k]
            stand = left * stands[k][:, a + k]
            starts[:, a + k + 1] += left - stand
            left = stand
        starts[:, a + drafted + 1] += left
    return Rounds(length, places, by_drafted, accepted)


def moments(chances: Sequence[Chances], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Give mean and variance of the rounds of each text, given the text; from its end backwards."""
    stands = [each.accepted.double().cpu().numpy() for each in chances[:length]]
    n_texts, places = stands[0].shape
    mean, square = np.zeros((n_texts, places + 1)), np.zeros((n_texts, places + 1))
    for a in reversed(range(places)):
        left, drafted = np.ones(n_texts), min(length, places - a - 1)
        for k in range(drafted + 1):
            stand = left * stands[k][:, a + k] if k < drafted else np.zeros(n_texts)
            chance, after = left - stand, a + k + 1  # k drafts stand, and the round's last token
            mean[:, a] += chance * (1 + mean[:, after])
            square[:, a] += chance * (1 + 2 * mean[:, after] + square[:, after])
            left = stand
    return mean[:, 0], square[:, 0] - mean[:, 0] ** 2


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """What decoding under a plan is expected to do at its best draft length."""

    plan: SkipPlan
    length: int
    speedup: Estimate
    acceptance: Estimate
    tokens_per_round: Estimate
    overlap: Estimate
    cost: float

    def metrics(self) -> dict[str, Estimate]:
        """Name its figures, for a search; `cost` is c and has no error."""
        return {
            "speedup": self.speedup,
            "acceptance": self.acceptance,
            "tokens_per_round": self.tokens_per_round,
            "overlap": self.overlap,
            "cost": Estimate(self.cost, 0.0),
            "length": Estimate(float(self.length), 0.0),
        }


@final
@dataclass(frozen=True, slots=True)
class Objective:
    """Foretells a plan's speed-up over plain decoding, as a search asks for it.

    Draft lengths are tried from 1 up to `longest`, until a longer one gains nothing: so few passes
    are needed for a plan that is poor. A length of 0, not to draft, is left out, since a search
    learns nothing from a speed-up of 1 whatever the plan. With `exact` False the one-pass
    approximation stands for the k-pass band.
    """

    rehearsal: Rehearsal
    costs: CostModel
    longest: int = 8
    sampler: Sampler | None = None
    exact: bool = True

    def __post_init__(self) -> None:
        """Refuse lengths that the texts have no room for."""
        if not 1 <= self.longest < self.rehearsal.n_places:
            raise ValueError(
                f"longest is {self.longest}: drafts of 1 to {self.rehearsal.n_places - 1} tokens "
                "fit these texts; rehearse longer ones, or draft less"
            )

    def __call__(self, plan: SkipPlan) -> Mapping[str, Estimate]:
        """Give the metrics of `predict`."""
        return self.predict(plan).metrics()

    def predict(self, plan: SkipPlan, length: int | None = None) -> Prediction:
        """Foretell what a plan does at a draft length, None: at the best one."""
        costs, best = self.costs(plan), None
        chances: list[Chances] = []
        for each in self._drafts(plan):
            chances.append(each)
            if length is not None and len(chances) < length:
                continue
            found = self._predicted(plan, chances, costs)
            if best is not None and found.speedup.mean <= best.speedup.mean:
                break
            best = found
            if len(chances) == (length or self.longest):
                break
        assert best is not None
        return best

    def _drafts(self, plan: SkipPlan) -> Iterable[Chances]:
        drafts = self.rehearsal.drafts if self.exact else self.rehearsal.one_pass
        return drafts(plan, self.sampler)

    def _predicted(self, plan: SkipPlan, chances: Sequence[Chances], costs: Costs) -> Prediction:
        found = rounds(chances, len(chances))
        overlaps = chances[0].overlap.double().mean(1).cpu().numpy()
        return Prediction(
            plan,
            found.length,
            speedup=ratio(found.tokens * costs.target, found.time(costs)),
            acceptance=ratio(found.accepted, found.drafted),
            tokens_per_round=ratio(found.tokens, found.count),
            overlap=ratio(overlaps, np.ones_like(overlaps)),
            cost=costs.draft / costs.target,
        )


@final
@dataclass(frozen=True, slots=True)
class ByBytes:
    """Costs by the share of the weight bytes that a step reads: for a machine not at hand.

    Verifying a draft reads what a plain step reads, whatever the draft's length.
    """

    config: DecoderConfig
    longest: int = 8

    def __call__(self, plan: SkipPlan) -> Costs:
        """Take a plain step for the unit of time."""
        verify = dict.fromkeys(range(1, self.longest + 1), 1.0)
        return Costs(target=1.0, draft=plan.cost(self.config), verify=verify)


@final
@dataclass(frozen=True, slots=True)
class Line:
    """What follows a draft in its round, as a line in the draft's length."""

    start: float
    slope: float

    def __call__(self, length: int) -> float:
        """Give it at a length; never nothing, since the target looks at every draft."""
        return max(1e-3, self.start + self.slope * length)


@final
@dataclass(frozen=True, slots=True)
class ByClock:
    """Costs as measured, in plain rounds: a draft step of the whole model, less each branch.

    A branch saves `attention` or `mlp`; each pair of one and the other saves `both` less than the
    sum. `rest[n]` is what follows a draft whose first n layers verification need not run again: of
    an early exit its layers, of any other plan none, and between the numbers that were timed it is
    interpolated. An early exit reads its last token too, for verification: a step without a head.
    """

    step: float
    attention: float
    mlp: float
    both: float
    rest: Mapping[int, Line]
    n_layers: int
    longest: int = 8

    def __call__(self, plan: SkipPlan) -> Costs:
        """Take off what the branches in the plan cost, and what verification is spared."""
        draft, exit_layer = self._draft(plan), plan.exit_layer(self.n_layers)
        verify = {n: self._rest(exit_layer or 0, n) for n in range(1, self.longest + 1)}
        head = self._draft(SkipPlan.layers(range(self.n_layers)))
        other = 0.0 if exit_layer is None else max(0.0, draft - head)
        return Costs(target=1.0, draft=draft, verify=verify, other=other)

    def _draft(self, plan: SkipPlan) -> float:
        attention, mlp = len(plan.attn), len(plan.mlp)
        saved = attention * self.attention + mlp * self.mlp - attention * mlp * self.both
        return max(0.0, self.step - saved)

    def _rest(self, spared: int, length: int) -> float:
        layers = sorted(self.rest)
        return float(np.interp(spared, layers, [self.rest[n](length) for n in layers]))
