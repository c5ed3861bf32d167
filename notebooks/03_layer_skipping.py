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
# # 03 · A Transformer that drafts for itself
#
# **Switch off some of a decoder's branches and what is left is a draft model that costs no memory, no
# training and no second tokenizer.** Whether it pays depends on two numbers of the plan that says which
# branches are off: how often its tokens are accepted, and what share of the bytes it still has to read.
#
# The scheme is Draft & Verify ([2309.08168](https://arxiv.org/abs/2309.08168)); leaving after the first
# layers, and training for it, is LayerSkip ([2404.16710](https://arxiv.org/abs/2404.16710)); the acceptance
# rule is that of article 02 ([2211.17192](https://arxiv.org/abs/2211.17192)).
#
# *Needs*: nothing but this repository. *Takes*: about two minutes on two cores. *The code*:
# `foredraft.models.skip` (the plan), `foredraft.decoding.self_draft` (the draft), `foredraft.training.decoder.layerskip`
# (the training); the tables below are made in `foredraft.articles.layer_skipping.experiment`.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke"; None: what params.yaml says
models = None  # trained plainly; the last is compared with the next
layer_skip_model = None  # trained by LayerSkip's recipe
control_model = None  # fewer layers of the last one's shape, trained by themselves
temperature = None
length = None  # γ, of the drafts that are verified
n_prompts = None
n_positions = None  # places in each text at which a plan is judged
max_new_tokens = None
joint_sizes = None  # branches of the random sets
joint_sets = None  # how many sets of each size
exits = None  # layers after which drafts are verified in earnest
vocabularies = None
seed = None

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import foredraft as fd
from foredraft import paths
from foredraft.analysis.published import PUBLISHED, published, shares
from foredraft.analysis.speedup_lines import level_lines, what_if
from foredraft.analysis.statistics import ratios
from foredraft.articles.layer_skipping import candidates, drafting, experiment, model_plots, timings
from foredraft.articles.layer_skipping import plots as draw
from foredraft.articles.outputs import Outputs
from foredraft.models.skip import Parts
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.live import steps
from foredraft.repro.params import load as load_params
from foredraft.viz.panel import Panel, Slider, Switches

overrides = {
    "profile": profile,
    "models": models,
    "layer_skip_model": layer_skip_model,
    "control_model": control_model,
    "temperature": temperature,
    "length": length,
    "n_prompts": n_prompts,
    "n_positions": n_positions,
    "max_new_tokens": max_new_tokens,
    "joint_sizes": joint_sizes,
    "joint_sets": joint_sets,
    "exits": exits,
    "vocabularies": vocabularies,
    "seed": seed,
}
params = load_params("layer_skipping", overrides)
names = (*params.models, params.layer_skip_model)
outputs = Outputs(
    "layer_skipping",
    params.model_dump(mode="json"),
    [
        paths.prompts("pocket"),
        *(file for name in (*names, params.control_model) for file in paths.weights(name)),
        *paths.recordings("layer_skipping"),
    ],
)

# %% [markdown]
# ## 1 · Two branches a layer
#
# A decoder is a stream to which each layer adds twice: what attention has read elsewhere, and what the MLP
# makes of it on the spot. A branch that is switched off adds nothing, and the stream flows on.
#
# ```
#                attn switch                                MLP switch
#                    │                                          │
# hidden ──┬─────────┼──────────────────────⊕──┬────────────────┼───────────────⊕── hidden
#          └─ norm ──┴─ attention ─ (norm) ─┘  └─ norm ─────────┴── MLP ─ (norm) ┘
#                        │    │
#                      reads  writes                        (norm): Gemma-2 only, and
#                     keys and values                       switched off with its branch
# ```
#
# The set of branches that are off is a `SkipPlan`: immutable, hashable, with the algebra of sets.

# %%
plan = fd.SkipPlan(attn=[3, 4], mlp=[4]) | fd.SkipPlan.layers([7])
exit_at_9 = fd.SkipPlan.early_exit(9, n_layers=12)
pd.Series({"plan": plan, "early exit": exit_at_9, "both": plan & exit_at_9, "JSON": plan.to_json()})

# %% [markdown]
# What does a plan save? A decode step for one text reads every weight once, and does little else. So the cost of a
# draft step, c, is about the share of the bytes that are still read: all branches that are on, the final norm, and
# the head, which no plan can spare. (The embedding is a look-up of one row.)


# %%
def bytes_left(plan, parts, n_layers):
    attention = (n_layers - len(plan.attn)) * parts.attention
    mlp = (n_layers - len(plan.mlp)) * parts.mlp
    everything = n_layers * (parts.attention + parts.mlp) + parts.head
    return (attention + mlp + parts.head) / everything


decoder, _ = fd.load(params.models[0])
ours = bytes_left(plan, Parts.of(decoder.config), decoder.config.n_layers)
assert abs(ours - plan.cost(decoder.config)) < 1e-12
display(Markdown(f"The plan above leaves **{ours:.1%}** of {params.models[0]}'s bytes to be read."))

# %% [markdown]
# ## 2 · The law, checked in front of you
#
# Draft and target share weights *and cache*: a draft step reads the keys and values that the whole model left of the
# verified text, writes its own behind it, and the next verification overwrites these. Nothing is prefilled twice, copied
# or restored. If any of that went wrong, the greedy text would show it: whatever the plan, it has to be the
# target's own, token by token.

# %%
subjects = {name: experiment.subject(name, params) for name in steps(names, "models")}
one = subjects[params.models[-1]]
n_layers = one.decoder.config.n_layers
everything = fd.SkipPlan.layers(range(n_layers))
extremes = [
    candidates.Candidate("any", "nothing skipped", fd.SkipPlan()),
    candidates.Candidate("any", "all attention", fd.SkipPlan(attn=everything.attn)),
    candidates.Candidate("any", "all but the head", everything),
    candidates.Candidate("any", "early exit", fd.SkipPlan.early_exit(n_layers // 2, n_layers)),
    candidates.Candidate("any", "every second layer", fd.SkipPlan.every(2, n_layers)),
]
texts = drafting.greedy_texts(one, extremes, params, n_prompts=4)
assert all(text == texts["no draft"] for text in texts.values())
display(
    Markdown(
        f"{len(extremes)} plans, one text: **{sum(map(len, texts['no draft']))} tokens** each."
    )
)

# %% [markdown]
# How good is a plan? Judge it at the *first* step of a draft: all that came before is verified, so its keys and values are
# the whole model's, and only the last token is read under the plan. There β = Σ min(p, q) is the exact chance that the
# draft stands, and no coin is tossed. The texts are the target's own, the places spread along them.
#
# Two sanity checks. The empty plan must have β = 1. And a draft that reads *all* of the text under the plan, by itself, as
# one teacher-forced pass does, must come to the same β for an early exit, whose first layers are the whole model's own, and
# may come to another for any other plan.

# %%
halves = [
    candidates.Candidate("early exit", "exit", fd.SkipPlan.early_exit(n_layers // 2, n_layers)),
    candidates.Candidate("spread out", "spread", fd.SkipPlan.spread(n_layers // 2, n_layers)),
]
with_cache = experiment.judged(experiment.first_steps(one, halves, params)).set_index("name")
alone = {half.name: experiment.read_alone(one, half.plan, params) for half in halves}
assert with_cache.loc["whole model", "overlap"] > 1 - 1e-4
assert abs(with_cache.loc["exit", "overlap"] - alone["exit"]) < 1e-4
display(
    Markdown(
        f"Half the layers spread out: β = **{with_cache.loc['spread', 'overlap']:.3f}** behind the target's "
        f"keys and values, **{alone['spread']:.3f}** behind the draft's own; early exit: "
        f"**{with_cache.loc['exit', 'overlap']:.3f}** either way."
    )
)

# %% [markdown]
# ## 3 · What each branch is worth
#
# Now one branch at a time, in each of the models. Beside β stand two older measures: whether draft and target have
# the same favourite, and the divergence KL(p‖q), which is by how much the loss on the target's own text rises (its
# exponential is the factor on the perplexity). And what the branch takes of a step's time, as recorded: what skipping it spares.

# %%
branch_steps = pd.concat(
    [
        experiment.first_steps(each, candidates.single_branches(n_layers), params)
        for each in subjects.values()
    ]
)
singles = experiment.judged(branch_steps[branch_steps.family == "one branch"])
recorded = recording.recordings("layer_skipping")["cpu"]
arms = recorded.table
plain_singles = timings.with_times(singles[singles.model.isin(params.models)], arms)
outputs.save(draw.branches(plain_singles), "branches", recorded=recorded.file)

# %%
ends = plain_singles.sort_values("overlap").groupby("model", sort=False)
extreme_branches = pd.concat([ends.head(2), ends.tail(2)]).sort_values(["model", "overlap"])
rank = plain_singles[["overlap", "agreement", "divergence"]].corr("spearman")
display(
    Markdown(
        f"How alike the three measures order the branches: rank correlation with β "
        f"**{rank.loc['overlap', 'agreement']:.2f}** for the agreement and "
        f"**{rank.loc['overlap', 'divergence']:.2f}** for the divergence. β is the one that the theory asks "
        f"for."
    )
)
extreme_branches[["model", "name", "overlap", "agreement", "divergence", "cost"]].round(3)

# %% [markdown]
# ## 4 · Pairs are no products
#
# A search over 2²⁴ plans would be easy if harms multiplied: if each branch kept its β whatever else is off.
# Sets of branches drawn at random, measured jointly, against the product of their members:

# %%
plain = [subjects[name] for name in params.models]
random_sets = candidates.joint_branches(n_layers, params)
joint_steps = pd.concat([experiment.first_steps(each, random_sets, params) for each in plain])
joint = experiment.judged(joint_steps[joint_steps.family == "random"])
compared = experiment.products(pd.concat([singles, joint]), ["random"], "one branch")
outputs.save(draw.pairs(compared), "pairs")

# %% [markdown]
# The gap is log(joint ÷ product): zero where harms multiply, above zero where they overlap, below where
# one branch had covered for another.

# %%
largest = compared[compared.branches == max(params.joint_sizes)]["gap"]
display(
    Markdown(
        f"Of the sets of {max(params.joint_sizes)} branches **{(largest > 0).mean():.0%}** do better than the "
        f"product of their members, and they spread from {largest.min():+.2f} to {largest.max():+.2f}. "
        f"Singles say where to look; a plan of many branches has to be measured as a whole. "
        f"Article 04 searches that way."
    )
)
compared.groupby(["model", "branches"])["gap"].agg(["mean", "min", "max"]).round(3)

# %% [markdown]
# ## 5 · The plane that decides
#
# A plan is a point: what a draft step costs, and how often it stands. Below the diagonal no draft length gains
# anything (article 02). To the random sets come three families: early exits, layers spread out evenly, and the branches
# that cost least acceptance for their bytes, one after the other.

# %%
family_steps = []
for each in subjects.values():
    own = singles[singles.model == each.name]
    cheapest = candidates.cheapest_first(own, each.decoder.config, params.n_cheapest)
    family_steps.append(
        experiment.first_steps(each, cheapest + candidates.equal_costs(n_layers), params)
    )
families = pd.concat(family_steps)
families = experiment.judged(families[families.family != "whole"])
plans = pd.concat([singles, joint, families], ignore_index=True)
best = plans.loc[plans.groupby("model", sort=False)["gain"].idxmax()]
best[["model", "family", "name", "branches", "cost", "overlap", "gain"]].round(3)

# %%
timed = timings.measured_costs(arms)
figure = draw.plane(plans, level_lines(draw.GAINS), timed)
outputs.save(figure, "plane", recorded=recorded.file)

# %% [markdown]
# Black strokes lead from c by bytes to c on the clock for the plans that were timed (section 9). Bytes leave
# out what does not shrink in proportion to them: the sampler, the start of each operation, the keys and values. They
# also take all parts to be read at one speed.

# %%
off_clock = timed["cost_measured"] - timed["cost_bytes"]
is_exit = timed["name"].str.startswith("exit")
display(
    Markdown(
        f"Early exits cost **{off_clock[is_exit].mean():+.2f}** of a target step beside what their bytes say "
        f"({is_exit.sum()} plans), plans of single branches **{off_clock[~is_exit].mean():+.2f}** "
        f"({(~is_exit).sum()}): these save much of an MLP's bytes, but an attention, which they mostly keep, has "
        f"more operations for its bytes."
    )
)
timed.drop(columns="plan").round(3)

# %% [markdown]
# ## 6 · Leave early, or skip here and there?
#
# At equal cost: the last layers off, or as many spread evenly. Then the same for a model that went on training by
# LayerSkip's recipe: layers dropped at random, later ones more often, and a loss at early exits, all of
# which share one head. The star is a control: a model of as few layers that was trained by itself (section 8).

# %%
base, trained = params.models[-1], params.layer_skip_model
shallow, _ = fd.load(params.control_model, dtype=subjects[base].decoder.dtype)
alone_steps = [
    experiment.trained_alone(subjects[name], shallow, params) for name in (base, trained)
]
control = experiment.judged(pd.concat(alone_steps))
halfway = families[families.family.isin(["early exit", "spread out"])]
figure = draw.exits(pd.concat([halfway, control]), params.models, params.layer_skip_model)
outputs.save(figure, "exits")

# %%
loss = pd.concat([experiment.losses(each) for each in subjects.values()])
loss_table = ratios(loss, ["model"], "loss", "tokens").set_index("model")
middle = halfway[halfway.name == f"exit {n_layers // 2}"].set_index("model")
paid = loss_table.loc[trained, "mean"] - loss_table.loc[base, "mean"]
won = middle.loc[trained, "overlap"] - middle.loc[base, "overlap"]
display(
    Markdown(
        f"The recipe changes the loss on held-out code by **{paid:+.3f} nats a token** and β of an exit after "
        f"half the layers by **{won:+.3f}**. It also trained for longer, so that not all of the "
        f"difference in loss is the recipe's."
    )
)
loss_table.round(3)

# %% [markdown]
# ## 7 · Drafts of more than one token
#
# From the second token on a draft reads its own keys and values, and follows its own earlier tokens. β does not
# know about either. So draft, verify and count, in float32 with a fixed generator:

# %%
in_earnest = [
    candidates.Candidate("early exit", f"exit {n}", fd.SkipPlan.early_exit(n, n_layers))
    for n in params.exits
]
in_earnest += [
    candidates.Candidate(
        "spread out", f"spread {n_layers - n}", fd.SkipPlan.spread(n_layers - n, n_layers)
    )
    for n in params.exits
]
rounds = pd.concat(
    [drafting.drafting(subjects[name], in_earnest, params) for name in (base, trained)]
)
verified = drafting.in_earnest(rounds)
by_place = verified[verified.measure == "acceptance_by_position"]
outputs.save(draw.positions(by_place, families), "positions")

# %%
overall = verified[verified.measure == "acceptance"]
overall.pivot_table(index="name", columns="model", values="mean").round(3)

# %% [markdown]
# Now switch branches off and on yourself (in JupyterLab the model drafts anew at each click; elsewhere the figure stands still). A pressed button is a
# branch that is off, to begin with those of the best plan of section 5. Which single click ruins the draft, which one does nothing? How many branches can go before
# no drafted token stands any more? And what does the text itself do meanwhile, greedy (temperature 0) and sampled?


# %%
def drafted_text(temperature, length, prompt, attn, mlp):
    asked = params.model_copy(update={"temperature": temperature, "length": length})
    plan = fd.SkipPlan(attn=attn, mlp=mlp)
    return draw.drafted_text(drafting.drafted_text(one, tokenizer, plan, asked, prompt=prompt))


_, tokenizer = fd.load(one.name)
start = fd.SkipPlan.from_json(best.set_index("model").loc[one.name, "plan"])
switch_panel = Panel(
    drafted_text,
    attn=Switches(n_layers, at=tuple(sorted(start.attn)), name="attention off"),
    mlp=Switches(n_layers, at=tuple(sorted(start.mlp)), name="MLP off"),
    temperature=Slider((0.0, 0.5, 1.0, 1.5), at=0.0),
    length=Slider(range(1, 9), at=params.length, name="draft length γ"),
    prompt=Slider(range(len(one.prompts)), at=0),
)
outputs.save(switch_panel, "switches")

# %%
greedy = params.model_copy(update={"temperature": 0.0})
own = singles[singles.model == one.name]
still_on = [len(start & fd.SkipPlan.from_json(each)) == 0 for each in own.plan]
own = own[still_on].sort_values("overlap")
tried = {"the best plan": start}
tried |= {
    f"and {name} off as well": start | fd.SkipPlan.from_json(plan)
    for name, plan in own.iloc[[0, -1]][["name", "plan"]].to_numpy()
}
pd.DataFrame(
    [
        {"plan": name}
        | drafting.drafted_text(one, tokenizer, plan, greedy, prompt=0)
        .iloc[0][["drafted", "accepted", "tokens", "cost", "speedup"]]
        .to_dict()
        for name, plan in tried.items()
    ]
).round(2)

# %% [markdown]
# ## 8 · A control: how much of this is the stack?
#
# Our pocket models grew by stacking: three layers were trained first, then repeated to six, then to twelve. Layers a
# multiple of three apart began as copies. A short training may have left them alike, and then skipping one loses little for a
# reason that a published model does not share. So: how alike are the weights, and does it matter *which* three layers go?
# A run of three leaves the others in the order of the shallow model; three copies of one layer do not.

# %%
cosines = pd.concat(
    [
        experiment.by_distance(experiment.likeness(each.decoder)).assign(model=each.name)
        for each in plain
    ]
)
three_sets = candidates.threes(n_layers)
three_steps = pd.concat([experiment.first_steps(each, three_sets, params) for each in plain])
threes = experiment.judged(three_steps[three_steps.family != "whole"])
kinds = [kind for kind in threes.family.unique() if kind != "one layer"]
by_kind = experiment.products(threes, kinds, "one layer")
outputs.save(model_plots.stack(cosines, by_kind), "stack")

# %% [markdown]
# The right panel compares each set with the product of its own layers' β, so that a set is not blamed for
# containing layer 0. What is left between the kinds is owed to their places in the stack. The exits bear the mark, too: after
# three and six layers the stream stands where a whole model once ended.

# %%
early = halfway[(halfway.family == "early exit") & halfway.model.isin(params.models)]
early = early.assign(layers=early.name.str.split().str[1].astype(int))
early.pivot_table(index="model", columns="layers", values="overlap").round(2)

# %%
mean_gap = by_kind.groupby("kind")["gap"].mean()
apart = cosines.assign(copies=cosines.distance % candidates.PERIOD == 0)
alike = apart.groupby("copies")["cosine"].mean()
display(
    Markdown(
        f"Layers that began as copies still have a cosine of **{alike[True]:.2f}**, others {alike[False]:.2f}. A "
        f"run of three keeps **{np.exp(mean_gap['a run'] - mean_gap['one origin']):.2f} times** as much of its "
        f"product as three copies of one layer do. So a good part of what our targets forgive is their making, "
        f"and their acceptances are no forecast for a published model."
    )
)
by_kind.groupby(["model", "kind"])[["joint", "gap"]].mean().round(3)

# %% [markdown]
# How much, then? Train the layers that a plan keeps *alone*: a model of three layers, of the target's shape, on as many
# tokens. It shares no weights with the target, only the text that both have learnt. What it and the target agree on
# takes no twelve layers either. Against it the best that skipping can do for as few bytes:

# %%
alone = control.set_index("model")
budget = alone.loc[base, "cost"] + 1e-9
kept = plans[(plans.model == base) & (plans.cost <= budget)]
rows = {
    "trained alone": alone.loc[[base]],
    "early exit": early[(early.model == base) & (early.layers == shallow.config.n_layers)],
    "best plan for as few bytes": kept.nlargest(1, "overlap"),
    "early exit, trained for": halfway[
        (halfway.model == trained) & (halfway.name == f"exit {shallow.config.n_layers}")
    ],
}
better = (plans[plans.model == base].overlap > alone.loc[base, "overlap"]).mean()
few_layers = pd.concat(
    {name: row[["overlap", "gain"]].iloc[0] for name, row in rows.items()}, axis=1
).T
display(
    Markdown(
        f"Trained alone, {shallow.config.n_layers} layers have β = "
        f"**{few_layers.loc['trained alone', 'overlap']:.2f}** with a target of {n_layers}; the best plan that keeps "
        f"as little has **{few_layers.loc['best plan for as few bytes', 'overlap']:.2f}**, and as early an exit of the "
        f"target that was trained for it **{few_layers.loc['early exit, trained for', 'overlap']:.2f}**. So much "
        f"agreement takes no shared weights, only the same text: of {base}'s {(plans.model == base).sum()} plans "
        f"**{better:.0%}** have more, and all of these read more bytes. What drafting for oneself saves is a "
        f"second model's memory and training, not time."
    )
)
few_layers.round(3)

# %% [markdown]
# ## 9 · Bytes of published models, and the clock
#
# The same sum for models that do not fit here needs their dimensions only. The head is what no plan can skip: it is the
# least c there is.

# %%
configs = {name: published(name) for name in PUBLISHED}
configs[base] = one.decoder.config
share = shares(configs)
share.pivot_table(index="model", columns="part", values="share").round(3)

# %%
article_plan = experiment.ARTICLE_PLAN
predicted = article_plan.cost(configs["gemma-2-9b"])
measured = experiment.TARGET_RATE / experiment.DRAFT_RATE
got = experiment.SELF_RATE / experiment.TARGET_RATE
article = what_if((experiment.ARTICLE_ACCEPTANCE, 0.8, 0.9), predicted, longest=8)
outputs.save(model_plots.bytes_read(share, article, got), "bytes")

# %%
display(
    Markdown(
        f"The article's plan skips {len(article_plan.attn)} attentions and {len(article_plan.mlp)} MLPs of 42 layers. "
        f"By bytes c = **{predicted:.3f}**; by its clock {experiment.TARGET_RATE} ÷ {experiment.DRAFT_RATE} = "
        f"**{measured:.3f}**. With an acceptance of {experiment.ARTICLE_ACCEPTANCE} it lies below the line, where no "
        f"draft length helps: it got {got:.2f}×."
    )
)

# %% [markdown]
# The floor can be lowered: a draft need not know all tokens. If its law is held to the tokenizer's first N, the
# head reads N rows, and the output law stays the target's, since q may have any support. Here for an exit after half the layers.

# %%
half = fd.SkipPlan.early_exit(n_layers // 2, n_layers)
small = pd.concat([experiment.trimmed(subjects[name], half, params) for name in (base, trained)])
outputs.save(draw.vocabulary(small), "vocabulary")

# %% [markdown]
# What about the layers that an early exit has already run when verification begins? It need not run them again, and
# `SelfDrafter` does not. Count the bytes, though, with s for the share of these layers and h for the head's, c = s + h: γ draft
# steps, one more pass through the first layers for the last drafted token, and a verification without them come to
# γ(s + h) + s + (1 − s) = γc + 1, as if nothing were reused. Reuse spares arithmetic, not bytes. It helps where a pass
# over several positions costs more than one over a single position, on a processor for instance.
#
# And the clock. Times are recorded, never taken here: `foredraft record layer_skipping` runs every way in
# turn on each prompt, and pairs it with *our own* autoregressive decoding. Beside it stands `transformers` with
# `assistant_early_exit=` on the same weights.

# %%
where = f"{recorded.machine.name}, threads: {arms['threads'].iloc[0]}, {recorded.date}"
display(Markdown(f"*Recorded on* {where}."))
fastest = timings.on_the_clock(arms)
outputs.save(draw.clock(fastest, where), "clock", recorded=recorded.file)

# %%
columns = ["model", "library", "name", "reuse", "length", "speedup_median", "acceptance"]
fastest.sort_values("speedup_median", ascending=False)[columns].head(8).round(3)

# %%
reused = timings.gain_by_reuse(arms)
display(
    Markdown(
        f"To reuse an exit's layers multiplies the tokens a second by **{reused.median():.2f}** in the median of "
        f"{len(reused)} settings ({reused.min():.2f} to {reused.max():.2f})."
    )
)

# %% [markdown]
# ## 10 · The results

# %%
plain_best = best[best.model == base]
tables = {
    "best": plain_best.assign(mean=plain_best["overlap"]),
    "early_exit": middle.loc[[base]].assign(mean=middle["overlap"]),
    "early_exit_trained": middle.loc[[trained]].assign(mean=middle["overlap"]),
    "loss": loss_table.loc[[base]],
    "loss_trained": loss_table.loc[[trained]],
}
values, claims = experiment.findings(tables, arms, trained)
table = pd.concat(
    [
        plans.assign(part="plans"),
        threes.assign(part="threes"),
        compared.assign(part="products"),
        by_kind.assign(part="threes_products"),
        verified.assign(part="verified"),
        cosines.assign(part="likeness"),
        share.rename(columns={"part": "weights"}).assign(part="bytes"),
        small.assign(part="vocabulary"),
        loss_table.reset_index().assign(part="loss"),
    ],
    ignore_index=True,
)
outputs.finish(
    table, values, claims, recorded=dict.fromkeys(("speedup", "speedup_trained"), recorded.file)
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
# * **By bytes, skipping attention spares little.** It is the smaller part of a layer everywhere in section 9; MLPs are
#   what there is to save, and the head is what there is not. By the clock of a processor that runs small models it is the
#   other way round (section 3, last row): a step there is operations more than bytes, and attention has more of them.
# * **Single harms do not multiply.** What a branch is worth depends on which others are there; the heat map of
#   section 3 is a beginning, no ranking of plans.
# * **Teacher forcing measures another draft.** A plan that is no early exit has another β behind its own keys and values than
#   behind the target's, and it is the latter that drafting for oneself has (section 2).
# * **An early exit's reused layers save no bytes.** The sum of section 9 comes out even.
# * **Stacked layers stay copies.** Nobody asked training to keep them alike; a short one did not tell them apart.
# * **The article's loss was on the cards.** Two numbers that it prints itself, c and α, put it under the line.
#
# Next: [04, self-speculation](../README.md#the-articles), where the plan is searched for.
