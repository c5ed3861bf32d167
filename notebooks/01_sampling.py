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
# # 01 · From logits to a token
#
# **A language model gives one number a token; the sampler decides what kind of writer that makes.**
# This notebook takes each sampling knob apart: what it does to the distribution, exactly, what it
# does to the text, and what it costs.
#
# The knobs, in the order in which they are applied: repetition penalty
# ([1909.05858](https://arxiv.org/abs/1909.05858)), temperature, top-k
# ([1805.04833](https://arxiv.org/abs/1805.04833)), top-p
# ([1904.09751](https://arxiv.org/abs/1904.09751)), min-p
# ([2407.01082](https://arxiv.org/abs/2407.01082)), typical-p
# ([2202.00666](https://arxiv.org/abs/2202.00666)).
#
# *Needs*: nothing but this repository: no network, no GPU. *Takes*: about a minute on two cores.
# *The code*: `foredraft.sampling` (the sampler), `foredraft.articles.sampling.experiment` (the tables below).
# Speculative decoding, from article 02 on, promises to keep this law exactly, so it has to be nailed
# down first.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke"; None: what params.yaml says
temperatures = None  # the rows of the grid in section 4
top_ps = None  # its columns
repetition_penalties = None  # the x axis of section 5
model = None  # a pocket model, a folder in the Hugging Face format, or a hub id
seed = None
measure = (
    False  # True: time the filters on this machine, now, instead of drawing the recorded times
)

# %%
import pandas as pd
import torch
from IPython.display import Markdown, display

import foredraft as fd
from foredraft import paths
from foredraft.analysis.nine_words import NINE_LOGITS, NINE_WORDS
from foredraft.articles.outputs import Outputs
from foredraft.articles.sampling import experiment
from foredraft.articles.sampling import plots as draw
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.live import steps
from foredraft.repro.params import load as load_params
from foredraft.viz.panel import Panel, Slider

overrides = {
    "profile": profile,
    "temperatures": temperatures,
    "top_ps": top_ps,
    "repetition_penalties": repetition_penalties,
    "model": model,
    "seed": seed,
}
params = load_params("sampling", overrides)
generator = torch.Generator().manual_seed(params.seed)
outputs = Outputs(
    "sampling",
    params.model_dump(mode="json"),
    [
        paths.CORPUS,
        *paths.weights(params.model),
        *paths.recordings("sampling"),
    ],
)

# %% [markdown]
# ## 1 · Nine words
#
# Before any model, a vocabulary small enough to see whole. Somebody has to continue *the cat sat on
# the …* and gives these nine words a logit each.

# %%
words = pd.Series(NINE_LOGITS, index=NINE_WORDS, name="logit")
nine = torch.tensor(words.to_numpy(), dtype=torch.float64)
words.to_frame().T

# %% [markdown]
# A `Sampler` is a law: `probs` turns logits into **one** distribution, and `draw` takes a token from
# that very distribution. Nothing is processed twice, and the probability that is reported for a token
# is the one that it was drawn with. That sounds like a
# trifle. In speculative decoding it is what exactness hangs on: a token accepted by the probability of
# another law than the one it was drawn from bends the output.

# %%
sampler = fd.Sampler(temperature=0.8, top_k=5, top_p=0.9)
probs = sampler.probs(nine)
pd.DataFrame(
    {"plain softmax": fd.Sampler().probs(nine), "sampler": probs}, index=words.index
).T.round(3)

# %% [markdown]
# Each knob by itself, from mild to strong. Temperature moves all the bars and removes none; the
# filters remove the tail and scale up what is left. Top-k counts heads, top-p adds up mass, min-p asks
# for a share of the best word's probability. Typical-p is the odd one: it keeps the words whose surprise
# is close to the *expected* surprise, and so it may drop the most likely word of all.

# %%
figure = draw.nine_words(experiment.nine_word_table())
outputs.save(figure, "nine_words")

# %% [markdown]
# ## 2 · The law, checked in front of you
#
# Three properties that everything later rests on. First: the draws follow the distribution (Pearson's
# χ² on 200,000 draws; the generator is fixed, so this is a check and not a lottery).

# %%
law = experiment.chi_square(sampler, nine, draws=200_000, generator=generator)
assert law > 1e-4, "the draws do not follow the sampler's own distribution"
display(Markdown(f"χ² p-value of 200,000 draws: **{law:.3f}**"))

# %% [markdown]
# Second: what a filter removes has probability zero exactly, so it is never drawn; and temperature 0
# is the one-hot distribution of the argmax, with the lowest index on ties. It is a distribution like any
# other, which is what lets greedy decoding and sampling share every line of code that follows.

# %%
assert set(torch.nonzero(probs).flatten().tolist()) == {0, 1, 2, 3}
tied = torch.tensor([0.0, 2.0, 2.0])
assert fd.Sampler(temperature=0).probs(tied).tolist() == [0.0, 1.0, 0.0]
fd.Sampler(temperature=0).probs(nine)

# %% [markdown]
# Third: the same kept words and the same probabilities as the processors of `transformers`, chained in
# the same order. (The test-suite does this over a grid of settings, precisions and awkward logits.)

# %%
from foredraft.benchmarks.sampling import transformers_processors

for knob, one in experiment.one_knob_at_a_time(params):
    theirs = transformers_processors(one)(torch.tensor([[0]]), nine[None].float()).softmax(-1)[0]
    ours = one.probs(nine.float())
    assert torch.equal(ours > 0, theirs > 0), knob
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)

# %% [markdown]
# ## 3 · A real distribution
#
# Now the real thing: a language model that this repository has trained, on functions from a package
# that it has never seen. At each of a few hundred positions the model gives thousands of logits; each
# knob then makes its own distribution of them.

# %%
decoder, tokenizer = fd.load(params.model, dtype=torch.float32)
prompts = experiment.held_out_functions(tokenizer, params.n_prompts, params.prompt_tokens)
print(tokenizer.decode(prompts[0]))

# %%
logits = experiment.logits_along(decoder, prompts, params.n_positions)
knobs = experiment.knob_table(logits, experiment.one_knob_at_a_time(params))
plain = knobs.query("part == 'reference' and top_p == 1").set_index("measure")
display(
    Markdown(
        f"Over {len(logits)} positions and {logits.shape[-1]:,} tokens, the plain softmax has a median "
        f"entropy of **{plain.loc['entropy', 'median']:.2f} nats** (quartiles "
        f"{plain.loc['entropy', 'low']:.2f} and {plain.loc['entropy', 'high']:.2f}), and the likeliest "
        f"token a median probability of **{plain.loc['highest', 'median']:.2f}**."
    )
)

# %% [markdown]
# The spread between the quartiles is the point: some positions are nearly decided, others wide open, and
# a knob that is a *count* treats them alike.

# %%
figure = draw.knobs(knobs)
outputs.save(figure, "knobs")

# %% [markdown]
# Turn the knobs yourself (in JupyterLab; elsewhere the figure stands still). Go through the text: where is the model sure,
# where is it not? At an undecided place, find two settings that keep equally many tokens, one by a count and one by mass; then
# go on to a place that is decided, and see which of the two still lets a blunder through. Find a place where typical-p drops the favourite.

# %%
text = prompts[0]
along = experiment.logits_along(decoder, [text], len(text))


def one_position(position, **settings):
    before = text[:position]
    table = experiment.one_position(along[position - 1], before, fd.Sampler(**settings), tokenizer)
    return draw.one_position(table, tokenizer.decode(before))


knob_panel = Panel(
    one_position,
    position=Slider(range(1, len(text) + 1), at=len(text) // 2),
    temperature=Slider((0.0, 0.3, 0.5, 0.8, 1.0, 1.3, 1.6, 2.0), at=0.8),
    top_k=Slider((0, 1, 2, 3, 5, 10, 30, 100, 1000), at=0, name="top-k (0: off)"),
    top_p=Slider((0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0), at=0.9, name="top-p"),
    min_p=Slider((0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5), at=0.0, name="min-p"),
    typical_p=Slider((0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0), at=1.0, name="typical-p"),
    repetition_penalty=Slider((1.0, 1.1, 1.2, 1.5, 2.0), at=1.0, name="repetition penalty"),
)
outputs.save(knob_panel, "one_position")

# %%
by_mass = experiment.kept(fd.Sampler(temperature=0.8, top_p=0.9).probs(along)).tolist()
fewer = sum(n < 30 for n in by_mass)
display(
    Markdown(
        f"Along this text top-p 0.9 at temperature 0.8 keeps between **{min(by_mass)} and {max(by_mass)} tokens**. A top-k of 30 "
        f"lets through more than that at **{fewer} of {len(by_mass)}** places, and less at the others."
    )
)

# %% [markdown]
# How many tokens survive is where the filters differ. A fixed k keeps k tokens at a closing bracket as
# well as at the start of a name. Top-p, min-p and typical-p follow the distribution: look at the distance
# between the quartiles.

# %%
top_p_kept = knobs.query("part == 'top_p' and measure == 'kept'").set_index("top_p")
top_p_kept[["low", "median", "high"]].astype(int)

# %% [markdown]
# ## 4 · Diversity against likelihood
#
# What does this do to text? For every pair of temperature and top-p the model continues each prompt
# several times. *Likelihood* is −log p a token under the model's plain softmax (lower is safer).
# *Diversity* is the share of distinct bigrams over all samples of one prompt.

# %%
samplers = steps(experiment.grid(params), "temperature × top-p")
texts = experiment.text_table(decoder, prompts, samplers, params)
figure = draw.grid(texts)
outputs.save(figure, "grid")

# %% [markdown]
# Temperature and top-p both trade likelihood for diversity. The right panel puts all pairs on one plane,
# a line for each top-p: where two lines lie on each other, it does not matter which of the two knobs is
# turned; where they part, it does. How far likelihood moves along the grid:

# %%
likelihoods = texts.query("measure == 'nats'").pivot_table(
    index="temperature", columns="top_p", values="mean"
)
likelihoods.round(2)

# %% [markdown]
# ## 5 · Repetition
#
# Greedy decoding of a small model falls into loops. The repetition penalty divides the positive logits
# of every token that has occurred, prompt included, and multiplies the negative ones. How much of the
# looping does it cure, and at what price in likelihood?

# %%
samplers = steps(experiment.penalties(params), "repetition penalties")
loops = experiment.text_table(decoder, prompts, samplers, params)
figure = draw.repetition(loops)
outputs.save(figure, "repetition")

# %%
weak, strong = min(params.repetition_penalties), max(params.repetition_penalties)
repeated = loops.query("measure == 'repeated'").set_index("repetition_penalty")["mean"]
nats = loops.query("measure == 'nats'").set_index("repetition_penalty")["mean"]
display(
    Markdown(
        f"From penalty {weak:g} to {strong:g} the share of repeated 4-grams goes from "
        f"**{repeated[weak]:.0%}** to **{repeated[strong]:.0%}**, and −log p of the text from "
        f"**{nats[weak]:.2f}** to **{nats[strong]:.2f} nats a token**. In code, where a name *should* "
        f"come back, a penalty on every token that has occurred is a blunt tool."
    )
)

# %% [markdown]
# ## 6 · What it costs
#
# At a vocabulary of 256,000 the sampler is no longer free: the usual top-p sorts every row in full.
# A peaked distribution does not need that: the likeliest few tokens hold the mass, and a glance tells
# whether they do. Times are never taken in this pipeline, since they would differ on every run; they
# are recorded with `foredraft record sampling` and drawn here. The ratio is that of two arms timed in
# alternation in one process.

# %%
recorded = recording.recordings("sampling")["cpu"]
costs = recorded.table
where = f"{recorded.machine.name}, {recorded.machine.cores} cores, {recorded.date}"
display(Markdown(f"*Recorded on* {where}."))
outputs.save(draw.costs(costs, where), "costs", recorded=recorded.file)

# %%
usual = costs[(costs.setting == "temperature, top-k, top-p") & (costs.logits == "peaked")]
usual = usual.set_index("vocab")[["foredraft_ms_median", "transformers_ms_median", "ratio_median"]]
usual.round(2)

# %% [markdown]
# With `measure = True` the same is timed here and now, shown, and kept nowhere.

# %%
if measure:
    from foredraft.benchmarks.sampling import sampling_benchmark

    display(draw.costs(sampling_benchmark(), "this machine, now"))

# %% [markdown]
# ## 7 · The results
#
# The tables go to `data/results/sampling.csv`, single values to `sampling.json`, from where `RESULTS.md`,
# the TeX macros and the README take them.

# %%
table = pd.concat([knobs, texts, loops], ignore_index=True)
values, claims = experiment.findings(table, costs)
outputs.finish(table, values, claims, recorded=dict.fromkeys(("speedup",), recorded.file))
pd.DataFrame(
    [{"claim": claim.text, "ours": results.flattened(values)[claim.key]} for claim in claims]
)

# %% [markdown]
# ## 8 · What surprised us
#
# * **Typical-p can drop the favourite.** Where a position is undecided, the likeliest token is a good deal
#   *less* surprising than average, and with a low mass it goes. The nine words show it; no other knob
#   does this.
# * **Top-p has no fixed size, and that is its virtue.** The table in section 3 has the quartiles of its
#   kept set at each setting.
# * **The order matters.** Temperature comes before top-p here, as in `transformers`: heating first lets more
#   tokens through the same top-p. Two libraries with the same numbers and another order are two samplers.
#
# Next: [02, speculative decoding](../README.md#the-articles), where a small model guesses and a large one keeps this law.
