"""Article 05: is the target's confidence in its last token a reason to draft, or not to?

Every policy is judged on the same recorded texts and drafts (`decoding.replay`), by what the parts
of a round cost; those with a number to choose are tuned on one half of the prompts and judged on
the other. Intervals are bootstrapped over texts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerBase

from foredraft.benchmarks.gating import RoundCosts
from foredraft.decoding.draft import Drafter, ModelDrafter, PromptLookupDrafter
from foredraft.decoding.exit import ConfidenceExit, ExitPolicy, FixedLength
from foredraft.decoding.gain import Curve, ExpectedGain
from foredraft.decoding.gate import ConfidenceGate, EntropyGate, GatePolicy, MarginGate
from foredraft.decoding.loop import generate
from foredraft.decoding.replay import Script, record, replay
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.signal import SIGNALS, Signal
from foredraft.decoding.theory import Costs
from foredraft.decoding.trace import Trace
from foredraft.experiments.speculative_decoding import DTYPES, Prompt, chat_ids
from foredraft.hints import unknown
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load, require_same_tokens
from foredraft.models.skip import SkipPlan
from foredraft.params import ConfidenceGating
from foredraft.prompts import chat_prompts, code_prompts
from foredraft.results import Claim
from foredraft.sampling import Sampler
from foredraft.search.objective import ratio
from foredraft.search.trial import Estimate

GATES: Mapping[str, Callable[[float], GatePolicy]] = {
    "confidence": ConfidenceGate,
    "entropy": EntropyGate,
    "margin": MarginGate,
}
"""The gates that look at one signal, by the signal."""

ENTROPIES = 8.0
"""Nats up to which thresholds of an entropy are tried."""

INSTEAD = "foredraft run confidence_gating -p profile=pocket"
"""What runs where a published model does not."""


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """A target and what drafts for it; prompts to tune policies on, and others to judge them by."""

    name: str
    model: str
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
    return Subject(drafter, params.model, target, found, given[::2], given[1::2], tokenizer)


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
    ids = [prompt.ids for prompt in (subject.held_out if held_out else subject.tuning)]
    sampler, seed = Sampler(temperature=temperature), params.seed + held_out
    made = generate(
        subject.target,
        ids,
        sampler=sampler,
        max_new_tokens=params.max_new_tokens,
        generator=torch.Generator(subject.target.device).manual_seed(seed),
        eos_token_id=[],
    )
    return record(
        subject.target,
        ids,
        made.tokens,
        sampler=sampler,
        drafter=subject.drafter,
        max_length=params.longest,
        generator=torch.Generator(subject.target.device).manual_seed(seed + 2),
    )


def firsts(recorded: Script, kinds: Sequence[str]) -> pd.DataFrame:
    """Give each place's first drafted token: whether it is accepted, and what was known before.

    Columns: text, kind, place, accepted, a column for each signal of the target's law of the token
    before, and `draft_confidence`, which is known once the token is drafted.
    """
    texts, places = np.nonzero((recorded.lengths > 0).numpy())
    table = pd.DataFrame({"text": texts, "place": places, "kind": np.array(kinds)[texts]})
    table["accepted"] = recorded.accepted.numpy()[texts, places] > 0
    for name, values in recorded.target.items():
        table[name] = values.numpy()[texts, places]
    drafted = recorded.signals.get("confidence")
    table["draft_confidence"] = (
        float("nan") if drafted is None else drafted.numpy()[texts, places, 0]
    )
    return table


def reliability(table: pd.DataFrame, signal: str, bins: int = 10) -> pd.DataFrame:
    """Give the share that is accepted in bins of a signal that hold as many places each.

    With Wilson's 95 % interval, which takes places for independent.
    """
    binned = pd.qcut(table[signal], bins, labels=False, duplicates="drop")
    rows = []
    for _, part in table.groupby(binned):
        n, stood = len(part), int(_column(part, "accepted").sum())
        ends = binomtest(stood, n).proportion_ci(method="wilson")
        row = {"signal": signal, "value": part[signal].mean(), "share": stood / n, "n": n}
        rows.append({**row, "low": ends.low, "high": ends.high})
    return pd.DataFrame(rows)


def discrimination(table: pd.DataFrame, resamples: int = 200) -> pd.DataFrame:
    """Give the AUC of each signal for the first token's acceptance, for all places and by kind.

    The chance that an accepted token was preceded by more confidence than one that was not; 0.5 is
    no information. Entropy counts with a minus. NaN where all or none are accepted.
    """
    signals = {name: -1 if name == "entropy" else 1 for name in SIGNALS}
    if not np.isnan(_column(table, "draft_confidence")).any():
        signals["draft_confidence"] = 1
    rows = []
    for kind, part in [("all", table), *table.groupby("kind")]:
        for name, sign in signals.items():
            found = _auc(_column(part, "accepted"), sign * _column(part, name))
            row = {"kind": kind, "signal": name, "auc": found, "n": len(part)}
            rows.append({**row, "sem": _auc_error(part, name, sign, resamples)})
    return pd.DataFrame(rows)


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    return np.asarray(table[name], dtype=float)


def _columns(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    return np.asarray(table[list(names)], dtype=float)


def _auc(accepted: np.ndarray, score: np.ndarray) -> float:
    if accepted.all() or not accepted.any():
        return float("nan")
    return float(roc_auc_score(accepted, score))


def _auc_error(part: pd.DataFrame, name: str, sign: int, resamples: int) -> float:
    """Bootstrap over texts."""
    texts = [each for _, each in part.groupby("text")]
    draws = np.random.default_rng(0).integers(len(texts), size=(resamples, len(texts)))
    found = []
    for draw in draws:
        again = pd.concat([texts[i] for i in draw])
        found.append(_auc(_column(again, "accepted"), sign * _column(again, name)))
    known = [auc for auc in found if not math.isnan(auc)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """When to draft and how far: `stop` None never drafts. `setting` is the number it turns on."""

    name: str
    stop: ExitPolicy | None = None
    gate: GatePolicy | None = None
    setting: float | int = float("nan")
    length: int = 0


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy came to on recorded texts: an array over texts each."""

    tokens: np.ndarray
    rounds: np.ndarray
    drafted: np.ndarray
    accepted: np.ndarray
    closed: np.ndarray
    time: np.ndarray

    @classmethod
    def of(cls, lines: pd.DataFrame, costs: Costs) -> "Outcome":
        """Add up the rounds after the prefill; columns row, gate_open, drafted, accepted, emitted.

        A drafter that was asked in vain has taken its start nevertheless; a text's last round has
        no room for a draft, and asks none.
        """
        is_open, is_empty = lines["gate_open"].astype(bool), lines["drafted"] == 0
        in_vain = is_open & is_empty & lines["row"].duplicated(keep="last")
        seconds = lines["drafted"].map(costs.round) + in_vain * costs.other
        timed = lines.assign(time=seconds, closed=~is_open, rounds=1)
        columns = ["emitted", "rounds", "drafted", "accepted", "closed", "time"]
        sums = pd.DataFrame(timed.groupby("row")[columns].sum())
        return cls(*(_column(sums, column) for column in columns))

    def speedup(self, costs: RoundCosts) -> Estimate:
        """Give tokens a plain step's time, over plain decoding, which has one."""
        return ratio(self.tokens * costs.target, self.time)

    def gain(self, other: "Outcome") -> Estimate:
        """Give how many times faster this is than another policy on the same texts."""
        return ratio(other.time, self.time)


def played(recorded: Script, policy: Policy, costs: RoundCosts) -> Outcome:
    """Replay a policy."""
    if policy.stop is None:
        tokens = np.array([len(text) - 1.0 for text in recorded.tokens])
        nothing = np.zeros_like(tokens)
        return Outcome(tokens, tokens, nothing, nothing, tokens, tokens * costs.target)
    rounds = _rounds(replay(recorded, policy.gate, policy.stop))
    return Outcome.of(rounds, costs.under(policy.stop))


def _rounds(trace: Trace) -> pd.DataFrame:
    """Give the rounds after the prefill."""
    table = trace.table()
    return table.loc[table["round"] > 0]


def followed(recorded: Script, lengths: np.ndarray, costs: Costs) -> Outcome:
    """Replay a policy that is a table: how far to draft behind each token, [text, place]."""
    rows = []
    for text, tokens in enumerate(recorded.tokens):
        emitted = 1
        while emitted < len(tokens):
            left, place = len(tokens) - emitted - 1, (text, emitted - 1)
            wanted = int(lengths[place]) if left else 0
            drafted = min(wanted, left, int(recorded.lengths[place])) if left else 0
            accepted = min(int(recorded.accepted[place]), drafted) if left else 0
            row = {"row": text, "drafted": drafted, "accepted": accepted}
            rows.append({**row, "gate_open": wanted > 0 or not left, "emitted": accepted + 1})
            emitted += accepted + 1
    return Outcome.of(pd.DataFrame(rows), costs)


def clairvoyant(recorded: Script, costs: Costs) -> np.ndarray:
    """Give the lengths that take least time for who knows beforehand what will be accepted.

    By dynamic programming from each text's end. No policy attains it: it is a bound.
    """
    best = np.zeros(tuple(recorded.accepted.shape), dtype=int)
    for text, tokens in enumerate(recorded.tokens):
        n_tokens = len(tokens)
        rest = [0.0] * (n_tokens + 1)  # the least time from this many emitted tokens on
        for emitted in reversed(range(1, n_tokens)):
            left = n_tokens - emitted - 1
            most = min(int(recorded.accepted[text, emitted - 1]), left) if left else 0
            ways = [costs.round(n) + rest[emitted + n + 1] for n in range(most + 1)]
            rest[emitted] = min(ways)
            if left:
                best[text, emitted - 1] = int(np.argmin(ways))
    return best


def fixed(params: ConfidenceGating) -> list[Policy]:
    """Draft always, and always as far."""
    lengths = range(1, params.longest + 1)
    return [Policy("fixed length", FixedLength(n), setting=n, length=n) for n in lengths]


def thresholds(signal: str, params: ConfidenceGating) -> tuple[float, ...]:
    """Give what to try for a gate: of entropies as many, from high to none."""
    if signal == "entropy":
        return tuple(ENTROPIES * (1 - share) for share in params.thresholds)
    return params.thresholds


def gated(signal: str, params: ConfidenceGating, reopen: float | None = None) -> list[Policy]:
    """Draft behind tokens of enough confidence alone: each threshold with each length."""
    if signal not in GATES:
        raise unknown("signal", signal, GATES)
    return [
        Policy(f"{signal} gate", FixedLength(n), GATES[signal](bound), bound, n)
        for bound in thresholds(signal, params)
        for n in range(1, params.longest + 1)
    ]


def article(length: int, params: ConfidenceGating) -> Policy:
    """Give the article's rule: the threshold of the parameters, drafts of this length."""
    gate = ConfidenceGate(params.threshold)
    return Policy("the article's gate", FixedLength(length), gate, params.threshold, length)


def exits(params: ConfidenceGating) -> list[Policy]:
    """Draft always, until the draft itself is in doubt."""
    bounds = [bound for bound in params.thresholds if 0 < bound < 1]
    return [
        Policy("draft's confidence", ConfidenceExit(t, params.longest), None, t, params.longest)
        for t in bounds
    ]


def best_of(recorded: Script, policies: Iterable[Policy], costs: RoundCosts) -> Policy:
    """Give the policy that takes least time on these texts."""
    return min(policies, key=lambda policy: played(recorded, policy, costs).time.sum())


def expected_gain(
    recorded: Script, costs: RoundCosts, params: ConfidenceGating, *, signal: str | None = None
) -> Policy:
    """Fit the renewal-reward rule to recorded texts: its curves, then its rate.

    Chances are isotonic in what is known at the time: the target's signal for the first token, the
    draft's confidence for the others. λ* is the rate that the rule attains when it is told so.
    Since looking at drafted tokens takes time too, the rule may leave it: then its gate stands
    before drafts of one length, the best. Where a drafter has no laws there is nothing to look at.
    """
    seen, lengths = SIGNALS[signal or params.signal], range(1, params.longest + 1)
    rule = _fitted(recorded, costs.unwatched, params, seen)
    found = [
        _at_its_rate(replace(rule, max_length=n), recorded, costs, FixedLength(n)) for n in lengths
    ]
    if recorded.signals:
        watching = replace(rule, costs=costs.watched)
        found.append(_at_its_rate(watching, recorded, costs))
    return best_of(recorded, found, costs)


def _at_its_rate(
    rule: ExpectedGain, recorded: Script, costs: RoundCosts, stop: FixedLength | None = None
) -> Policy:
    """Tell the rule the rate that it attains, again and again; `stop` None: with its own exit."""
    rate, before = 1.0, 0.0
    for _ in range(20):
        if abs(rate - before) < 1e-4:
            break
        rule, before = replace(rule, rate=rate / costs.target), rate
        rate = played(recorded, _as_policy(rule, stop), costs).speedup(costs).mean
    return _as_policy(rule, stop)


def _as_policy(rule: ExpectedGain, stop: FixedLength | None) -> Policy:
    return Policy("expected gain", stop or rule.exit, rule.gate, rule.rate, rule.max_length)


def _fitted(recorded: Script, costs: Costs, params: ConfidenceGating, seen: Signal) -> ExpectedGain:
    """Fit the curves; the rate comes later."""
    name = next(each for each, signal in SIGNALS.items() if signal is seen)
    table = firsts(recorded, [""] * len(recorded.tokens))
    accepted = _column(table, "accepted")
    opening = _isotonic(_column(table, name), accepted, falls=name == "entropy")
    drafts = tokens_drafted(recorded)
    if not len(drafts):  # a drafter with no law to look at
        flat = Curve((0.0,), (float(accepted.mean()),))
        later = float(np.mean(_later(recorded)))
        return ExpectedGain(costs, 1.0, params.longest, opening, flat, flat, later, seen)
    behind = drafts.dropna(subset="next")
    return ExpectedGain(
        costs,
        1.0,
        params.longest,
        opening=opening,
        stands=_isotonic(_column(drafts, "confidence"), _column(drafts, "stands")),
        follows=_isotonic(_column(behind, "confidence"), _column(behind, "next")),
        later=float(_column(behind, "next").mean()),
        opening_signal=seen,
    )


def tokens_drafted(recorded: Script) -> pd.DataFrame:
    """Give each recorded drafted token before which all stand.

    Columns: text, place, k (from 1), the signals of its own law, those of the target's law before
    the draft with `target_` in front, `stands`, and `next`: whether the token behind it stands too,
    NaN where it does not or none was drafted. No rows for a drafter without laws.
    """
    parts = []
    for k in range(recorded.max_length if recorded.signals else 0):
        reached = (recorded.lengths > k) & (recorded.accepted >= k)
        texts, places = np.nonzero(reached.numpy())
        accepted = recorded.accepted.numpy()[texts, places]
        part = pd.DataFrame({"text": texts, "place": places, "k": k + 1, "stands": accepted > k})
        known = (recorded.lengths.numpy()[texts, places] > k + 1) & part["stands"].to_numpy()
        part["next"] = np.where(known, accepted > k + 1, np.nan)
        for name, values in recorded.signals.items():
            part[name] = values.numpy()[texts, places, k]
        for name, values in recorded.target.items():
            part[f"target_{name}"] = values.numpy()[texts, places]
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _later(recorded: Script) -> np.ndarray:
    """Say of each second and further token, those before standing, whether it stands."""
    lengths, accepted = recorded.lengths.numpy(), recorded.accepted.numpy()
    return np.concatenate(
        [accepted[(lengths > k) & (accepted >= k)] > k for k in range(1, recorded.max_length)]
    )


def _isotonic(signal: np.ndarray, happened: np.ndarray, *, falls: bool = False) -> Curve:
    """Fit a chance that rises with a signal, or falls."""
    fit = IsotonicRegression(y_min=0, y_max=1, increasing=not falls)
    fit.fit(signal, happened)
    knots, first = np.unique(fit.X_thresholds_, return_index=True)
    values = np.clip(fit.y_thresholds_[first], 0, 1)
    return Curve(tuple(knots.tolist()), tuple(values.tolist()))


KNOWN_FIRST = tuple(SIGNALS)
KNOWN_LATER = ("k", *SIGNALS, *(f"target_{name}" for name in SIGNALS))
"""What the most informed policy goes by: before a draft, and within one."""


def informed(tuned_on: Script, judged_on: Script, costs: RoundCosts) -> np.ndarray:
    """Give the lengths that a rule chooses which sees all signals at once, [text, place].

    The renewal-reward rule with chances from boosted trees over every signal of target and draft,
    fitted on other texts: an estimate of the best that can be done with what is known when it is
    decided. For a drafter without laws what is known is the target's.
    """
    table = firsts(tuned_on, [""] * len(tuned_on.tokens))
    opening = _trees(_columns(table, KNOWN_FIRST), _column(table, "accepted"))
    drafts = tokens_drafted(tuned_on)
    best, fastest, longest = None, math.inf, tuned_on.max_length
    for most in [longest] if len(drafts) else range(1, longest + 1):
        rate = 1.0
        for _ in range(4):
            told = rate / costs.target
            lengths = _chosen(tuned_on, costs.watched, told, opening, drafts, most)
            outcome = followed(tuned_on, lengths(tuned_on), costs.watched)
            if outcome.time.sum() < fastest:
                best, fastest = lengths, outcome.time.sum()
            rate = outcome.speedup(costs).mean
    assert best is not None
    return best(judged_on)


def _trees(known: np.ndarray, happened: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a chance by boosted trees; a constant where all or none happened."""
    if happened.all() or not happened.any():
        return lambda rows: np.full(len(rows), happened.mean())
    fit = HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=40, random_state=0
    ).fit(known, happened > 0)
    return lambda rows: fit.predict_proba(rows)[:, 1]


def _chosen(
    tuned_on: Script,
    costs: Costs,
    rate: float,
    opening: Callable[[np.ndarray], np.ndarray],
    drafts: pd.DataFrame,
    longest: int,
) -> Callable[[Script], np.ndarray]:
    """Make the rule of one rate, and of drafts that are no longer than this."""
    later = float(np.mean(_later(tuned_on)))
    flat = Curve((0.0,), (later,))
    rule = ExpectedGain(costs, rate, longest, flat, flat, flat, later)
    stands = follows = None
    if len(drafts):
        behind = drafts.dropna(subset="next")
        stands = _trees(_columns(drafts, KNOWN_LATER), _column(drafts, "stands"))
        follows = _trees(_columns(behind, KNOWN_LATER), _column(behind, "next"))

    def lengths(script: Script) -> np.ndarray:
        shape = script.accepted.shape
        before = _table(script.target, shape)
        first = opening(_columns(before, KNOWN_FIRST))
        chances, wanted = np.ones(len(before)), (first > rule.least_opening).astype(int)
        for k in range(1, longest):
            going = wanted == k
            if stands is None or follows is None:
                worth = first * later**k > rule.least(k)
            else:
                known = _table({n: v[..., k - 1] for n, v in script.signals.items()}, shape)
                known = known.assign(k=k, **{f"target_{n}": before[n] for n in SIGNALS})
                columns = _columns(known, KNOWN_LATER)
                chances = chances * stands(columns)
                worth = chances * follows(columns) > rule.least(k)
            wanted = np.where(going & worth, k + 1, wanted)
        return wanted.reshape(shape)

    return lengths


def _table(values: Mapping[str, torch.Tensor], shape: Sequence[int]) -> pd.DataFrame:
    """Put signals of all places under one another."""
    return pd.DataFrame(
        {name: each.numpy()[:, : shape[1]].reshape(-1) for name, each in values.items()}
    )


def judged(
    tuned_on: Script, judged_on: Script, costs: RoundCosts, params: ConfidenceGating
) -> tuple[pd.DataFrame, dict[str, Policy]]:
    """Tune every kind of policy on some texts and judge it on others; a row each, and by name.

    `gain` is over the best fixed length, text by text, with its standard error.
    """
    by_name = tuned(tuned_on, costs, params)
    outcomes = {name: played(judged_on, policy, costs) for name, policy in by_name.items()}
    lengths = informed(tuned_on, judged_on, costs)
    outcomes["all signals"] = followed(judged_on, lengths, costs.watched)
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


def hysteresis(params: ConfidenceGating, length: int) -> list[Policy]:
    """Close below one confidence and open again at a higher one: all pairs of thresholds."""
    bounds = [bound for bound in params.thresholds if bound < 1]
    return [
        Policy("with hysteresis", FixedLength(length), ConfidenceGate(low, high), low, length)
        for low in bounds
        for high in bounds
        if high > low
    ]


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
    for cost in shares:
        verify = dict.fromkeys(range(1, params.longest + 1), 1.0)
        by_bytes = Costs(1.0, cost, verify)
        costs = RoundCosts(by_bytes, by_bytes)
        best = best_of(tuned_on, fixed(params), costs)
        candidates = {
            "best fixed length or never": best_of(tuned_on, [Policy("never"), best], costs),
            "confidence gate": best_of(tuned_on, gated("confidence", params), costs),
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
    tokens a round in standard errors of both sides.
    """
    ids = [prompt.ids for prompt in subject.held_out] * params.samples
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
        )
        sides = {"decoded": made.trace, "replayed": replay(judged_on, policy.gate, policy.stop)}
        row: dict[str, Any] = {"policy": name}
        for side, trace in sides.items():
            lines = _rounds(trace).assign(rounds=1)
            sums = pd.DataFrame(lines.groupby("row")[["emitted", "rounds"]].sum())
            found = ratio(_column(sums, "emitted"), _column(sums, "rounds"))
            row |= {side: found.mean, f"{side}_sem": found.sem}
        spread = math.hypot(row["decoded_sem"], row["replayed_sem"])
        off = row["decoded"] - row["replayed"]
        sure = 0.0 if abs(off) < 1e-9 else math.inf  # of a policy whose rounds never vary
        rows.append({**row, "z": off / spread if spread else sure})
    return pd.DataFrame(rows)


def fates(found: Subject, recorded: Script, policy: Policy, text: int) -> pd.DataFrame:
    """Say of each token of a recorded text, as a policy decodes it, where it came from.

    Columns: text, confidence (the target's), fate: "accepted", "bonus", "recovered" or "plain".
    """
    if policy.stop is None:
        raise ValueError("this policy never drafts: every token is plain")
    marks = ["plain"]  # the prefill's
    for each in replay(recorded, policy.gate, policy.stop).rounds[1:]:
        for row in each.rows:
            if row.row == text:
                last = row.kind if row.drafted else "plain"
                marks += [*["accepted"] * row.accepted, last]
    words = [found.tokenizer.decode([token]) for token in recorded.tokens[text]]
    sure = recorded.target["confidence"][text, : len(words)].tolist()
    return pd.DataFrame({"text": words, "confidence": sure, "fate": marks})


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


def against_fixed(policies: pd.DataFrame) -> pd.DataFrame:
    """Give by how much each recorded policy is faster than the best fixed length, rounds alone."""
    where = ["drafter", "sampler"]
    base = policies.loc[policies["policy"] == "fixed length", [*where, "rounds_speedup"]]
    both = policies.merge(base, on=where, suffixes=("", "_fixed"))
    return both.assign(gain=both["rounds_speedup"] / both["rounds_speedup_fixed"])


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
        values["policies"][_key(row["drafter"], f"T{row['temperature']:g}", row["policy"])] = told
    for row in auc.loc[auc["kind"] == "all"].dropna(subset="auc").to_dict("records"):
        name = _key(row["drafter"], f"T{row['temperature']:g}", row["signal"])
        values["auc"][name] = float(row["auc"])
    for row in against_fixed(clock).to_dict("records"):
        told = {"speedup": float(row["speedup_median"]), "gain": float(row["gain"])}
        values["clock"][_key(row["drafter"], row["sampler"], row["policy"])] = told
    values["replay"] = {"largest_z": float(np.abs(_column(confirmation, "z")).max())}
    values["bookkeeping"] = float(_column(gates, "share_median").max())
    claims = []
    told_of = policies["policy"].isin(["the article's gate", "expected gain"])
    main = policies.loc[told_of & (policies["gain_sem"] > 0)]  # not where it is the fixed length
    for row in main.to_dict("records"):
        name = _key(row["drafter"], f"T{row['temperature']:g}", row["policy"])
        text = (
            f"Gain over the best fixed length: {row['policy']}, {row['drafter']}, "
            f"temperature {row['temperature']:g}"
        )
        claims.append(
            Claim(
                name, text, f"policies.{name}.gain", n=int(row["n"]), spread=1.96 * row["gain_sem"]
            )
        )
    claims += [
        Claim(
            "replay",
            "Largest difference of decoded from replayed rounds, in standard errors",
            "replay.largest_z",
            n=len(confirmation),
        ),
        Claim(
            "bookkeeping",
            "A gate's look and decision ÷ a plain step, the dearest gate (recorded)",
            "bookkeeping",
            n=int(_column(gates, "n").min()),
        ),
    ]
    return values, claims


def _key(*words: str) -> str:
    """Make a key of words."""
    return "-".join(words).replace("'", "").replace(" ", "-").replace(".", "_")
