"""Tune policies on costs that are timed first, then let the clock judge them: what is recorded."""

from collections.abc import Callable
from itertools import product

import pandas as pd

from foredraft.bench import now
from foredraft.benchmarks.gating import (
    PARTS,
    RoundCosts,
    Setting,
    Way,
    costs,
    gate_times,
    policy_times,
    round_costs,
)
from foredraft.decoding.draft import ModelDrafter
from foredraft.decoding.gate import (
    AlwaysDraft,
    ConfidenceGate,
    EntropyGate,
    GatePolicy,
    MarginGate,
)
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.theory import Costs
from foredraft.experiments.confidence_gating import Subject, script, subject, tuned
from foredraft.experiments.gating_policies import played
from foredraft.experiments.plan_search import sampler_name
from foredraft.models.skip import Parts
from foredraft.params import ConfidenceGating
from foredraft.sampling import Sampler

TIMED_PROMPTS, TIMED_TOKENS = 12, 96
"""What policies are tuned and timed on; parts of rounds on every second prompt, half as far."""

RACED = (
    "fixed length",
    "the article's gate",
    "confidence gate",
    "draft's confidence",
    "expected gain",
)
"""The policies that are timed, beside never drafting."""


def gating_benchmark(
    params: ConfidenceGating,
    *,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pd.DataFrame:
    """Time rounds, then policies tuned for them, of each drafter, greedy and at temperature 1.

    A row for each length of a draft, each policy, and the look of each kind of gate.
    """
    parts: list[pd.DataFrame] = []
    rules: list[GatePolicy] = []
    for drafter, temperature in product(params.drafters, (0.0, 1.0)):
        found = subject(drafter, params)
        told = {"model": found.model, "drafter": drafter, "sampler": sampler_name(temperature)}
        report(f"{drafter}, {told['sampler']}: what the parts of a round cost")
        less = _setting(found, temperature, every=2, share=2)
        timed = round_costs(less, clock=clock)
        known = costs(timed, longest=params.longest)
        as_long = params.model_copy(update={"max_new_tokens": TIMED_TOKENS})
        tuning = script(found, as_long, temperature=temperature)
        policies = {name: p for name, p in tuned(tuning, known, params).items() if name in RACED}
        report(f"{drafter}, {told['sampler']}: {len(policies)} policies")
        ways = {name: Way(policy.stop, policy.gate) for name, policy in policies.items()}
        raced = policy_times(_setting(found, temperature), ways, clock=clock)
        held_out = script(found, as_long, temperature=temperature, held_out=True)
        foretold = {
            name: played(held_out, policy, known).speedup(known).mean
            for name, policy in policies.items()
        }
        raced["foretold"] = [foretold.get(name, float("nan")) for name in raced["policy"]]
        for column in ("setting", "length"):
            values = {name: getattr(policy, column) for name, policy in policies.items()}
            raced[column] = [values.get(name, float("nan")) for name in raced["policy"]]
        parts += [timed.assign(**told), raced.assign(**told)]
        rules.append(policies["expected gain"].gate or AlwaysDraft())
    gates = {
        "always": AlwaysDraft(),
        "confidence": ConfidenceGate(params.threshold),
        "entropy": EntropyGate(1.0),
        "margin": MarginGate(params.threshold),
        "expected gain": rules[0],
    }
    looked_at = subject(params.drafters[0], params)
    looks = gate_times(_setting(looked_at, 0.0), gates, clock=clock)
    return pd.concat([*parts, looks.assign(model=looked_at.model)], ignore_index=True)


def _setting(found: Subject, temperature: float, every: int = 1, share: int = 1) -> Setting:
    """Take the held-out prompts that are timed: of all kinds alike, or every second of these."""
    apart = max(1, len(found.held_out) // TIMED_PROMPTS)
    prompts = [prompt.ids for prompt in found.held_out[::apart][:TIMED_PROMPTS:every]]
    sampler = Sampler(temperature=temperature)
    return Setting(found.target, found.drafter, prompts, sampler, TIMED_TOKENS // share)


def known_costs(
    recorded: pd.DataFrame, found: Subject, temperature: float, longest: int
) -> RoundCosts:
    """Give the costs that were recorded for a drafter, at this temperature or the nearest to it.

    By bytes for models that were not timed: a draft step is its share of the target's weights, and
    a draft of any length is verified in a plain step.
    """
    rows = recorded.loc[
        (recorded["strategy"] == PARTS)
        & (recorded["model"] == found.model)
        & (recorded["drafter"] == found.name)
    ]
    if rows.empty:
        verify = dict.fromkeys(range(1, longest + 1), 1.0)
        known = Costs(target=1.0, draft=_share(found), verify=verify)
        return RoundCosts(known, known)
    nearest = {"greedy"} if temperature == 0 else {sampler_name(temperature), "temperature 1"}
    own = rows.loc[rows["sampler"].isin(nearest)]
    return costs(own if len(own) else rows, longest=longest)


def _share(found: Subject) -> float:
    """Give the share of the target's weights that a draft step reads."""
    if isinstance(found.drafter, SelfDrafter):
        return found.drafter.plan.cost(found.target.config)
    if isinstance(found.drafter, ModelDrafter):
        draft, target = (
            Parts.of(model.config).total(model.config.n_layers)
            for model in (found.drafter.draft_model, found.target)
        )
        return draft / target
    return 0.0
