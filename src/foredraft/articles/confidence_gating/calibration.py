"""What chances a drafted token has, by what is known when it is decided; rules that go by them.

They are fitted to recorded texts: isotonic in one signal for the rule that `generate` can
run, boosted trees over every signal to see how much there is to know.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression

from foredraft.analysis.statistics import matrix, numbers
from foredraft.articles.confidence_gating.policies import Policy, followed, played
from foredraft.benchmarks.round_costs import RoundCosts
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.expected_gain import Curve, ExpectedGain
from foredraft.decoding.replay import Script
from foredraft.decoding.signal import SIGNALS, Signal
from foredraft.decoding.theory import Costs
from foredraft.repro.params import ConfidenceGating


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


def expected_gain(
    recorded: Script, costs: RoundCosts, params: ConfidenceGating, *, signal: str | None = None
) -> Policy:
    """Fit the renewal-reward rule to recorded texts: its curves, then its rate.

    Chances are isotonic in what is known at the time: the target's signal for the first token, the
    draft's confidence or entropy for the others. λ* is the rate that the rule attains when it is
    told so. Since looking takes time too, each of its two decisions may be left out: then drafts
    are of one length, or every round drafts, or none does. What is best on these texts is given.
    Where a drafter has no laws there is nothing to look at.
    """
    seen, lengths = SIGNALS[signal or params.signal], range(1, params.longest + 1)
    rule = _fitted(recorded, costs.unwatched, params, seen)
    shapes: list[tuple[ExpectedGain, FixedLength | None]] = [
        *((replace(rule, max_length=n, min_length=n), FixedLength(n)) for n in lengths),
        *(
            (_fitted(recorded, costs.watched, params, seen, drawn), None)
            for drawn in (DRAWN if recorded.signals else ())
        ),
    ]
    found = [
        _at_its_rate(shape, recorded, costs, stop, gated=gated)
        for (shape, stop), gated in product(shapes, (False, True))  # of equals the simpler
    ]
    never = Policy("expected gain", rule=replace(rule, rate=1.0 / costs.target))
    idle = float(played(recorded, never, costs).time.sum())
    return min([(never, idle), *found], key=lambda each: each[1])[0]


def _at_its_rate(
    rule: ExpectedGain,
    recorded: Script,
    costs: RoundCosts,
    stop: FixedLength | None,
    *,
    gated: bool,
) -> tuple[Policy, float]:
    """Give the rule the rate that it attains until it stays; with the time that it then takes.

    `stop` None: with its own exit. A fixed length that is not gated does not depend on the rate.
    """

    def policy(rule: ExpectedGain) -> Policy:
        gate = rule.gate if gated else None
        stops = stop or rule.exit
        return Policy("expected gain", stops, gate, rule.rate, rule.max_length, rule)

    rate, seconds = 1.0, 0.0
    for _ in range(20):
        rule, before = replace(rule, rate=rate / costs.target), rate
        outcome = played(recorded, policy(rule), costs)
        rate, seconds = outcome.speedup(costs).mean, float(outcome.time.sum())
        if stop is not None and not gated:
            return policy(replace(rule, rate=rate / costs.target)), seconds
        if abs(rate - before) < 1e-4:
            break
    return policy(rule), seconds


DRAWN = ("confidence", "entropy")
"""The draft's signals that a stop may go by."""


def _fitted(
    recorded: Script,
    costs: Costs,
    params: ConfidenceGating,
    seen: Signal,
    drawn: str = "confidence",
) -> ExpectedGain:
    """Fit the curves; the rate comes later."""
    falls = drawn == "entropy"
    name = next(each for each, signal in SIGNALS.items() if signal is seen)
    table = firsts(recorded, [""] * len(recorded.tokens))
    accepted = numbers(table, "accepted")
    opening = _isotonic(numbers(table, name), accepted, falls=name == "entropy")
    drafts = tokens_drafted(recorded)
    if not len(drafts):  # a drafter with no law to look at
        flat = Curve((0.0,), (_chance(accepted),))
        later = _chance(_later(recorded))
        return ExpectedGain(costs, 1.0, params.longest, opening, flat, flat, later, seen)
    behind = drafts.dropna(subset="next")
    return ExpectedGain(
        costs,
        1.0,
        params.longest,
        opening=opening,
        stands=_isotonic(numbers(drafts, drawn), numbers(drafts, "stands"), falls=falls),
        follows=_isotonic(numbers(behind, drawn), numbers(behind, "next"), falls=falls),
        later=_chance(numbers(behind, "next")),
        opening_signal=seen,
        draft_signal=SIGNALS[drawn],
    )


def _chance(happened: np.ndarray) -> float:
    """Give how often something happened; 0 where it never came to the test: do not count on it."""
    return float(happened.mean()) if len(happened) else 0.0


def _isotonic(signal: np.ndarray, happened: np.ndarray, *, falls: bool = False) -> Curve:
    """Fit a chance that rises with a signal, or falls."""
    if not len(happened):
        return Curve((0.0,), (_chance(happened),))
    fit = IsotonicRegression(y_min=0, y_max=1, increasing=not falls)
    fit.fit(signal, happened)
    knots, first = np.unique(fit.X_thresholds_, return_index=True)
    values = np.clip(fit.y_thresholds_[first], 0, 1)
    return Curve(tuple(knots.tolist()), tuple(values.tolist()))


KNOWN_FIRST = tuple(SIGNALS)

KNOWN_LATER = ("k", *SIGNALS, *(f"target_{name}" for name in SIGNALS))
"""What the most informed policy goes by: before a draft, and within one."""


def informed(tuned_on: Script, costs: RoundCosts) -> Callable[[Script], np.ndarray]:
    """Fit a rule that sees all signals at once; of texts it gives its lengths, [text, place].

    The renewal-reward rule with chances from boosted trees over every signal of target and draft,
    fitted on other texts: an estimate, from below, of the best that can be done with what is known
    when it is decided. For a drafter without laws what is known is the target's.
    """
    table = firsts(tuned_on, [""] * len(tuned_on.tokens))
    opening = _trees(matrix(table, KNOWN_FIRST), numbers(table, "accepted"))
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
    return best


def part_of(recorded: Script, texts: Sequence[int]) -> Script:
    """Give some of the texts, in this order."""
    rows = torch.tensor(texts)
    return Script(
        tuple(recorded.tokens[text] for text in texts),
        {name: values[rows] for name, values in recorded.target.items()},
        recorded.drafts[rows],
        recorded.lengths[rows],
        recorded.accepted[rows],
        {name: values[rows] for name, values in recorded.signals.items()},
    )


def _trees(known: np.ndarray, happened: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a chance by boosted trees; a constant where all or none happened."""
    if happened.all() or not happened.any():
        return lambda rows: np.full(len(rows), _chance(happened))
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
    later = _chance(_later(tuned_on))
    flat = Curve((0.0,), (later,))
    rule = ExpectedGain(costs, rate, longest, flat, flat, flat, later)
    stands = follows = None
    if len(drafts):
        behind = drafts.dropna(subset="next")
        stands = _trees(matrix(drafts, KNOWN_LATER), numbers(drafts, "stands"))
        follows = _trees(matrix(behind, KNOWN_LATER), numbers(behind, "next"))

    def lengths(script: Script) -> np.ndarray:
        shape = script.accepted.shape
        before = _table(script.target, shape)
        first = opening(matrix(before, KNOWN_FIRST))
        chances, wanted = np.ones(len(before)), (first > rule.least_opening).astype(int)
        for k in range(1, longest):
            going = wanted == k
            if stands is None or follows is None:
                worth = first * later**k > rule.least(k)
            else:
                known = _table({n: v[..., k - 1] for n, v in script.signals.items()}, shape)
                known = known.assign(k=k, **{f"target_{n}": before[n] for n in SIGNALS})
                columns = matrix(known, KNOWN_LATER)
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
