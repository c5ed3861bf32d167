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
# # 02 · Speculative decoding
#
# **A small model guesses a few tokens ahead, the large one judges them all in a single pass, and the
# text that comes out follows the large model's law exactly.** How fast that makes it is another matter:
# it depends on how often the guesses stand, and on what guessing and judging cost.
#
# The method is Leviathan, Kalman and Matias ([2211.17192](https://arxiv.org/abs/2211.17192)) and, at the
# same time, Chen et al. ([2302.01318](https://arxiv.org/abs/2302.01318)); block verification is Sun et
# al. ([2403.10444](https://arxiv.org/abs/2403.10444)).
#
# *Needs*: nothing but this repository. *Takes*: about two minutes on two cores. *The code*:
# `foredraft.decoding` (`draft`, `verify`, `loop`, `theory`); the tables below are made in
# `foredraft.articles.speculative_decoding`. With `profile="smollm2"` the same cells run the article's own pair of models, where
# their weights can be had.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke", "smollm2"; None: what params.yaml says
model = None  # the target
draft_model = None  # whatever shares its tokenizer
temperature = None
top_p = None
length = None  # γ, the tokens of a draft
lengths = None  # those compared in sections 5 to 7
temperatures = None
verification = None  # "token" or "block"
n_prompts = None
prompts_file = None  # your own: one JSON object a line, such as {"text": "def fib(n):"}; a path from the repository's root
max_new_tokens = None
dtype = None
seed = None

# %%
import pandas as pd
import torch
from IPython.display import Markdown, display

import foredraft as fd
from foredraft import paths
from foredraft.analysis.acceptance import acceptance_by_position, acceptance_rate, tokens_per_pass
from foredraft.analysis.speedup_lines import what_if
from foredraft.analysis.statistics import ratios
from foredraft.articles.outputs import Outputs
from foredraft.articles.speculative_decoding import exact_plots, experiment, nine_words, policies
from foredraft.articles.speculative_decoding import plots as draw
from foredraft.decoding import theory
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.live import steps
from foredraft.repro.params import load as load_params
from foredraft.viz.panel import Panel, Slider

overrides = {
    "profile": profile,
    "model": model,
    "draft_model": draft_model,
    "temperature": temperature,
    "top_p": top_p,
    "length": length,
    "lengths": lengths,
    "temperatures": temperatures,
    "verification": verification,
    "n_prompts": n_prompts,
    "prompts_file": prompts_file,
    "max_new_tokens": max_new_tokens,
    "dtype": dtype,
    "seed": seed,
}
params = load_params("speculative_decoding", overrides)
generator = torch.Generator().manual_seed(params.seed)
outputs = Outputs(
    "speculative_decoding",
    params.model_dump(mode="json"),
    [
        experiment.prompt_file(params),
        *paths.weights(params.model),
        *paths.weights(params.draft_model),
        *paths.recordings("speculative_decoding"),
    ],
    device=params.device,
    dtype=params.dtype,
)

# %% [markdown]
# ## 1 · Nine words
#
# *The cat sat on the …*: the target gives nine words its probabilities p, a smaller model gives them
# others, q. The smaller one draws a word x from q. The rule that saves the day is short: keep x with
# probability min(1, p(x) ÷ q(x)), and if it falls, draw from what p has and q lacks.

# %%
p, q = (law[0] for law in nine_words.laws())
laws = nine_words.first_word_laws(p, q)
laws.set_index("word")[["p", "q", "overlap", "residual"]].T.round(3)

# %% [markdown]
# Here is the whole method as a sketch, for a draft of one word. The drafted word that stands has the
# mass min(p, q). The rest of the time, 1 − β, the residual speaks. Together they are p.


# %%
def one_round(p, q):
    kept = torch.minimum(p, q)  # q(x) · min(1, p(x) / q(x))
    residual = (p - q).clamp(min=0)
    beta = kept.sum()
    return kept + (1 - beta) * residual / residual.sum()


torch.testing.assert_close(one_round(p, q), p)
torch.testing.assert_close(theory.overlap(p, q), 1 - (p - q).abs().sum() / 2)
display(Markdown(f"β = Σ min(p, q) = **{theory.overlap(p, q):.3f}**: so often the draft stands."))

# %% [markdown]
# The package's `verify` does this for drafts of any length, and it is the very function that `generate`
# runs. After the last draft that stands comes one more word: *recovered* from the residual, or, if all of
# them stood, a *bonus* from p itself. A target pass is never for nothing.

# %%
P, Q = nine_words.laws()  # rows: the law after each word
drafts = torch.tensor([1, 2])
verdicts = [fd.verify(drafts, Q[[0, 1]], P[[0, 1, 2]], generator=generator) for _ in range(5)]
pd.DataFrame([{"accepted": v.n_accepted, "then": v.token, "kind": v.kind} for v in verdicts])

# %% [markdown]
# The mistake that is found in real code draws from p again after a rejection, since p is what the
# text should follow. It should not: the words that q likes too much have had their chance already. What comes
# out is min(p, q) + (1 − β) p, and it leans towards the draft model.

# %%
figure = exact_plots.nine_words(laws)
outputs.save(figure, "nine_words")

# %%
bias = (laws["wrong"] - laws["p"]).abs().sum() / 2
kept = laws["overlap"].sum()
assert abs(bias - (laws["overlap"] - kept * laws["p"]).abs().sum() / 2) < 1e-12
display(Markdown(f"Total variation of the wrong law from p, after a single word: **{bias:.3f}**."))

# %% [markdown]
# ## 2 · The law, checked in front of you
#
# One word proves little: drafts are longer, rounds follow each other, and what was accepted decides where
# the next one starts. So all of it is enumerated: every draft of two words, every outcome of the coins,
# every last word, rounds chained to the joint law of three words. The chances, the count and the residual are
# those of the shipped rules; nothing is sampled, so nothing can be luck.

# %%
mistakes = nine_words.mistakes()
assert (mistakes.query("exact")["total_variation"] < 1e-12).all()
assert (mistakes.query("not exact")["total_variation"] > 1e-2).all()
outputs.save(exact_plots.mistakes(mistakes), "mistakes")

# %% [markdown]
# The lower three are the negative controls: each is a plausible slip, and the check tells it from
# the truth by as many orders of magnitude as float64 has digits. Judging an argmax draft as if it had been drawn from q is
# the worst of them. Taking back a drafted word because it looks doubtful is the subtlest: to stop *after*
# a doubtful word is fine, to un-draw it is not.
#
# And the random numbers themselves? Draw, and test: Pearson's χ² on 200,000 rounds, once against p, once
# against the wrong law.

# %%
words = nine_words.first_words(draws=200_000, verification=params.verification, generator=generator)
right = nine_words.chi_square(words, p)
wrong = nine_words.chi_square(words, torch.tensor(laws["wrong"].to_numpy()))
assert right > 1e-4 > wrong
told = "below 1e-300" if wrong < 1e-300 else f"{wrong:.0e}"
display(Markdown(f"p-value against p: **{right:.2f}**; against the wrong law: **{told}**"))

# %% [markdown]
# ## 3 · Two real models
#
# A target and a draft model with the same tokenizer, and something to continue: places in code of several kinds,
# from a package that neither pocket model has seen; or, for a published pair, a question in its chat template; or your
# own prompts, from `prompts_file`.

# %%
pair = experiment.load_pair(params)
prompts = experiment.prompts(pair.tokenizer, params)
weight_ratio = experiment.weight_ratio(pair)
display(
    Markdown(
        f"{len(prompts)} prompts; the draft model has **{weight_ratio:.1%}** of the target's parameters."
    )
)
print(pair.tokenizer.decode(prompts[0].ids))

# %% [markdown]
# The strictest test of exactness is greedy decoding, where one law leaves one text. In float32 the
# speculative text has to equal the plain one token by token. In bfloat16 it may not: a pass over five positions
# rounds differently from five passes over one, and where two tokens are tied to within the rounding
# either may win. The margin tells which it is.

# %%
greedy_texts = experiment.divergences(prompts, params)
assert (greedy_texts.query("dtype == 'float32'")["position"] < 0).all()
parted = greedy_texts.query("position >= 0")
display(parted[["dtype", "kind", "position", "tokens", "margin"]].round(2))
among = greedy_texts.query("dtype == 'bfloat16'")
parted_there = among.query("position >= 0")
lead = f", where the target's favourite led by at most **{parted['margin'].max():.1f}** units in the last place"
display(
    Markdown(
        f"In bfloat16 **{len(parted_there)} of {len(among)}** greedy texts part{lead if len(parted) else ''}; "
        f"{'in float32 none' if params.dtype == 'float32' else 'float32 was not asked for'}. A lead of a unit or two is "
        f"what another order of summation can turn over; a larger one would be an error to look for."
    )
)

# %% [markdown]
# ## 4 · How often the guesses stand
#
# Now the measurement. Each prompt is continued with drafts of the length that `params.yaml` says; then at each
# temperature. Intervals are bootstrapped over texts, since the rounds of one text are no independent
# sample.

# %%
run = experiment.speculate(pair, prompts, params)
overall = acceptance_rate(run.rounds)
per_pass = tokens_per_pass(run.rounds)
display(
    Markdown(
        f"At γ = {params.length} and temperature {params.temperature:g}, "
        f"**{overall['mean'][0]:.1%}** [{overall['low'][0]:.1%}, {overall['high'][0]:.1%}] of the drafted "
        f"tokens stand, and a target pass gives **{per_pass['mean'][0]:.2f}** tokens "
        f"[{per_pass['low'][0]:.2f}, {per_pass['high'][0]:.2f}], n = {overall['n'][0]} texts."
    )
)

# %%
by_heat = [
    run
    if heat == params.temperature
    else experiment.speculate(pair, prompts, params, temperature=heat)
    for heat in steps(params.temperatures, "temperatures")
]
heat_rounds = pd.concat([each.rounds for each in by_heat])
coldest = heat_rounds[heat_rounds.temperature == min(params.temperatures)]
acceptance_rate(heat_rounds, "temperature").round(3)

# %% [markdown]
# Beside the measured acceptance stands what the models' distributions say along the same texts: β = Σ
# min(p, q) at every position; and p(argmax q), the acceptance that *greedy* drafts would have. A
# one-hot proposal is as lossless as a drawn one, so which is better is a free choice.

# %%
along = pd.concat(
    [experiment.overlaps(pair, each, params) for each in steps(by_heat, "texts read")]
)
heat = pd.concat(
    [
        acceptance_rate(heat_rounds, "temperature"),
        *(
            ratios(along, ["temperature"], measure, "one").assign(measure=measure)
            for measure in ("overlap", "favourite")
        ),
    ]
)
heat.pivot_table(index="temperature", columns="measure", values="mean").round(3)

# %%
by_length = [
    run if length == params.length else experiment.speculate(pair, prompts, params, length=length)
    for length in steps(params.lengths, "draft lengths")
]
length_rounds = pd.concat([each.rounds for each in by_length])
long_rounds = length_rounds[length_rounds.length == max(params.lengths)]
position = acceptance_by_position(long_rounds)
kinds = acceptance_rate(run.rounds, "kind")
figure = draw.acceptance(position, kinds, heat)
outputs.save(figure, "acceptance")

# %% [markdown]
# Accepted ÷ drafted counts drafts that stand behind a rejected one and were never judged on their merits; α by
# position does not, and it is the latter that the formulas want. Even α at the first position is not the mean of β
# along the text: rounds start where the last one ended, and that is often a place where a draft fell.
#
# And α is no constant: it is an average of β, which lies anywhere between 0 and 1.

# %%
beta = experiment.overlaps(pair, run, params)
nearly_sure, nearly_lost = (beta.overlap > 0.9).mean(), (beta.overlap < 0.5).mean()
display(
    Markdown(
        f"At temperature {params.temperature:g}, β exceeds 0.9 at **{nearly_sure:.0%}** of the "
        f"positions and is below 0.5 at **{nearly_lost:.0%}**: a draft is worth a lot at some "
        f"places and little at others. Articles 04 and 05 try to tell them apart beforehand."
    )
)
outputs.save(draw.overlap(beta), "overlap")

# %% [markdown]
# ## 5 · Tokens a pass
#
# Leviathan's equation 1 turns one α into the expected tokens of a pass, as if every draft stood with the same
# chance. It is given here the measured mean of α by position, and beside it stands the same sum with each α
# at its place. Both come from the longest drafts alone, and are to foretell all the others.

# %%
passes = experiment.tokens_foretold(length_rounds)
display(passes[["length", "mean", "low", "high", "one_alpha", "by_position"]].round(3))
off_one, off_all = (
    (passes[name] / passes["mean"] - 1).abs().max() for name in ("one_alpha", "by_position")
)
display(
    Markdown(
        f"At worst, one α for all positions is off by **{off_one:.1%}** and α by position by "
        f"**{off_all:.1%}**. Neither is nought: each length was drawn anew, so that the texts differ as well as "
        f"the places at which rounds start."
    )
)

# %% [markdown]
# Token verification stops at the first draft that falls. Block verification looks at the draft as a whole: a
# token that q liked too little pays for the one that q liked too much. It cannot do worse. How much better it does
# is measured without tossing a coin, on one and the same set of drafts: given the first i tokens of a draft, both
# rules know the chance that at least i stand.

# %%
rules = experiment.rules_compared(pair, run, params)
assert (rules["gain"] > -1e-9).all()
gain = ratios(rules, ["length"], "gain", "one")
share = ratios(rules, ["length"], "gain", "token")
most = share.set_index("length").loc[max(params.lengths)]
display(
    Markdown(
        f"At γ = {max(params.lengths)} block verification gives **{most['mean']:.1%}** more tokens a pass "
        f"[{most['low']:.1%}, {most['high']:.1%}]; at γ = 1 the two are the same rule. It costs nothing "
        f"but a few sums: `fd.generate(..., verification='block')`."
    )
)
figure = draw.tokens(passes, gain)
outputs.save(figure, "tokens")

# %% [markdown]
# ## 6 · When it pays
#
# What a draft step costs in target steps, c, decides. No acceptance lifts the speed-up above 1 ÷ c,
# and below the diagonal α = c nothing helps. A small model seldom runs as fast as it is small: what does
# not shrink with it, a sampler over the same vocabulary or the start of every operation, weighs the more.
# Times come from a recording, never from this run; where this pair was not recorded, c is the ratio of the
# weights that have to be read.

# %%
recorded = recording.recordings("speculative_decoding")["cpu"]
arms = recorded.table
costs = experiment.costs(pair, params, arms)
cost = costs.draft / costs.target
display(
    Markdown(
        f"c = **{cost:.2f}**, so the ceiling is **{theory.ceiling(cost):.1f}×**; by the weights "
        f"alone c would be {weight_ratio:.2f}."
    )
)
points = policies.on_the_surface(heat_rounds, cost)
surface = policies.surface()
outputs.save(draw.surface(surface, points), "surface", recorded=recorded.file)

# %% [markdown]
# Move through it (in JupyterLab; elsewhere the figure stands still, at about this pair's own α and c). Halve c, or win 0.1 of α: which is worth
# more, here and in the upper left corner? How wrong may γ be before drafting is a loss? And where does a long draft pay at all?


# %%
def choice(acceptance, cost, length):
    return draw.choice(surface, what_if([acceptance], cost, longest=16), length)


shares = [n / 50 for n in range(1, 50)]
alpha = policies.on_the_surface(run.rounds, cost).acceptance.item()
choice_panel = Panel(
    choice,
    acceptance=Slider.near(shares[14:], alpha, name="acceptance α"),
    cost=Slider.near(shares[:45], cost, name="cost c"),
    length=Slider(range(17), at=params.length, name="draft length γ"),
)
outputs.save(choice_panel, "choice", recorded=recorded.file)

# %%
best, cheaper, nearer = (
    what_if([a], c, longest=40).set_index("length").speedup
    for a, c in ((alpha, cost), (alpha, cost / 2), (min(1.0, alpha + 0.1), cost))
)
gaining = best.index[best > 1]
display(
    Markdown(
        f"With this pair's α = {alpha:.2f} and c = {cost:.2f} the best γ is {best.idxmax()} and gives **{best.max():.2f}×**. Half of c would make it {cheaper.max():.2f}×, "
        f"0.1 more of α {nearer.max():.2f}×. "
        + (
            f"γ may be anything from {gaining.min()} to {gaining.max()} without a loss."
            if len(gaining)
            else "No γ gains anything."
        )
    )
)

# %% [markdown]
# The surface takes a pass over γ + 1 positions to cost what one position does. On a GPU, or wherever reading the
# weights is what takes the time, that is nearly so. On a processor it is not, and from here on verification
# costs what was recorded: the sum is `theory.predicted_speedup`.
#
# Is it worth choosing γ? Fixed, best for each kind of prompt, and an oracle that knows in advance how far the
# draft will stand:

# %%
by_kind = policies.lengths_compared(long_rounds, "kind", costs)
compared = policies.policies(long_rounds, "kind", params.length, costs)
forgone = (compared["best"] / compared["fixed"]).mean() - 1
unknown = (compared["oracle"] / compared["best"]).mean() - 1
display(
    Markdown(
        f"γ = {compared['fixed_length'][0]} instead of the length that turned out best for each kind forgoes "
        f"**{forgone:.1%}** on average (of a few texts a kind, and never below nought); to know "
        f"each round's own best length would add another **{unknown:.1%}**. More is to be won by "
        f"{'telling rounds apart' if unknown > forgone else 'choosing one length well'}."
    )
)
figure = draw.lengths(by_kind, compared, "kind")
outputs.save(figure, "lengths", recorded=recorded.file)

# %% [markdown]
# ## 7 · On the clock
#
# Recorded for the pocket pair with `foredraft record speculative_decoding`: every arm in turn on each prompt,
# speed-ups paired by prompt, always against *our own* autoregressive decoding and never against a slower one. Beside
# it `transformers` on the same weights and prompts: `generate`, `assistant_model=` and `prompt_lookup_num_tokens=`.
#
# A draft model appears three times: with a fixed γ and its tokens verified one by one, beside `assistant_model=` told
# the same γ; the same draft verified as a block; and a block of up to eight tokens that ends where the draft model gives its
# token less than 0.4, beside `assistant_model=` with that length and threshold.

# %%
settings = f"{arms['dtype'].iloc[0]}, threads: {arms['threads'].iloc[0]}"
where = f"{recorded.machine.name}, {settings}, {recorded.date}"
display(Markdown(f"*Recorded on* {where}."))
fastest = experiment.fastest_arms(arms)
columns = ["sampler", "library", "strategy", "length", "tokens_per_second_median"]
display(fastest[[*columns, "speedup_median", "acceptance", "roofline"]].round(2))
outputs.save(draw.beside(fastest, where), "beside", recorded=recorded.file)

# %% [markdown]
# Does the theory foretell the clock? α by position goes in, what a draft step costs, what follows a draft in its round, and
# what a plain round costs. These are timed *in place*, in generations of their own that took their turn with the others. (The same parts timed by
# themselves in a loop come out too cheap: target and draft no longer take the processor's caches from each other.) No number is chosen to fit; it is a
# check that the sum is complete, not a forecast for another machine. The passes over the prompt, which no draft shortens, are left out on both sides.

# %%
drafted = arms[(arms.library == "foredraft") & (arms.strategy == "draft model") & (arms.batch == 1)]
off = drafted["residual"].abs()
display(
    Markdown(
        f"Measured ÷ predicted is off by **{off.median():.1%}** in the median and **{off.max():.1%}** at "
        f"worst over {len(off)} settings."
    )
)
outputs.save(draw.predicted(drafted, where), "predicted", recorded=recorded.file)

# %% [markdown]
# Batches change the sum. With more rows a target pass has more to compute for each weight that it reads, so that the
# extra positions of a draft are not nearly free any more.

# %%
ours = experiment.fastest_arms(arms, library="foredraft", batch=None)
display(experiment.gain_by_batch(ours).round(2))
outputs.save(draw.batches(ours, where), "batches", recorded=recorded.file)

# %% [markdown]
# ## 8 · The results

# %%
table = pd.concat(
    [overall, per_pass, kinds, heat, position, passes, gain.assign(measure="block_gain")],
    ignore_index=True,
)
singles = {
    "acceptance": overall,
    "tokens_per_pass": per_pass,
    "overlap": ratios(beta, [], "overlap", "one"),
    "coldest": acceptance_rate(coldest),
    "block": gain.tail(1),
    "kinds": kinds,
}
values, claims = experiment.findings(singles, arms)
outputs.finish(
    table,
    values,
    claims,
    recorded=dict.fromkeys(
        ("speedup_greedy", "speedup_sampled", "transformers_greedy"), recorded.file
    ),
)
pd.DataFrame(
    [
        {"claim": claim.text, "ours": results.ours(claim, results.flattened(values))}
        for claim in claims
    ]
)

# %% [markdown]
# ## 9 · What surprised us
#
# * **The popular acceptance rate is not α.** Accepted ÷ drafted falls with γ although no draft has become
#   worse, since the drafts behind a rejection count as failures. Two papers that quote it at different γ
#   cannot be compared.
# * **Greedy drafts are a poor bargain when sampling.** They look like the safe choice. At temperature 1 they lose
#   what q and p share beyond the favourite; see the table in section 4.
# * **Heat costs sampled drafts little beyond a point.** Where both laws grow flat they overlap all the same: compare the
#   two hottest points in section 4, and what becomes of greedy drafts there.
# * **Looking back can beat a model.** Greedy text of small models repeats itself, so prompt lookup, which costs
#   next to nothing, is ahead of the draft model in section 7; at temperature 1 it finds next to nothing to gain.
# * **A gain for one row shrinks for eight.** The last table of section 7 has both.
# * **Block verification is free, and few libraries have it.** The longer the draft, the more it adds.
# * **Rounding decides greedy ties.** "Lossless" for greedy decoding in bfloat16 means up to a tie; a test that
#   compares texts there tests the arithmetic.
# * **Cost decides, and it has to be measured.** The ratio of the parameters is only where to start from.
#
# Next: [03, skipping layers](../README.md#the-articles), where the target drafts for itself.
