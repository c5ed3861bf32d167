"""Article 04: is there a plan that makes drafting for oneself a gain, and why was there none?

Plans are scored on text (`foredraft.search`), and searched and timed in `search.find`. Here these
predictions are compared with decoding; `original` compares the original post's run with theory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from foredraft.analysis.statistics import ratio
from foredraft.articles.self_speculation.original import (
    ARTICLE_LAYERS,
    PUBLISHED_PLANS,
    fits_article,
)
from foredraft.articles.self_speculation.recording import CEILING, RACE, SEARCH
from foredraft.decoding import theory
from foredraft.decoding.exit import (
    AdaptiveExit,
    ConfidenceExit,
    CostAwareExit,
    ExitPolicy,
    FixedLength,
    threshold_path,
)
from foredraft.decoding.loop import Generation, generate
from foredraft.decoding.prefill import Prefill, prefill
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.theory import Costs
from foredraft.models.skip import SkipPlan
from foredraft.repro.claims import Claim, notch
from foredraft.repro.live import steps
from foredraft.repro.params import SelfSpeculation
from foredraft.sampling import Sampler
from foredraft.search.find import Candidate, some
from foredraft.search.measured_costs import STEP
from foredraft.search.predict import ByBytes, moments, rounds
from foredraft.search.teacher_forced import Chances, along, rehearse

ARTICLE_QUESTION, ARTICLE_TOKENS = "What is the capital of Taiwan. And why?", 100
"""The article's one prompt, and about how much it decodes after it."""


LEAST_EFFORT = 1e-3
"""Below this the noise of decoding is that of rounding."""

WORDS = {"draft_and_verify": "Draft & Verify", "article": "the article's"}
"""What the two adaptive rules are called."""


def article_case(subject: Candidate, params: SelfSpeculation) -> pd.DataFrame:
    """Decode the article's prompt as the article does, under its plan; one row.

    Its settings: temperature 1, 100 tokens, its exit with drafts of at most 8. Of the parameters
    only `samples`, how many texts, and the seed count. `drafted` is the mean draft length, `cost` c
    by bytes, and `speedup`, with its standard error over texts, what that makes of the rounds.
    ValueError for any model but a Gemma-2 of as many layers as the plan is for.
    """
    config = subject.decoder.config
    if not fits_article(config):
        raise ValueError(
            f"{subject.name} is a {config.architecture} of {config.n_layers} layers, the article's "
            f"plan is for a gemma2 of {ARTICLE_LAYERS}: load one, as profile gemma2-9b does"
        )
    plan = SkipPlan.published(PUBLISHED_PLANS[0])
    costs = ByBytes(config)(plan)
    stop = AdaptiveExit(rule="article", max_length=8)
    asked = replace(subject, held_out=[subject.asked(ARTICLE_QUESTION)] * params.samples)
    told = {"temperature": 1.0, "exit_tokens": ARTICLE_TOKENS, "checked_prompts": params.samples}
    known = prefill(asked.decoder, some(asked.held_out, params.samples))
    row = _policy("article", stop, asked, known, plan, costs, params.model_copy(update=told))
    del row["policy"]
    tokens = 1 + row["acceptance"] * row["drafted"]
    return pd.DataFrame(
        [{"model": subject.name, **row, "tokens_per_round": tokens, "cost": costs.draft}]
    )


def foretold_by_length(alpha: float, cost: float, longest: int) -> pd.DataFrame:
    """Give the speed-up of each draft length, for independent acceptances (theorem 3.8)."""
    lengths = range(longest + 1)
    return pd.DataFrame(
        {"length": lengths, "speedup": [theory.speedup(alpha, n, cost=cost) for n in lengths]}
    )


def plans_to_check(n_layers: int, params: SelfSpeculation) -> dict[str, SkipPlan]:
    """Give plans of all sorts: exits, layers spread out, and branches drawn at random."""
    found = {}
    for share in (1, 2, 3):
        n = share * n_layers // 4
        found[f"exit {n}"] = SkipPlan.early_exit(n, n_layers)
        found[f"spread {n}"] = SkipPlan.spread(n, n_layers)
    generator = torch.Generator().manual_seed(params.seed)
    for i in range(params.plans_checked):
        picked = torch.randperm(2 * n_layers, generator=generator)[: 1 + i].tolist()
        attention = [layer for layer in picked if layer < n_layers]
        mlp = [layer - n_layers for layer in picked if layer >= n_layers]
        found[f"random {1 + i}"] = SkipPlan(attention, mlp)
    names = list(found)
    kept = [names[i * len(names) // params.plans_checked] for i in range(params.plans_checked)]
    return {name: found[name] for name in kept}


def checked(subject: Candidate, params: SelfSpeculation, *, temperature: float) -> pd.DataFrame:
    """Hold what is foretold of plans against decoding under them, on held-out prompts.

    A row a plan. `foretold` and `decoded` are tokens a round, each with its standard error; the
    texts of one were written apart from those of the other. `z` asks more: whether the rounds that
    were decoded, less those foretold along the very text that came out, are zero on average, in
    units of the standard deviation that the same chances give. It is independent of that of another
    plan. Greedy rounds have to be the same to the last one: `off` counts the texts where they are
    not. `one_pass` and `all_places` are what two cheaper ways foretell.
    """
    sampler, samples = Sampler(temperature=temperature), params.samples if temperature else 1
    chosen = some(subject.held_out, params.checked_prompts)
    prompts = [prompt for prompt in chosen for _ in range(samples)]
    generator = torch.Generator(subject.decoder.device).manual_seed(params.seed)
    settings: dict[str, Any] = {"sampler": sampler, "generator": generator}
    n_new = params.checked_tokens
    known = prefill(subject.decoder, prompts)
    own = rehearse(subject.decoder, prompts, new_tokens=n_new, prefilled=known, **settings)
    length, rows = params.checked_length, []
    plans = plans_to_check(subject.decoder.config.n_layers, params)
    for name, plan in steps(plans.items(), f"plans of {subject.name}"):
        made = _decoded(
            *(subject, known, params, SelfDrafter(plan), FixedLength(length)),
            n_new=n_new,
            **settings,
        )
        count, drafted = counted(made)
        text = along(subject.decoder, prompts, made.tokens, sampler=sampler, prefilled=known)
        mean, variance = moments(list(islice(text.drafts(plan), length)), length)
        exact = list(islice(own.drafts(plan), length))
        once = [exact[0]] * length  # what `one_pass` gives, whose pass was just made
        apart, approximate = rounds(exact, length), rounds(once, length)
        tokens = np.full(len(count), float(n_new - 1))
        foretold, decoded = ratio(apart.tokens, apart.count), ratio(tokens, count)
        rows.append(
            {
                **{"model": subject.name, "temperature": temperature, "name": name},
                **{"plan": plan.to_json(), "length": length, "texts": len(count)},
                **{"foretold": foretold.mean, "foretold_sem": foretold.sem},
                **{"decoded": decoded.mean, "decoded_sem": decoded.sem},
                "acceptance": float((tokens - count).sum() / drafted.sum()),
                "acceptance_foretold": float(apart.accepted.sum() / apart.drafted.sum()),
                "one_pass": ratio(approximate.tokens, approximate.count).mean,
                "all_places": all_places(exact),
                "z": _z(count - mean, variance) if temperature else float("nan"),
                "off": int((np.abs(count - mean) > 1e-6).sum()) if not temperature else 0,
            }
        )
    return pd.DataFrame(rows)


def all_places(chances: Sequence[Chances]) -> float:
    """Give the tokens a round if it were as likely to start at any place as at any other.

    As in `rounds`, those near the end of a text have room for fewer drafts.
    """
    stands = [each.accepted.double() for each in chances]
    places, total = stands[0].shape[1], 0.0
    for a in range(places):
        drafted = [stands[k][:, a + k] for k in range(min(len(stands), places - a - 1))]
        if drafted:
            total += float(torch.stack(drafted).cumprod(0).sum(0).mean())
    return 1 + total / places


def counted(made: Generation) -> tuple[np.ndarray, np.ndarray]:
    """Count the rounds of each text after its prefill, and what they drafted."""
    table = made.trace.table()
    rows = table.loc[table["round"] > 0].groupby("row")
    return rows.size().to_numpy(float), rows["drafted"].sum().to_numpy(float)


def _z(differences: np.ndarray, variances: np.ndarray) -> float:
    """Give Σ differences in standard deviations; infinite where there should be none and is."""
    off, spread = float(differences.sum()), float(variances.sum()) ** 0.5
    if spread > 1e-9:
        return off / spread
    return 0.0 if abs(off) < 1e-6 else float("inf")


def _decoded(  # noqa: PLR0913 - what the experiments vary
    subject: Candidate,
    known: Prefill,
    params: SelfSpeculation,
    drafter: SelfDrafter,
    stop: ExitPolicy,
    *,
    sampler: Sampler,
    generator: torch.Generator,
    verification: str = "token",
    n_new: int | None = None,
) -> Generation:
    return generate(
        subject.decoder,
        known.prompts,
        sampler=sampler,
        max_new_tokens=n_new or params.max_new_tokens,
        drafter=drafter,
        exit_policy=stop,
        verification=verification,
        generator=generator,
        eos_token_id=[],
        prefilled=known,
    )


def policies(
    subject: Candidate, plan: SkipPlan, costs: Costs, params: SelfSpeculation
) -> pd.DataFrame:
    """Decode under one plan with each way to end a draft; a row each.

    `speedup` is put together from the rounds and the costs, with its standard error over texts, so
    that no clock is read. The cost-aware exit takes for its rate what the best fixed length gains,
    for the cost of one more token a draft step and what verifying one more takes on average, and
    for that token's acceptance the acceptance of drafts of one.
    """
    longest = max(costs.verify)
    known = prefill(subject.decoder, some(subject.held_out, params.checked_prompts))
    rows = [
        _policy(f"fixed {n}", FixedLength(n), subject, known, plan, costs, params)
        for n in steps(range(1, longest + 1), "draft lengths")
    ]
    one_more = costs.draft + (costs.verify[longest] - costs.verify[1]) / max(1, longest - 1)
    rate = max(1.0, *(float(row["speedup"]) for row in rows))
    stops: dict[str, ExitPolicy] = {
        f"{word} controller": AdaptiveExit(rule=rule, max_length=longest)
        for rule, word in WORDS.items()
    }
    stops["threshold 0.5"] = ConfidenceExit(0.5, longest)
    stops["cost-aware"] = CostAwareExit(
        one_more / costs.target,
        max_length=longest,
        rate=rate,
        acceptance=max(0.01, float(rows[0]["acceptance"])),
    )
    rows += [
        _policy(name, stop, subject, known, plan, costs, params)
        for name, stop in steps(stops.items(), "ways to end a draft")
    ]
    return pd.DataFrame(rows)


def _policy(  # noqa: PLR0913 - what the policies share
    name: str,
    stop: ExitPolicy,
    subject: Candidate,
    known: Prefill,
    plan: SkipPlan,
    costs: Costs,
    params: SelfSpeculation,
) -> dict[str, Any]:
    made = _decoded(
        subject,
        known,
        params,
        SelfDrafter(plan),
        stop,
        sampler=Sampler(temperature=params.temperature),
        generator=torch.Generator(subject.decoder.device).manual_seed(params.seed),
        n_new=params.exit_tokens,
    )
    table = made.trace.table()
    table = table.loc[table["round"] > 0]
    seconds = table["drafted"].map(costs.round)
    time = seconds.groupby(table["row"]).sum().to_numpy(float)
    found = ratio(np.full(len(time), costs.target * (params.exit_tokens - 1)), time)
    drafted, accepted = table["drafted"].sum(), table["accepted"].sum()
    return {
        **{"policy": name, "speedup": found.mean, "sem": found.sem},
        **{"drafted": drafted / len(table), "acceptance": accepted / max(1, drafted)},
    }


def threshold_paths(n_tokens: int, lengths: Iterable[int] = (1, 4, 8)) -> pd.DataFrame:
    """Follow the threshold of both rules over a text in the cases that move it most.

    Every draft has the same length; all of it is accepted, or nothing. `token` counts the tokens
    emitted so far, and a text ends after `n_tokens`.
    """
    rows = []
    for rule in WORDS:
        for length in lengths:
            for accepted in (0, length):
                count = -(-n_tokens // (accepted + 1))
                path = threshold_path(AdaptiveExit(rule=rule), [length] * count, [accepted] * count)
                for i, threshold in enumerate(path):
                    token = min(n_tokens, i * (accepted + 1))
                    case = {"rule": rule, "length": length, "accepted": accepted}
                    rows.append({**case, "token": token, "threshold": threshold})
    return pd.DataFrame(rows)


def rules(
    subject: Candidate, plan: SkipPlan, lengths: Iterable[int], params: SelfSpeculation
) -> pd.DataFrame:
    """Decode under one plan with each rule of verification; tokens a round with their error."""
    rows = []
    known = prefill(subject.decoder, subject.held_out * params.samples)
    for length in lengths:
        for rule in ("token", "block"):
            made = _decoded(
                subject,
                known,
                params,
                SelfDrafter(plan),
                FixedLength(length),
                sampler=Sampler(temperature=params.temperature),
                generator=torch.Generator(subject.decoder.device).manual_seed(params.seed),
                verification=rule,
            )
            count, _ = counted(made)
            found = ratio(np.full(len(count), float(params.max_new_tokens - 1)), count)
            rows.append({"rule": rule, "length": length, "mean": found.mean, "sem": found.sem})
    return pd.DataFrame(rows)


def branch_frequency(race: pd.DataFrame) -> pd.DataFrame:
    """Give how often each branch is in the best plan of Ax among all branches, over its seeds."""
    ax = race.loc[(race["space"] == "all") & (race["method"] == "Ax")]
    best = ax.loc[ax.groupby("seed")["value"].idxmax()]
    plans = [SkipPlan.from_json(plan) for plan in best["plan"]]
    return pd.DataFrame(
        [
            {
                **{"branch": branch, "layer": layer},
                "share": sum(layer in skipped(plan) for plan in plans) / len(plans),
            }
            for branch, skipped in BRANCHES.items()
            for layer in range(int(race["layers"].iloc[0]))
        ]
    )


BRANCHES: Mapping[str, Callable[[SkipPlan], frozenset[int]]] = {
    "attention": lambda plan: plan.attn,
    "MLP": lambda plan: plan.mlp,
}


def race_of(recorded: pd.DataFrame) -> pd.DataFrame:
    """Give the recorded race of the methods: a row a trial, `best` being the best so far."""
    rows = recorded.loc[recorded["strategy"] == RACE]
    columns = ["space", "method", "seed", "index", "value", "best", "plan", "layers"]
    whole = dict.fromkeys(("seed", "index", "layers"), int)
    return rows[columns].astype(whole).reset_index(drop=True)


def share_of_gain(race: pd.DataFrame) -> pd.DataFrame:
    """Give how much of the optimum's gain over the mean plan each method has at its end.

    In the space that was tried out; a row a method and seed.
    """
    small = race.loc[race["space"] == "small"]
    (all_of_it,) = small.loc[small["method"] == "exhaustive"].to_dict("records")
    others = small.loc[small["method"] != "exhaustive"]
    last = others.loc[others.groupby(["method", "seed"])["index"].idxmax()]
    gain = (last["best"] - all_of_it["value"]) / (all_of_it["best"] - all_of_it["value"])
    return last.assign(share=gain)[["method", "seed", "index", "share"]].reset_index(drop=True)


def timed(recorded: pd.DataFrame) -> pd.DataFrame:
    """Give the recorded plans that were found, with their speed-ups foretold and measured.

    `residual` is how far the rounds by the clock are from what held-out texts foretell; `ceiling`
    the best speed-up by bytes that a search of the same model and sampler comes to.
    """
    rows = recorded.loc[recorded["strategy"] == "self-drafting"].reset_index(drop=True)
    bounds = recorded.loc[recorded["strategy"] == CEILING, ["model", "sampler", "value"]]
    rows = rows.drop(columns="value").merge(bounds, how="left", on=["model", "sampler"])
    rows = rows.rename(columns={"value": "ceiling"})
    return rows.assign(residual=rows["rounds_speedup"] / rows["predicted_held_out"] - 1)


STEPS = {
    "other texts": ("predicted", "predicted_held_out"),
    "luck of the draws": ("predicted_held_out", "summed"),
    "costs of the parts": ("summed", "rounds_speedup"),
    "prefill": ("rounds_speedup", "speedup_median"),
}
"""What lies between a speed-up foretold and a whole generation by the clock, in this order."""


def departures(timed_plans: pd.DataFrame) -> pd.DataFrame:
    """Give by how much each of `STEPS` changes a plan's speed-up, a column each."""
    where = timed_plans[["model", "sampler", "name"]]
    return where.assign(
        **{name: timed_plans[to] / timed_plans[of] - 1 for name, (of, to) in STEPS.items()}
    )


def whole_step(recorded: pd.DataFrame) -> pd.Series:
    """Give what a draft step of the whole model takes of a plain round, by model and sampler."""
    steps = recorded.loc[
        (recorded["strategy"] == STEP) & (recorded["plan"] == SkipPlan().to_json())
    ]
    return steps.set_index(["model", "sampler"])["cost_median"]


def searches(recorded: pd.DataFrame) -> pd.DataFrame:
    """Give of each recorded search how long it took, and the effort that foretelling spares.

    There is none, NaN, where the best plan skips nothing: neither side has any noise then.
    """
    rows = recorded.loc[recorded["strategy"] == SEARCH]
    effort = rows["effort"].where(rows["effort"] > LEAST_EFFORT)
    columns = ["model", "sampler", "trials", "seconds", "effort"]
    return rows.assign(effort=effort)[columns].reset_index(drop=True)


def findings(
    run: Mapping[str, float],
    check: pd.DataFrame,
    p_value: float,
    share: pd.DataFrame,
    won: pd.DataFrame,
    recorded_searches: pd.DataFrame,
) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back.

    `won` are the rows of `timed` for the best plan of each search, by model and sampler.
    """
    greedy, sampled = (check.loc[(check["temperature"] > 0) == heat] for heat in (False, True))
    ax = share.loc[share["method"] == "Ax", "share"]
    values: dict[str, Any] = {
        "article": dict(run),
        "greedy_texts": {"count": int(greedy["texts"].sum()), "off": int(greedy["off"].sum())},
        "residuals": {"p": p_value, "largest": float(sampled["z"].abs().max())},
        "race": {"least": float(ax.min()), "median": float(ax.median())},
        "search": {
            "seconds": max(map(float, recorded_searches["seconds"].dropna().tolist())),
            "effort": min(map(float, recorded_searches["effort"].dropna().tolist())),
        },
        "timed": {},
    }
    claims = [
        Claim(
            "cost",
            "c of the article's plan by bytes",
            "article.cost_bytes",
            article=round(run["cost"], 3),
        ),
        Claim(
            "slow_down",
            "Best speed-up that the article's α and c allow, if anything is drafted",
            "article.best",
            article=round(run["speedup"], 2),
        ),
        Claim("length", "Mean draft length that explains the article's speed-up", "article.length"),
        Claim(
            "greedy",
            "Greedy texts whose rounds were foretold wrongly",
            "greedy_texts.off",
            n=int(greedy["texts"].sum()),
        ),
        Claim(
            "residuals",
            "χ² of the residuals of sampled rounds, p-value",
            "residuals.p",
            n=len(sampled),
            drift=0.5,  # a p-value: with other texts it is drawn again
        ),
        Claim(
            "race",
            "Share of the optimum's gain that Ax reaches, worst seed",
            "race.least",
            n=len(ax),
        ),
        Claim(
            "effort",
            "Times that decoding takes longer to know a speed-up as well, least",
            "search.effort",
            n=len(recorded_searches),
        ),
    ]
    for row in won.reset_index().to_dict("records"):
        model, sampler = row["model"], row["sampler"]
        name = f"{model}-{sampler}".replace(" ", "-")
        ends = {key: float(row[f"speedup_{key}"]) for key in ("median", "min", "max")}
        foretold = ("predicted", "predicted_held_out", "summed", "rounds_speedup", "ceiling")
        told = {key: float(row[key]) for key in foretold}
        told |= {"plan": row["plan"], "length": row["length"]}
        values["timed"][name] = ends | told
        text = f"Speed-up of the plan that was found, {model}, {sampler} (recorded)"
        n, spread = int(row["n"]), notch(float(row["speedup_iqr"]), int(row["n"]))
        claims.append(Claim(name, text, f"timed.{name}.median", n=n, spread=spread))
    return values, claims
