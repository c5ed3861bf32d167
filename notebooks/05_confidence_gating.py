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
# # 05 · Gating on the target's confidence
#
# **After each round the target's probability of the token that it has just emitted is known, for nothing. If it was unsure,
# will the next draft fail? Then a round without a draft would be cheaper. The article gates like that, at a
# threshold of 0.5. Whether it helps is a question about money: a gate has to beat the best drafts that never ask.**
#
# This article answers it on recorded texts, on which every policy there is can be replayed, and then asks the clock.
#
# *Needs*: nothing but this repository. *Takes*: about three minutes on two cores. *The code*: `foredraft.decoding` (`signal`, `gate`,
# `expected_gain`, `recording`, `replay`); the tables below are made in `foredraft.articles.confidence_gating`.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke", "gemma2-9b"; None: what params.yaml says
model = None
draft_model = None
plan = None  # the skip plan of the drafter that has one: a name in data/plans
device = None
drafter = None  # "draft model", "skip plan", "prompt lookup": the one that is looked at closely
drafters = None  # those that are compared
temperature = None
temperatures = None
signal = None  # "confidence", "entropy", "margin": what the rule of section 6 opens by
threshold = None  # the article's gate
longest = None  # the most tokens of a draft
n_prompts = None  # to tune policies on, and as many to judge them by
max_new_tokens = None
seed = None
measure = False  # True: time it all on this machine, now, beside what was recorded

# %%
import pandas as pd
import torch
from IPython.display import Markdown, display

import foredraft as fd
from foredraft import paths
from foredraft.articles.confidence_gating import experiment, signal_plots, signals, texts
from foredraft.articles.confidence_gating import plots as draw
from foredraft.articles.confidence_gating.calibration import firsts
from foredraft.articles.confidence_gating.policies import article
from foredraft.articles.confidence_gating.recording import gating_benchmark, known_costs
from foredraft.articles.outputs import Outputs
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.live import steps
from foredraft.repro.params import load as load_params
from foredraft.viz.panel import Panel, Slider

overrides = {
    "profile": profile,
    "model": model,
    "draft_model": draft_model,
    "plan": plan,
    "device": device,
    "drafter": drafter,
    "drafters": drafters,
    "temperature": temperature,
    "temperatures": temperatures,
    "signal": signal,
    "threshold": threshold,
    "longest": longest,
    "n_prompts": n_prompts,
    "max_new_tokens": max_new_tokens,
    "seed": seed,
}
params = load_params("confidence_gating", overrides)
recordings = recording.recordings("confidence_gating")
recorded = recordings.get(params.device, recordings["cpu"])
outputs = Outputs(
    "confidence_gating",
    params.model_dump(mode="json"),
    [
        *(paths.prompts(kind) for kind in ("pocket", "chat")),
        paths.plan(params.plan),
        *(file for name in (params.model, params.draft_model) for file in paths.weights(name)),
        *paths.recordings("confidence_gating"),
    ],
    device=params.device,
)

# %% [markdown]
# ## 1 · The rule
#
# A gate is asked once a round, row by row: draft, or let the target decode one token? It sees the target's confidence
# in the token that stands last. That token is verified text, so whatever the gate decides, the law of the output is the
# target's: this is enumerated on tiny models, for every gate there is, and a gate that looks at a token which is *not* verified yet is caught by the same test.

# %%
found = experiment.subject(params.drafter, params)
prompt = found.held_out[0].ids
made = fd.generate(
    found.target,
    [prompt],
    sampler=fd.Sampler(temperature=params.temperature),
    max_new_tokens=params.max_new_tokens,
    drafter=found.drafter,
    gate=fd.ConfidenceGate(params.threshold),
    generator=torch.Generator(found.target.device).manual_seed(params.seed),
)
made.trace.table().head(8).round(3)

# %% [markdown]
# A line a round: `gate_open` says what was decided by the `confidence` of the line *before*.
#
# ## 2 · Record once, replay every policy
#
# Policies differ by a few per cent, texts by far more. So all of them are judged on the *same* texts and the same drafts. The target writes
# the texts alone. Then, behind every token of every text, the drafter makes one draft, coupled to what the text goes on with: a drafted
# token is the text's with chance min(1, q/p), else it is drawn from what is left of q, and from there on the draft goes its own way. That is exactly the law of drafts
# given the text, so a policy that is led along the text meets the rounds that it would have met in decoding (`decoding/replay.py`). No model is asked again.

# %%
names = list(dict.fromkeys([params.drafter, *params.drafters]))
main = (params.drafter, params.temperature)
pairs = [(name, heat) for name in names for heat in sorted({*params.temperatures, main[1]})]
subjects = {name: experiment.subject(name, params) for name in names}
tuning, held_out, costs = {}, {}, {}
for name, heat in steps(pairs, "texts and drafts"):
    of = subjects[name]
    tuning[name, heat] = experiment.script(of, params, temperature=heat)
    held_out[name, heat] = experiment.script(of, params, temperature=heat, held_out=True)
    costs[name, heat] = known_costs(recorded.table, of, heat, params.longest)

# %% [markdown]
# What the rounds cost comes from a recording on the machine named in section 9, in units of a plain round. Policies with a number to choose are tuned on
# one half of the prompts; all that is said below is of the other half.

# %%
parts = []
policies = {}
for name, heat in steps(pairs, "policies tuned"):
    rows, policies[name, heat] = experiment.judged(
        tuning[name, heat], held_out[name, heat], costs[name, heat], params
    )
    parts.append(rows.assign(drafter=name, temperature=heat))
judged = pd.concat(parts, ignore_index=True)

# %% [markdown]
# First, does the replay tell the truth? The same policies, decoded in earnest with other coins, beside their replay.

# %%
confirmation = pd.concat(
    [
        experiment.confirmed(
            subjects[pair[0]],
            held_out[pair],
            policies[pair],
            params.model_copy(update={"temperature": pair[1]}),
        ).assign(drafter=pair[0], temperature=pair[1])
        for pair in steps([pair for pair in pairs if pair[1] > 0] or pairs, "decoded in earnest")
    ],
    ignore_index=True,
)
outputs.save(draw.confirmed(confirmation), "confirmed", recorded=recorded.file)

# %%
largest = float(confirmation["z"].abs().max())
assert largest < 5
display(
    Markdown(
        f"{len(confirmation)} policies: the largest difference is **{largest:.1f}** standard errors. (They are not independent, being judged on the same texts. On tiny models the joint law of texts and rounds is enumerated to 1e-12, outcomes of sampled drafts pass χ² tests at 0.1 %, and greedy rounds agree one by one.)"
    )
)

# %% [markdown]
# ## 3 · What the target's confidence tells
#
# Of all places where a draft could start: the share of first tokens that are accepted, by the target's confidence in the token before.

# %%
kinds = [prompt.kind for prompt in found.held_out]
first_tokens = {pair: firsts(held_out[pair], kinds) for pair in pairs}
curves = pd.concat(
    [
        signals.reliability(table, params.signal).assign(drafter=name, temperature=heat)
        for (name, heat), table in first_tokens.items()
    ],
    ignore_index=True,
)
outputs.save(signal_plots.reliability(curves), "reliability")

# %% [markdown]
# And by the kind of prompt, for the drafter and the temperature of the parameters:

# %%
by_kind = pd.concat(
    [
        signals.reliability(part, params.signal, bins=5).assign(kind=kind)
        for kind, part in first_tokens[main].groupby("kind", sort=False)
    ],
    ignore_index=True,
).assign(drafter=main[0], temperature=main[1])
outputs.save(signal_plots.reliability_by_kind(by_kind), "by_kind")

# %%
order = sorted(pairs, key=lambda pair: pair != main)
auc = pd.concat(
    [
        signals.discrimination(first_tokens[pair]).assign(drafter=pair[0], temperature=pair[1])
        for pair in steps(order, "bootstraps")
    ],
    ignore_index=True,
)
outputs.save(signal_plots.discrimination(auc), "discrimination")

# %%
overall = auc[auc.kind == "all"].pivot_table(
    index=["drafter", "temperature"], columns="signal", values="auc"
)
of_main = overall.loc[main]
display(
    Markdown(
        f"With a {main[0]} at temperature {main[1]:g} the target's confidence sorts accepted from rejected with an AUC of **{of_main['confidence']:.2f}**, its entropy {of_main['entropy']:.2f}; "
        f"0.5 is a coin. "
        + (
            f"The draft's own confidence in the token, known only after it is drafted, has {of_main['draft_confidence']:.2f}."
            if "draft_confidence" in of_main
            and of_main["draft_confidence"] == of_main["draft_confidence"]
            else ""
        )
    )
)
overall.round(3)

# %% [markdown]
# ## 4 · How much there is to win
#
# Before any rule is polished: the best fixed length, the best that a rule makes of *everything* known when it decides (boosted trees over all signals of target and draft, “all signals”), and a
# clairvoyant who knows beforehand what will be accepted. Gains are over the best fixed length, with 95 % intervals over texts. Where trees, rated on texts that they were not fitted to, lose to a simpler policy, “all signals” is that one: an estimate from below, not a bound.

# %%
outputs.save(draw.policies(judged), "policies", recorded=recorded.file)

# %%
gain = judged.set_index(["drafter", "temperature", "policy"])
known = [gain.loc[(*pair, "all signals"), "gain"] for pair in pairs]
ours = [gain.loc[(*pair, "expected gain"), "gain"] for pair in pairs]
told = [gain.loc[(*pair, "the article's gate"), "gain"] for pair in pairs]
bound = [gain.loc[(*pair, "clairvoyant"), "gain"] for pair in pairs]
by_target, by_draft = (
    judged[judged.policy == name].gain for name in ("confidence gate", "draft's confidence")
)
best_known = judged[judged.policy.isin(["all signals", "expected gain"])]
most_known = best_known.groupby("temperature").gain.max()
small = [f"{heat:g}" for heat in most_known.index[most_known < 1.05]]
top_gate = judged.loc[by_target.idxmax()]
idle = gain.loc[(top_gate.drafter, top_gate.temperature, "never"), "gain"]
display(
    Markdown(
        f"All signals together bring {min(known) - 1:+.1%} to **{max(known) - 1:+.1%}** over the best fixed length, the rule of section 6 {min(ours) - 1:+.1%} to {max(ours) - 1:+.1%}, "
        f"the article's gate {min(told) - 1:+.1%} to {max(told) - 1:+.1%}; the clairvoyant has {min(bound) - 1:+.0%} to {max(bound) - 1:+.0%}. "
        + (
            f"**At temperature {' and '.join(small)} what can be known beforehand is worth less than 5 %**, with every drafter. "
            if small
            else "So what is known beforehand is worth something at every temperature. "
        )
        + "Most of what a clairvoyant gains is in what nobody knows yet. "
        + f"A gate on the *target's* confidence, its threshold tuned, gains {by_target.min() - 1:+.1%} to **{by_target.max() - 1:+.1%}**, the most with {top_gate.drafter} at temperature {top_gate.temperature:g}, where never to draft has {idle - 1:+.1%}; "
        f"a stop by the *draft's* confidence, where it has one, {by_draft.min() - 1:+.1%} to **{by_draft.max() - 1:+.1%}**."
    )
)
judged.assign(
    gain=[f"{row.gain:.3f} ± {1.96 * row.gain_sem:.3f}" for row in judged.itertuples()]
).pivot(index="policy", columns=["drafter", "temperature"], values="gain").reindex(
    judged.policy.unique()
)

# %% [markdown]
# ## 5 · The article's rule, at every threshold
#
# Each threshold with the draft length that suits it best, chosen on these very texts: kinder to the gate than is fair.

# %%
swept = pd.concat(
    [
        experiment.by_threshold(held_out[main], costs[main], params, signal=each)
        for each in steps(("confidence", "entropy", "margin"), "signals")
    ],
    ignore_index=True,
)
fixed = float(gain.loc[(*main, "fixed length"), "speedup"])
outputs.save(draw.thresholds(swept, fixed), "thresholds", recorded=recorded.file)

# %%
by_confidence = swept[swept.signal == "confidence"]
top = by_confidence.loc[by_confidence.speedup.idxmax()]
display(
    Markdown(
        f"{main[0].capitalize()}, temperature {main[1]:g}: the best threshold is **{top.threshold:g}**, which keeps {top.closed:.0%} of the rounds from drafting "
        f"({top.speedup:.3f}×; a fixed length tuned elsewhere has {fixed:.3f}×)."
    )
)

# %% [markdown]
# ## 6 · Thresholds as outcomes
#
# Decoding is paid in tokens and charged in time. At the best attainable rate λ\* a further drafted token is worth its time if
#
# $$A_k\,\hat\alpha_{k+1} > \lambda^*\,(t_\text{draft} + t_\text{verify}(k+1) - t_\text{verify}(k)),$$
#
# and a draft at all by the same comparison at its best length. The chances are calibrated, isotonic in what is known at the time: before the
# draft the target's confidence, within it the draft's confidence or entropy. λ\* follows from the rule itself, told its own rate until it stays. Nobody chooses a threshold.
# To look at each drafted token takes time too (timed: section 9), so either decision may be left out: drafts of one length, or no gate. What is best on the tuning texts is taken.
# One step ahead is all that the stop looks, and the gate takes drafts for ones of fixed length: a rule that plans further could do better.

# %%
best_rule = policies[main]["expected gain"]
rule = best_rule.rule
looks = best_rule.stop is not None and best_rule.stop.begin(1).watches is not None
outputs.save(
    draw.curves(experiment.curves_of(rule), rule.least_opening), "curves", recorded=recorded.file
)

# %%
display(
    Markdown(
        f"λ* = {rule.rate:.2f} tokens in the time of a plain step. A draft pays from a first token's chance of **{rule.least_opening:.2f}** on. "
        f"What is best on the tuning texts {'looks at each drafted token' if looks else f'drafts {best_rule.length} tokens without a look'}, {'without a gate' if best_rule.gate is None else 'behind a gate'}: {gain.loc[(*main, 'expected gain'), 'closed']:.0%} of the rounds do not draft, and drafts are {gain.loc[(*main, 'expected gain'), 'drafted']:.1f} tokens a round on average."
    )
)

# %% [markdown]
# ## 7 · On which machine could a gate matter?
#
# The same recorded drafts, on machines where a draft step costs another share c of a plain step (verification costs one plain step, and a look nothing). Everything is tuned anew for each c.
# The baseline is the best fixed length, or never to draft where that is better.

# %%
machines = pd.concat(
    [
        experiment.by_cost(tuning[name, heat], held_out[name, heat], params, params.costs).assign(
            drafter=name, temperature=heat
        )
        for name, heat in steps(pairs, "machines")
    ],
    ignore_index=True,
)
for heat, part in machines.groupby("temperature"):
    display(outputs.save(draw.by_cost(part), f"by_cost_{heat:g}", recorded=recorded.file))

# %%
of_rule = (machines.drafter == main[0]) & (machines.temperature == main[1])
gate_gain = machines[(machines.policy == "confidence gate") & of_rule]
rule_gain = machines[(machines.policy == "expected gain") & of_rule]
most = rule_gain.loc[rule_gain.gain.idxmax()]
display(
    Markdown(
        f"{main[0].capitalize()}, temperature {main[1]:g}: a confidence gate brings at most {gate_gain.gain.max() - 1:+.1%} (at c = {gate_gain.loc[gate_gain.gain.idxmax(), 'cost']:g}), the rule of section 6 "
        f"**{most.gain - 1:+.1%}** (at c = {most.cost:g}). Where drafts are nearly free a gate has nothing to save; where they cost as much as they bring, not drafting is as good."
    )
)

# %% [markdown]
# ## 8 · Hits and misses
#
# Texts are recorded to their budget, past an end of text if one is drawn; this one has none. One text (the one whose gate is shut most nearly half the time) as the article's gate decodes it: each token on the ground of the target's confidence in it, which is what the gate sees before the next.
#
# In JupyterLab move the threshold and see, on the recorded trace, which drafts go and which stay; elsewhere the figure stands still at the article's. Watch the grey bars as it rises: do they come where drafts had failed (orange), or where they had stood (green)?
# And is there any threshold at which the second line of the title says more for the gate than for drafting always?


# %%
def threshold_fates(threshold, length, text):
    policy = article(length, params.model_copy(update={"threshold": threshold}))
    table = texts.threshold_fates(found, held_out[main], policy, costs[main], text)
    return draw.threshold_fates(table)


length = policies[main]["fixed length"].length
shown = texts.mixed_text(found, held_out[main], article(length, params))
fate = texts.fates(found, held_out[main], article(length, params), shown)
threshold_panel = Panel(
    threshold_fates,
    threshold=Slider.near([n / 20 for n in range(21)], params.threshold),
    length=Slider(range(1, params.longest + 1), at=length, name="draft length"),
    text=Slider(range(params.n_prompts), at=shown),
)
outputs.save(threshold_panel, "fates", recorded=recorded.file)

# %%
at_threshold = first_tokens[main].assign(
    gate=lambda table: (table.confidence >= params.threshold).map(
        {True: "drafts", False: "does not draft"}
    )
)
share = pd.crosstab(
    at_threshold.gate,
    at_threshold.accepted.map({True: "first token would stand", False: "it would not"}),
    normalize="all",
)
missed = (
    share.loc["does not draft", "first token would stand"]
    if "does not draft" in share.index
    else 0.0
)
display(
    Markdown(
        f"Of all places of all held-out texts: at **{missed:.0%}** of them the article's gate does not draft though the first token would have stood."
    )
)
share.round(3)

# %% [markdown]
# ## 9 · The clock
#
# Rounds timed, policies tuned by those times, then all held-out prompts decoded under each in alternation, twice. The best fixed length runs a second time under another name: what that row gains is what timing makes of nothing.

# %%
timed = experiment.timed(recorded.table)
gates = recorded.table[recorded.table.strategy == "gate"]
where = f"{recorded.machine.name}, {recorded.date}"
display(Markdown(f"*Recorded on* {where}."))
outputs.save(draw.timed(timed), "timed", recorded=recorded.file)

# %%
clock_rule, clock_article, again = (
    timed[timed.policy == name]
    for name in ("expected gain", "the article's gate", "fixed length, again")
)
slower = clock_rule[clock_rule.gain + 1.96 * clock_rule.gain_sem < 1]
display(
    Markdown(
        f"By the clock, rounds alone: the rule of section 6 is {clock_rule.gain.min():.2f} to {clock_rule.gain.max():.2f} times as fast as the best fixed length (median {clock_rule.gain.median():.2f}), in {len(slower)} of {len(clock_rule)} settings slower beyond its 95 % interval; the article's gate "
        f"{clock_article.gain.min():.2f} to {clock_article.gain.max():.2f} times (median {clock_article.gain.median():.2f}). The fixed length against itself has {again.gain.min():.3f} to {again.gain.max():.3f}, more than its intervals allow: so much drifts between two runs of one thing. To look and to decide takes {gates.share_median.max():.2%} of a plain step in the median for the dearest signal."
    )
)
timed[
    [
        "drafter",
        "sampler",
        "policy",
        "speedup_median",
        "rounds_speedup",
        "gain",
        "gain_sem",
        "foretold_gain",
        "drafted",
        "n",
    ]
].round(3)

# %% [markdown]
# With `measure = True` all of it is timed here and now (a quarter of an hour), shown, and kept nowhere.

# %%
if measure:
    now = experiment.timed(gating_benchmark(params, report=print))
    display(draw.timed(now))

# %% [markdown]
# ## 10 · The results

# %%
values, claims = experiment.findings(judged, auc, confirmation, timed, gates)
everything = pd.concat(
    [
        judged.assign(part="policies"),
        curves.assign(part="reliability"),
        by_kind.assign(part="by_kind"),
        auc.assign(part="discrimination"),
        confirmation.assign(part="confirmed"),
        swept.assign(part="thresholds"),
        experiment.curves_of(rule).assign(part="curves"),
        machines.assign(part="by_cost"),
        fate.drop(columns="text").assign(part="fates"),
    ],
    ignore_index=True,
)
outputs.finish(
    everything,
    values,
    claims,
    recorded=dict.fromkeys(("policies", "clock", "replay", "bookkeeping"), recorded.file),
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
# * **Confidence in the last token says little about the next.** It is a statement about the token that has been settled.
# * **A gate has to beat a short draft, not a bad one.** Where drafts fail often, the best fixed length is short already, and then there is little left to save.
# * **A fixed threshold is a loss wherever drafts are cheap.** It keeps rounds from drafting that would have paid at half the confidence.
# * **The draft knows more than the target.** Where anything helps a model's drafts, it is the draft's own confidence in what it has drafted, when greedy; a stop, not a gate. A gate on the target helps prompt lookup when sampled, whose drafts are mostly not worth asking for.
# * **Replay costs nothing.** One recording serves thousands of policies, on the same texts and drafts; by decoding, differences of a per cent would drown in the texts.
#
# Next: [06, teaching a vision-language model](../README.md#the-articles).
