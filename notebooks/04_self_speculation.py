# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Self-speculative decoding with a searched plan
#
# **A model that drafts for itself gains only if the branches that it skips are well chosen, and there are
# 2²⁴ choices for twelve layers. Whoever tries them with a stopwatch measures noise. This article foretells what a
# plan is worth from text that the target has already written, searches by that, and then lets the clock judge
# what was found.**
#
# The scheme is Draft & Verify ([2309.08168](https://arxiv.org/abs/2309.08168)): skipped sub-layers chosen by Bayesian
# optimisation, and a draft that ends where it doubts. The article that this one answers to applied it to gemma-2-9b-it,
# tried up to 1,000 plans by wall clock, and ended at 0.81 times the speed of plain decoding.
#
# *Needs*: nothing but this repository. *Takes*: about five minutes on two cores. *The code*: `foredraft.search`
# (`teacher_forced`, `predict`, `space`, `bayes`, `baselines`, `find`), `foredraft.decoding.exit`; the tables below are made in
# `foredraft.articles.self_speculation`.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke", "gemma2-9b"; None: what params.yaml says
models = None  # whose plans are timed; the first two are held against decoding
model = None  # the one that is searched below
device = None
temperature = None
objective = None  # what the search makes large
trials = None
pareto_trials = None
plans_checked = None  # how many plans are decoded under, to see whether they were foretold
checked_length = None  # γ of these
n_prompts = None
max_new_tokens = None
exit_tokens = None  # length of the texts on which ways to end a draft are compared
seed = None

# %%
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

import foredraft as fd
from foredraft import paths
from foredraft.analysis.speedup_lines import level_lines
from foredraft.articles.outputs import Outputs
from foredraft.articles.self_speculation import experiment, original, search_plots
from foredraft.articles.self_speculation import plots as draw
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.live import counter
from foredraft.repro.params import load as load_params
from foredraft.search import bayes, find
from foredraft.search.space import Space
from foredraft.search.trial import best, table

overrides = {
    "profile": profile,
    "models": models,
    "model": model,
    "device": device,
    "temperature": temperature,
    "objective": objective,
    "trials": trials,
    "pareto_trials": pareto_trials,
    "plans_checked": plans_checked,
    "checked_length": checked_length,
    "n_prompts": n_prompts,
    "max_new_tokens": max_new_tokens,
    "exit_tokens": exit_tokens,
    "seed": seed,
}
params = load_params("self_speculation", overrides)
recordings = recording.recordings("self_speculation")
recorded, timed_here = recordings["cpu"], recordings.get(params.device, recordings["cpu"])
outputs = Outputs(
    "self_speculation",
    params.model_dump(mode="json"),
    [
        *(paths.prompts(kind) for kind in ("pocket", "chat")),
        *(paths.plan(name) for name in original.PUBLISHED_PLANS),
        *(file for name in {*params.models, params.model} for file in paths.weights(name)),
        *paths.recordings("self_speculation"),
    ],
    device=params.device,
)

# %% [markdown]
# ## 1 · The article's run, from its own three numbers
#
# It reports tokens a second for the target alone, for the draft alone and for both together, and an acceptance rate.
# The first two give c, what a draft step costs in target steps. Bytes give c as well, from the plan and the model's
# configuration, before anything is run.

# %%
run = original.article_run()
display(
    Markdown(
        f"c = **{run['cost']:.3f}** by its clock, **{run['cost_bytes']:.3f}** by bytes; α = **{run['acceptance']:.3f}**. "
        f"Since α < c no draft length can gain anything; the best that such a pair can do while it drafts at all is "
        f"{run['best']:.2f}×, with drafts of one token."
    )
)

# %% [markdown]
# How much of a loss depends on how far it drafted, which the article does not say: its exit ended drafts early. If a round drafts γ tokens on average
# and αγ of them stand, and verification costs one step and nothing else anything, then S = (1 + αγ) ÷ (1 + cγ). The γ that would explain its S:

# %%
lengths = experiment.foretold_by_length(run["acceptance"], run["cost"], longest=8)
outputs.save(draw.article(lengths, run), "article")

# %%
display(
    Markdown(
        f"From drafts of one token to the longest that its controller allows, α and c foretell {lengths.speedup.iloc[1]:.2f}× down to "
        f"{lengths.speedup.iloc[-1]:.2f}×. What it got, **{run['speedup']:.2f}×**, lies between; drafts of {run['length']:.1f} tokens on average would explain it."
    )
)

# %% [markdown]
# ## 2 · What a plan is worth, without decoding
#
# Let the target write a text. Whatever drafts, an accepted token *is* the text's next token, and P(drafted and accepted)
# = min(p, q). So given the text, token x of a draft stands with chance
#
# $$w = \frac{\min(p(x), q(x))}{p(x)} = \min\left(1, \frac{q(x)}{p(x)}\right)$$
#
# independently of the others. p is known from writing, and one pass of the draft over the whole text gives q at all
# positions at once. Three things have to be right.
#
# * **The k-th token of a draft sees other keys and values than the first.** Behind the verified text, which the whole
#   model has read, stand those that the draft itself has made. So there is one pass for each place in a draft, and the k-th
#   reads every token of the text as the k-th of a draft (`search/teacher_forced.py` has the picture).
# * **Rounds do not start anywhere with the same chance.** After a rejection a new one starts where drafts are bad. r_a, the
#   chance that a round starts after token a, follows from those before it; tokens a round are N ÷ Σ r_a.
# * **The last factor can be averaged.** What is expected of a draft that has come to its k-th token is β = Σ min(p, q),
#   over all that the target might have said there, and not just w of what it said.
#
# On tiny models this is tested against enumeration: all texts, all drafts, all coins, to 1e-10.

# %%
subject = find.chosen(params.model, params)
costs = find.costs(subject, timed_here.table, params.temperature, params.longest)
judge = find.objective(subject, params, costs, temperature=params.temperature)
half = fd.SkipPlan.early_exit(subject.decoder.config.n_layers // 2, subject.decoder.config.n_layers)
foretold = judge.predict(half)
pd.Series({name: f"{each.mean:.3f} ± {each.sem:.3f}" for name, each in foretold.metrics().items()})

# %% [markdown]
# A line of figures for one plan, in half precision as it is decoded with: how much faster, at the best draft length for it, with the standard error that the choice of
# texts leaves. The speed-up is put together from tokens a round and from what the parts of a round cost, as recorded on the machine
# named in section 8.
#
# ## 3 · Foretold and decoded
#
# Plans of all sorts on held-out prompts, two models, in float32. Greedy decoding leaves nothing to chance: rounds have to agree text by
# text. At a temperature there are two checks: both sides on texts of their own (the figure), and, sharper, the rounds that
# were decoded less those foretold *along the very text that came out*. These differences have mean zero or something is wrong.

# %%
heats = (0.0, params.temperature or 1.0)
pair = [find.chosen(name, params, "float32") for name in params.models[:2]]
check = pd.concat(
    [experiment.checked(each, params, temperature=heat) for heat in heats for each in pair],
    ignore_index=True,
)
outputs.save(draw.reality(check), "reality")

# %%
greedy, sampled = (check[check.temperature == heat] for heat in heats)
chi_squared = float((sampled["z"] ** 2).sum())
p_value = float(stats.chi2.sf(chi_squared, len(sampled)))
assert (greedy["off"] == 0).all()
assert p_value > 1e-3
assert sampled["z"].abs().max() < 4
display(
    Markdown(
        f"Greedy: **{int(greedy['texts'].sum())} texts** under {len(greedy)} plans, none off by a round. At temperature "
        f"{heats[1]:g}: {len(sampled)} standardised residuals, χ² = {chi_squared:.1f}, p = **{p_value:.3f}**, the largest "
        f"{sampled['z'].abs().max():.1f}."
    )
)

# %% [markdown]
# Are the three things worth their trouble? The same plans again, foretold in one pass (as if the whole model's keys and values stood
# behind every token of a draft), and with all places counted alike.

# %%
outputs.save(draw.shortcuts(check), "shortcuts")

# %%
off = {name: 100 * (check[name] / check["foretold"] - 1) for name in ("one_pass", "all_places")}
display(
    Markdown(
        f"In one pass: {off['one_pass'].median():+.1f} % in the median, {off['one_pass'].min():+.1f} to "
        f"**{off['one_pass'].max():+.1f} %**. All places alike: {off['all_places'].median():+.1f} %, "
        f"{off['all_places'].min():+.1f} to **{off['all_places'].max():+.1f} %**. The search goes by the exact band; "
        f"it costs γ passes instead of one, and stops at the first length that gains nothing."
    )
)

# %% [markdown]
# ## 4 · A search
#
# Ax proposes a plan, the objective foretells its speed-up, Ax is told, and so on: first the empty plan and a few that skip little, then some
# at random, then whatever a Gaussian process over the branches thinks most promising.

# %%
found = find.searched(subject, judge, params)
tried = table(found, params.objective)
outputs.save(search_plots.search(tried), "search", recorded=timed_here.file)

# %%
top = best(found, params.objective)
winner = judge.predict(top.plan)
at_random = tried[tried.origin == "sobol"][params.objective]
display(
    Markdown(
        f"Best of {len(found)}: `{top.plan}` at draft length {winner.length}: foretold **{winner.speedup.mean:.2f}** ± "
        f"{winner.speedup.sem:.2f}, c = {winner.cost:.2f}, acceptance {winner.acceptance.mean:.2f}. Plans at random reach "
        f"{at_random.max():.2f} at best, {at_random.mean():.2f} on average."
    )
)
tried.sort_values(params.objective, ascending=False).head(5)[
    ["origin", "branches", "speedup", "speedup_sem", "acceptance", "cost", "length"]
].round(3)

# %% [markdown]
# ## 5 · Against other ways to search
#
# One search proves little. So several seeds, of `pocket-llama` at temperature 1, against plans drawn at random, layers spread evenly, and a greedy rule (skip one branch more, always the
# best one, then exchange). By costs in bytes, so that no clock has a say. In a space small enough, every plan was tried: there the optimum is known.
# (Ax and the random draws begin with the same few plans that skip little.)
# This took too long for a pipeline; `foredraft record self_speculation` repeats it.

# %%
race = experiment.race_of(recorded.table)
share = experiment.share_of_gain(race)
outputs.save(search_plots.race(race), "race", recorded=recorded.file)

# %%
ends = share.groupby("method")["share"].agg(["min", "median", "count"])
by_seed = share.pivot_table(index="seed", columns="method", values="share")
assert (by_seed["Ax"] >= by_seed["random"]).all()
display(
    Markdown(
        f"Of what the best plan of the small space gains over the mean plan, Ax has **{ends.loc['Ax', 'min']:.0%}** or more with each of "
        f"{ends.loc['Ax', 'count']} seeds after {int(share[share.method == 'Ax']['index'].max()) + 1} trials; random plans "
        f"{ends.loc['random', 'median']:.0%} in the median, {ends.loc['random', 'min']:.0%} at worst."
    )
)
ends.round(3)

# %%
frequency = experiment.branch_frequency(race)
outputs.save(search_plots.frequency(frequency), "frequency", recorded=recorded.file)

# %% [markdown]
# Where seeds agree, the model speaks; where they do not, branches are interchangeable, or the search has not settled.
#
# ## 6 · Two goals at once
#
# c belongs to a machine. Whoever does not know the machine yet wants the front: for each c the highest β.

# %%
told = counter("plans tried", params.pareto_trials)
both = bayes.search(
    Space.of(subject.decoder.config),
    judge,
    trials=params.pareto_trials,
    seed=params.seed,
    goal=("-cost", "overlap"),
    initial=params.initial,
    report=lambda trial: told(trial.index + 1),
)
everything = pd.concat([tried, table(both, "overlap")], ignore_index=True)
front = table(bayes.pareto([*found, *both], ("-cost", "overlap")), "overlap")
lines = level_lines((1.1, 1.25, 1.5))
outputs.save(
    search_plots.trade_off(front, everything, lines), "trade_off", recorded=timed_here.file
)

# %% [markdown]
# ## 7 · When to stop drafting
#
# Draft & Verify ends a draft below a confidence, and moves that threshold so that acceptance comes to a target. The
# article has the same controller but for the order of two tests. Both move the threshold by a thousandth a round.

# %%
threshold = experiment.threshold_paths(params.exit_tokens)
policies = experiment.policies(subject, winner.plan, costs(winner.plan), params)
outputs.save(draw.controllers(threshold, policies), "controllers", recorded=timed_here.file)

# %%
moved = threshold.groupby("rule")["threshold"].agg(lambda path: (path - path.iloc[0]).abs().max())
fixed = policies[policies.policy.str.startswith("fixed")]
best_fixed = fixed.loc[fixed.speedup.idxmax()]
others = policies[~policies.policy.str.startswith("fixed")].sort_values("speedup")
display(
    Markdown(
        f"In {params.exit_tokens} tokens the threshold can move by **{moved.max():.2f}** at most, whatever happens. What acts is where it starts. "
        f"The best fixed length is {best_fixed.policy.removeprefix('fixed ')}, with {best_fixed.speedup:.3f} ± {best_fixed['sem']:.3f}; the best of the "
        f"others is “{others.policy.iloc[-1]}” with {others.speedup.iloc[-1]:.3f} ± {others['sem'].iloc[-1]:.3f}."
    )
)
policies.round(3)

# %% [markdown]
# And verification as a block ([2403.10444](https://arxiv.org/abs/2403.10444)), which never expects fewer tokens than one by one? Its gain grows with the
# draft length, which is small here.

# %%
verification = experiment.rules(subject, winner.plan, (1, 2, 4, 8), params)
outputs.save(draw.rules(verification), "rules", recorded=timed_here.file)

# %% [markdown]
# ## 8 · The clock has the last word
#
# Foretold is not measured. For each model, greedy and at temperature 1, the same search was run on this machine after its costs
# were timed, and the best two plans decoded held-out prompts in alternation with *our own* plain decoding. What is foretold by the
# texts that were searched on is partly luck, so held-out texts foretell again, on the very prompts that are decoded. The clock is asked twice: about
# the rounds alone, which is what was foretold, and about whole generations, which begin with the same pass over the prompt on both sides.
# The orange bars are what a search finds if weights alone take time and verification costs a plain step: a yardstick and no bound, for a draft
# also saves what a plain round costs beside its pass.

# %%
timed = experiment.timed(recorded.table)
where = f"{recorded.machine.name}, {recorded.date}"
display(Markdown(f"*Recorded on* {where}."))
outputs.save(draw.timed(timed), "timed", recorded=recorded.file)

# %%
won = timed[timed.name == "found 1"].set_index(["model", "sampler"])
searches = experiment.searches(recorded.table)
off = won["residual"]
aims = pd.Series([1.25 if "layerskip" in model else 1.15 for model, _ in won.index], won.index)
reached = (won["speedup_median"] >= aims).groupby(level="sampler").agg(["sum", "size"])
display(
    Markdown(
        f"The rounds of the best plans are within **{off.abs().median():.1%}** of what held-out texts foretell in the median, {off.min():+.1%} to {off.max():+.1%}; "
        f"{int((off.abs() <= 0.1).sum())} of {len(off)} within a tenth. The aim for whole generations, 1.15 and for the LayerSkip model 1.25 (dotted), is reached by "
        + " and ".join(
            f"{row['sum']} of {row['size']} ({name})" for name, row in reached.iterrows()
        )
        + f". A search of "
        f"{int(searches.trials.max())} trials took {searches.seconds.min():.0f} to {searches.seconds.max():.0f} s; with the texts written, to know one plan's "
        f"speed-up as well by decoding one text after the other would take **{searches.effort.min():.0f} to {searches.effort.max():.0f} times** as long as to foretell it."
    )
)
skipping_nothing = [
    " ".join(name) for name, plan in won["plan"].items() if not len(fd.SkipPlan.from_json(plan))
]
step = experiment.whole_step(recorded.table)
display(
    Markdown(
        f"A draft step of the whole model takes {step.min():.2f} to {step.max():.2f} of a plain round: what a round costs beside its pass (drawing, judging, keeping the books) is paid "
        f"once for all tokens of a draft. So much could be gained in plain decoding too, and a plan that skips nothing can be the best ({', '.join(skipping_nothing) or 'nowhere here'})."
    )
)
won[
    [
        "length",
        "predicted",
        "predicted_held_out",
        "rounds_speedup",
        "ceiling",
        "speedup_median",
        "speedup_min",
        "speedup_max",
        "acceptance",
        "n",
    ]
].round(3)

# %% [markdown]
# From the first figure of such a row to the last, each step has a name: other texts than those searched on, the luck of the draws that decoding made,
# parts that cost something else than was timed beforehand, and the prefill.

# %%
departures = experiment.departures(timed)
display(
    Markdown(
        ", ".join(
            f"{name} **{departures[name].median():+.1%}** ({departures[name].min():+.1%} to {departures[name].max():+.1%})"
            for name in experiment.STEPS
        )
    )
)
departures.round(3)

# %% [markdown]
# ## 9 · What gemma-2-9b-it would need
#
# The acceptance at which drafts begin to pay, and to pay well, for every c; and the plans that have been published for large models, by bytes.

# %%
needed = original.needed([x / 50 for x in range(2, 46)], (1.0, 1.1, 1.25, 1.5, 2.0))
published = original.published_plans()
outputs.save(draw.needed(needed, published, run), "needed")

# %%
at_c = original.needed([run["cost"]], (1.0, 1.1, 1.25)).set_index("gain")["acceptance"]
display(
    Markdown(
        f"At the article's c an acceptance of {at_c[1.0]:.2f} breaks even, {at_c[1.1]:.2f} gives 1.1× and {at_c[1.25]:.2f} gives 1.25×; it had "
        f"{run['acceptance']:.2f}. `foredraft search --model google/gemma-2-9b-it --profile gemma2-9b --device cuda` searches on a machine that has the weights; "
        f"with `--costs bytes` it does so without timing anything."
    )
)
published.round(3)

# %% [markdown]
# In numbers, foretold from bytes alone and measured nowhere: the least time of a token on some accelerators (all weights in bf16, read once), and what a few plans would
# gain at the acceptance of the article's run and at higher ones.

# %%
floors = original.floors()
gains = original.by_bytes((round(run["acceptance"], 3), 0.6, 0.7, 0.8, 0.9))
display(floors.round(1))
gains.pivot_table(index=["plan", "cost"], columns="acceptance", values="gain").round(2)

# %% [markdown]
# Where the model itself is at hand (`profile="gemma2-9b"`), its own prompt is decoded under its own plan with its own exit.

# %%
if original.fits_article(subject.decoder.config):
    case = experiment.article_case(subject, params)
    display(case.round(3))
else:
    display(
        Markdown(
            f"`{params.model}` is not gemma-2-9b-it, so the article's plan does not fit it: `foredraft run self_speculation -p profile=gemma2-9b` on a machine with the weights."
        )
    )

# %% [markdown]
# ## 10 · The results

# %%
values, claims = experiment.findings(run, check, p_value, share, won, searches)
everything_told = pd.concat(
    [
        check.assign(part="checked"),
        tried.assign(part="search"),
        front.assign(part="front"),
        frequency.assign(part="frequency"),
        policies.assign(part="policies"),
        verification.assign(part="verification"),
        needed.assign(part="needed"),
        published.assign(part="published"),
        floors.assign(part="floors"),
        gains.assign(part="gains"),
        departures.assign(part="departures"),
    ],
    ignore_index=True,
)
outputs.finish(
    everything_told,
    values,
    claims,
    recorded=dict.fromkeys(("race", "search", "timed"), recorded.file),
)
pd.DataFrame(
    [
        {"claim": claim.text, "ours": results.ours(claim, results.flattened(values))}
        for claim in claims
    ]
)

# %% [markdown]
# ## 11 · What surprised us
#
# * **The article's loss was foretold by two numbers of its own page.** With α below c every draft length loses.
# * **Greedy acceptance needs no decoding.** γ passes over greedy text foretell every round of drafts up to γ, exactly (in float32).
# * **All places are not alike.** To average over positions, as if a round could start anywhere, is off by far more than to take one pass for γ (section 3).
# * **The adaptive threshold moves by a thousandth a round.** What acts in a short text is its first value.
#
# Next: [05, gating on the target's confidence](../README.md#the-articles), which asks when to draft at all.
