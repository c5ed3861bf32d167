"""Tune policies on costs that are timed first, then let the clock judge them: what is recorded."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pandas as pd

from foredraft.articles.confidence_gating.experiment import Subject, script, subject, tuned
from foredraft.articles.confidence_gating.policies import Policy, played
from foredraft.benchmarks.round_costs import (
    PARTS,
    RoundCosts,
    Setting,
    Way,
    costs,
    gate_times,
    policy_times,
    round_costs,
)
from foredraft.benchmarks.timing import now
from foredraft.decoding.draft import ModelDrafter
from foredraft.decoding.gate import AlwaysDraft, ConfidenceGate, EntropyGate, MarginGate
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.theory import Costs
from foredraft.models.skip import Parts
from foredraft.repro.params import ConfidenceGating
from foredraft.sampling import Sampler
from foredraft.search.find import sampler_name

REPEATS = 2
"""How often policies decode all held-out prompts; parts of rounds are timed on a third of these."""

AGAIN = "fixed length, again"
"""The best fixed length under a second name: what timing alone makes of one policy."""

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

    A row for each length of a draft, each policy, and the look of each kind of gate. Policies
    decode the very prompts, by as many tokens, that `foretold` replays.
    """
    parts: list[pd.DataFrame] = []
    rules: list[Policy] = []
    for drafter, temperature in product(params.drafters, (0.0, 1.0)):
        found = subject(drafter, params)
        told = {"model": found.model, "drafter": drafter, "draft": found.draft}
        told["sampler"] = sampler_name(temperature)
        report(f"{drafter}, {told['sampler']}: what the parts of a round cost")
        setting = Setting(
            found.target,
            found.drafter,
            [prompt.ids for prompt in found.held_out],
            Sampler(temperature=temperature),
            params.max_new_tokens,
            REPEATS,
        )
        fewer = replace(setting, prompts=setting.prompts[::3], repeats=1)
        timed = round_costs(fewer, clock=clock)
        known = costs(timed, longest=params.longest)
        tuning = script(found, params, temperature=temperature)
        policies = {name: p for name, p in tuned(tuning, known, params).items() if name in RACED}
        policies[AGAIN] = policies["fixed length"]
        report(f"{drafter}, {told['sampler']}: {len(policies)} policies")
        ways = {name: Way(policy.stop, policy.gate) for name, policy in policies.items()}
        raced = policy_times(setting, ways, over="fixed length", clock=clock)
        held_out = script(found, params, temperature=temperature, held_out=True)
        outcomes = {name: played(held_out, policy, known) for name, policy in policies.items()}
        foretold = {name: each.speedup(known).mean for name, each in outcomes.items()}
        gains = {name: each.gain(outcomes["fixed length"]).mean for name, each in outcomes.items()}
        for column, values in {"foretold": foretold, "foretold_gain": gains}.items():
            raced[column] = [values.get(name, float("nan")) for name in raced["policy"]]
        for column in ("setting", "length"):
            values = {name: getattr(policy, column) for name, policy in policies.items()}
            raced[column] = [values.get(name, float("nan")) for name in raced["policy"]]
        parts += [timed.assign(**told), raced.assign(**told)]
        rules.append(policies["expected gain"])
    rule = next(policy.rule for policy in rules if policy.rule)
    gates = {
        "always": AlwaysDraft(),
        "confidence": ConfidenceGate(params.threshold),
        "entropy": EntropyGate(1.0),
        "margin": MarginGate(params.threshold),
        "expected gain": rule.gate,
    }
    found = subject(params.drafters[0], params)
    prompts = [prompt.ids for prompt in found.held_out[:1]]
    setting = Setting(found.target, found.drafter, prompts, Sampler(temperature=0.0))
    looks = gate_times(setting, gates, clock=clock)
    return pd.concat([*parts, looks.assign(model=found.model)], ignore_index=True)


def known_costs(
    recorded: pd.DataFrame, found: Subject, temperature: float, longest: int
) -> RoundCosts:
    """Give the costs that were recorded of this very drafter: greedy ones, or else sampled ones.

    By bytes for models that were not timed: a draft step is its share of the target's weights, and
    a draft of any length is verified in a plain step.
    """
    sampler = sampler_name(0.0 if temperature == 0 else 1.0)
    rows = recorded.loc[
        (recorded["strategy"] == PARTS)
        & (recorded["model"] == found.model)
        & (recorded["drafter"] == found.name)
        & (recorded["draft"] == found.draft)
        & (recorded["sampler"] == sampler)
    ]
    if rows.empty:
        verify = dict.fromkeys(range(1, longest + 1), 1.0)
        known = Costs(target=1.0, draft=_share(found), verify=verify)
        return RoundCosts(known, known)
    return costs(rows, longest=longest)


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
