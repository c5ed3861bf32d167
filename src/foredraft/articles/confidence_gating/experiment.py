"""Article 05: is the target's confidence in its last token a reason to draft, or not to?

Every policy is judged on the same recorded texts and drafts (`decoding.replay`), by what the parts
of a round cost; those with a number to choose are tuned on one half of the prompts and judged on
the other. Intervals are bootstrapped over texts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from foredraft.analysis.statistics import ERROR_RESAMPLES, numbers, ratio
from foredraft.articles.confidence_gating.calibration import expected_gain, informed, part_of
from foredraft.articles.confidence_gating.policies import (
    GATES,
    Outcome,
    Policy,
    article,
    best_of,
    clairvoyant,
    exits,
    fastest,
    fixed,
    followed,
    gated,
    hysteresis,
    played,
    replayed,
    rounds_of,
    thresholds,
)
from foredraft.benchmarks.round_costs import RoundCosts
from foredraft.decoding.draft import Drafter, ModelDrafter, PromptLookupDrafter
from foredraft.decoding.expected_gain import ExpectedGain
from foredraft.decoding.loop import generate
from foredraft.decoding.prefill import prefill
from foredraft.decoding.recording import record
from foredraft.decoding.replay import Script, replay
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.theory import Costs
from foredraft.decoding.trace import Trace
from foredraft.errors import unknown
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load, require_same_tokens
from foredraft.models.skip import SkipPlan
from foredraft.prompts import Prompt, chat_ids, chat_prompts, code_prompts
from foredraft.repro.claims import Claim
from foredraft.repro.params import ConfidenceGating
from foredraft.sampling import Sampler
from foredraft.types import DTYPES

INSTEAD = "foredraft run confidence_gating -p profile=pocket"
"""What runs where a published model does not."""


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """A target and what drafts for it; prompts to tune policies on, and others to judge them by.

    `name` is the kind of drafter, `draft` which one of that kind: a model or a plan, by its name.
    """

    name: str
    model: str
    draft: str
    target: Decoder
    drafter: Drafter
    tuning: list[Prompt]
    held_out: list[Prompt]
    tokenizer: PreTrainedTokenizerBase


def subject(drafter: str, params: ConfidenceGating) -> Subject:
    """Load the models, and share the prompts out in turn; ValueError if they cannot be had."""
    try:
        target, tokenizer = _loaded(params.model, params.device, params.dtype)
        found = _drafter(drafter, params, tokenizer)
    except ValueError as error:
        raise ValueError(f"{error}. What runs anywhere is the pocket pair: {INSTEAD}") from error
    given = prompts(tokenizer, params)
    draft = {"draft model": params.draft_model, "skip plan": params.plan}.get(drafter, "")
    halves = given[::2], given[1::2]
    return Subject(drafter, params.model, draft, target, found, *halves, tokenizer)


@cache
def _loaded(name: str, device: str, dtype: str) -> tuple[Decoder, PreTrainedTokenizerBase]:
    return load(name, device=device, dtype=DTYPES[dtype])


def _drafter(name: str, params: ConfidenceGating, tokenizer: PreTrainedTokenizerBase) -> Drafter:
    if name == "draft model":
        draft, read_by = _loaded(params.draft_model, params.device, params.dtype)
        require_same_tokens(tokenizer, read_by)
        return ModelDrafter(draft)
    if name == "skip plan":
        return SelfDrafter(SkipPlan.published(params.plan))
    if name == "prompt lookup":
        return PromptLookupDrafter()
    raise unknown("drafter", name, ("draft model", "skip plan", "prompt lookup"))


def prompts(tokenizer: PreTrainedTokenizerBase, params: ConfidenceGating) -> list[Prompt]:
    """Give twice `n_prompts`, kind by kind: code, or what users say in the model's template."""
    n = 2 * params.n_prompts
    if params.prompts == "chat":
        return [Prompt(p.kind, chat_ids(tokenizer, p.turns[0])) for p in chat_prompts(n=n)]
    return [Prompt(p.kind, tuple(tokenizer.encode(p.text()))) for p in code_prompts(n=n)]


def script(
    subject: Subject, params: ConfidenceGating, *, temperature: float, held_out: bool = False
) -> Script:
    """Let the target continue the prompts, and record what the drafter would say at each place.

    The texts are the same for all drafters.
    """
    ids = tuple(prompt.ids for prompt in (subject.held_out if held_out else subject.tuning))
    sampler, seed = Sampler(temperature=temperature), params.seed + held_out
    return record(
        subject.target,
        ids,
        _written(subject.target, ids, sampler, params.max_new_tokens, seed),
        sampler=sampler,
        drafter=subject.drafter,
        max_length=params.longest,
        generator=torch.Generator(subject.target.device).manual_seed(seed + 2),
    )


@lru_cache(maxsize=8)
def _written(
    target: Decoder, prompts: tuple[tuple[int, ...], ...], sampler: Sampler, n_new: int, seed: int
) -> list[list[int]]:
    """Let the target continue the prompts, once for all drafters."""
    return generate(
        target,
        prompts,
        sampler=sampler,
        max_new_tokens=n_new,
        generator=torch.Generator(target.device).manual_seed(seed),
        eos_token_id=[],
    ).tokens


def judged(
    tuned_on: Script, judged_on: Script, costs: RoundCosts, params: ConfidenceGating
) -> tuple[pd.DataFrame, dict[str, Policy]]:
    """Tune every kind of policy on some texts and judge it on others; a row each, and by name.

    `gain` is over the best fixed length, text by text, with its standard error.
    """
    by_name = tuned(tuned_on, costs, params)
    outcomes = {name: played(judged_on, policy, costs) for name, policy in by_name.items()}
    outcomes["all signals"] = _informed(tuned_on, judged_on, costs, by_name.values())
    lengths = clairvoyant(judged_on, costs.unwatched)
    outcomes["clairvoyant"] = followed(judged_on, lengths, costs.unwatched)
    best = outcomes["fixed length"]
    rows = []
    for name, outcome in outcomes.items():
        policy, speedup = by_name.get(name), outcome.speedup(costs)
        gain, rounds = outcome.gain(best), outcome.rounds.sum()
        rows.append(
            {
                **{"policy": name, "n": len(outcome.time)},
                **{"speedup": speedup.mean, "sem": speedup.sem},
                **{"gain": gain.mean, "gain_sem": gain.sem},
                "setting": float("nan") if policy is None else policy.setting,
                "length": float("nan") if policy is None else policy.length,
                "drafted": outcome.drafted.sum() / rounds,
                "acceptance": outcome.accepted.sum() / max(1.0, outcome.drafted.sum()),
                "closed": outcome.closed.sum() / rounds,
            }
        )
    return pd.DataFrame(rows), by_name


def _informed(
    tuned_on: Script, judged_on: Script, costs: RoundCosts, simpler: Iterable[Policy]
) -> Outcome:
    """Play the trees' lengths, or the simpler policy that is better on the tuning texts.

    There trees are rated by halves, on texts that they were not fitted to.
    """
    best = best_of(tuned_on, simpler, costs)
    halves = [part_of(tuned_on, range(first, len(tuned_on.tokens), 2)) for first in (0, 1)]
    by_trees = sum(
        followed(other, informed(half, costs)(other), costs.watched).time.sum()
        for half, other in (halves, halves[::-1])
    )
    if by_trees < played(tuned_on, best, costs).time.sum():
        return followed(judged_on, informed(tuned_on, costs)(judged_on), costs.watched)
    return played(judged_on, best, costs)


def tuned(recorded: Script, costs: RoundCosts, params: ConfidenceGating) -> dict[str, Policy]:
    """Choose of each kind of policy the best on these texts, by name."""
    best = best_of(recorded, fixed(params), costs)
    found = {"never": Policy("never"), "fixed length": best}
    found["the article's gate"] = article(best.length, params)
    for signal in GATES:
        found[f"{signal} gate"] = best_of(recorded, gated(signal, params), costs)
    found["with hysteresis"] = best_of(recorded, hysteresis(params, best.length), costs)
    if recorded.signals:
        found["draft's confidence"] = best_of(recorded, exits(params), costs)
    found["expected gain"] = expected_gain(recorded, costs, params)
    return found


def by_threshold(
    recorded: Script, costs: RoundCosts, params: ConfidenceGating, *, signal: str
) -> pd.DataFrame:
    """Give what a gate comes to at each threshold, with the best length for each on these texts."""
    rows = []
    for bound in thresholds(signal, params):
        options = [each for each in gated(signal, params) if each.setting == bound]
        best = best_of(recorded, options, costs)
        outcome = played(recorded, best, costs)
        found = outcome.speedup(costs)
        row = {"signal": signal, "threshold": bound, "length": best.length}
        row |= {"speedup": found.mean, "sem": found.sem}
        rows.append({**row, "closed": outcome.closed.sum() / outcome.rounds.sum()})
    return pd.DataFrame(rows)


def by_cost(
    tuned_on: Script, judged_on: Script, params: ConfidenceGating, shares: Iterable[float]
) -> pd.DataFrame:
    """Give what gating would bring on machines where a draft step costs c of a plain one.

    Verification is taken to cost a plain step. All policies are tuned anew for each c.
    """
    rows = []
    always, doubting = (
        replayed(tuned_on, policies) for policies in (fixed(params), gated("confidence", params))
    )
    for cost in shares:
        verify = dict.fromkeys(range(1, params.longest + 1), 1.0)
        by_bytes = Costs(1.0, cost, verify)
        costs = RoundCosts(by_bytes, by_bytes)
        best = fastest(always, costs)
        candidates = {
            "best fixed length or never": best_of(tuned_on, [Policy("never"), best], costs),
            "confidence gate": fastest(doubting, costs),
            "expected gain": expected_gain(tuned_on, costs, params),
        }
        outcomes = {name: played(judged_on, each, costs) for name, each in candidates.items()}
        lengths = clairvoyant(judged_on, by_bytes)
        outcomes["clairvoyant"] = followed(judged_on, lengths, by_bytes)
        base = outcomes["best fixed length or never"]
        for name, outcome in outcomes.items():
            gain, speedup = outcome.gain(base), outcome.speedup(costs)
            row = {"cost": cost, "policy": name, "gain": gain.mean, "gain_sem": gain.sem}
            rows.append({**row, "speedup": speedup.mean})
    return pd.DataFrame(rows)


def confirmed(
    subject: Subject, judged_on: Script, policies: Mapping[str, Policy], params: ConfidenceGating
) -> pd.DataFrame:
    """Decode under policies, and hold the rounds against replayed ones; a row each.

    Texts and drafts are others than those recorded, from the same prompts: `z` is the difference of
    tokens a round in its standard errors, prompt by prompt.
    """
    ids = [prompt.ids for prompt in subject.held_out] * params.samples
    known = prefill(subject.target, ids)
    rows = []
    for number, (name, policy) in enumerate(policies.items()):
        if policy.stop is None:
            continue
        made = generate(
            subject.target,
            ids,
            sampler=Sampler(temperature=params.temperature),
            max_new_tokens=params.max_new_tokens,
            drafter=subject.drafter,
            exit_policy=policy.stop,
            gate=policy.gate,
            generator=torch.Generator(subject.target.device).manual_seed(params.seed + 10 + number),
            eos_token_id=[],
            prefilled=known,
        )
        sides = {"decoded": made.trace, "replayed": replay(judged_on, policy.gate, policy.stop)}
        row: dict[str, Any] = {"policy": name}
        sums = {side: _by_prompt(trace, len(subject.held_out)) for side, trace in sides.items()}
        for side, (tokens, rounds) in sums.items():
            found = ratio(tokens, rounds)
            row |= {side: found.mean, f"{side}_sem": found.sem}
        off, spread = row["decoded"] - row["replayed"], _apart(*sums.values())
        sure = 0.0 if abs(off) < 1e-9 else math.inf  # of a policy whose rounds never vary
        rows.append({**row, "z": off / spread if spread > 1e-12 else sure})
    return pd.DataFrame(rows)


def _by_prompt(trace: Trace, n_prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Add up tokens and rounds of each prompt, over all rows that continue it."""
    lines = rounds_of(trace)
    prompt = lines["row"].to_numpy(int) % n_prompts
    tokens = np.bincount(prompt, weights=numbers(lines, "emitted"), minlength=n_prompts)
    return tokens, np.bincount(prompt, minlength=n_prompts).astype(float)


def _apart(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Give the standard error of a difference of tokens a round, by a bootstrap over prompts.

    Prompts are drawn for both sides at once: what they differ by is no error of the difference.
    """
    n = len(one[0])
    picks = np.random.default_rng(0).integers(n, size=(ERROR_RESAMPLES, n))
    means = [tokens[picks].sum(1) / rounds[picks].sum(1) for tokens, rounds in (one, other)]
    return float((means[0] - means[1]).std(ddof=1))


def curves_of(rule: ExpectedGain) -> pd.DataFrame:
    """Give the chances that a rule goes by, at the knots of each of its curves."""
    named = {"opening": rule.opening, "stands": rule.stands, "follows": rule.follows}
    return pd.concat(
        [
            pd.DataFrame({"curve": name, "signal": curve.knots, "chance": curve.values})
            for name, curve in named.items()
        ],
        ignore_index=True,
    )


def timed(recorded: pd.DataFrame) -> pd.DataFrame:
    """Give the recorded policies: foretold by replay, and by the clock."""
    return recorded.loc[recorded["strategy"] == "policy"].reset_index(drop=True)


def findings(
    policies: pd.DataFrame,
    auc: pd.DataFrame,
    confirmation: pd.DataFrame,
    clock: pd.DataFrame,
    gates: pd.DataFrame,
) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back."""
    values: dict[str, Any] = {"policies": {}, "auc": {}, "clock": {}}
    for row in policies.to_dict("records"):
        told = {"speedup": float(row["speedup"]), "gain": float(row["gain"])}
        values["policies"][key(row["drafter"], f"T{row['temperature']:g}", row["policy"])] = told
    for row in auc.loc[auc["kind"] == "all"].dropna(subset="auc").to_dict("records"):
        name = key(row["drafter"], f"T{row['temperature']:g}", row["signal"])
        values["auc"][name] = float(row["auc"])
    for row in clock.to_dict("records"):
        told = {"speedup": float(row["speedup_median"]), "gain": float(row["gain"])}
        values["clock"][key(row["drafter"], row["sampler"], row["policy"])] = told
    values["replay"] = {"largest_z": float(np.abs(numbers(confirmation, "z")).max())}
    values["bookkeeping"] = float(numbers(gates, "share_median").max())
    claims = []
    told_of = policies["policy"].isin(["the article's gate", "expected gain"])
    main = policies.loc[told_of & (policies["gain_sem"] > 0)]  # not where it is the fixed length
    for row in main.to_dict("records"):
        name = key(row["drafter"], f"T{row['temperature']:g}", row["policy"])
        text = (
            f"Gain over the best fixed length: {row['policy']}, {row['drafter']}, "
            f"temperature {row['temperature']:g}"
        )
        claims.append(
            Claim(
                name, text, f"policies.{name}.gain", n=int(row["n"]), spread=1.96 * row["gain_sem"]
            )
        )
    for row in clock.loc[clock["policy"] == "expected gain"].to_dict("records"):
        name = key(row["drafter"], row["sampler"], row["policy"])
        text = (
            f"By the clock, rounds over those of the best fixed length: {row['policy']}, "
            f"{row['drafter']}, {row['sampler']} (recorded)"
        )
        spread = 1.96 * row["gain_sem"]
        value = f"clock.{name}.gain"
        n = int(row["n_prompts"]) if "n_prompts" in row else int(row["n"])
        claims.append(Claim(f"clock-{name}", text, value, n=n, spread=spread))
    claims += [
        Claim(
            "replay",
            "Largest difference of decoded from replayed rounds, in standard errors",
            "replay.largest_z",
            n=len(confirmation),
            drift=3.0,  # the largest of some twenty draws, which other texts draw again
        ),
        Claim(
            "bookkeeping",
            "A gate's look and decision ÷ a plain step, the dearest gate (recorded)",
            "bookkeeping",
            n=int(numbers(gates, "n").min()),
        ),
    ]
    return values, claims


def key(*words: str) -> str:
    """Make a key of words."""
    told = "-".join(words).replace(" ", "-").replace(".", "_")
    return "".join(sign for sign in told if sign not in "',")
