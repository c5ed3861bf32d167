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
# # 07 · BERT from scratch, number for number
#
# **"Don't just use other people's libraries; write your own to truly understand." The proof of having understood is that every number agrees, on
# trained weights, and that the thing trains. Then one may ask what it is good for, and whether it can be faster.**
#
# BERT ([1810.04805](https://arxiv.org/abs/1810.04805)) reads a text in both directions at once and guesses the words that were hidden from it. Here it is
# built from its parts, each held against `transformers` as it appears; then trained on docstrings, and asked to find the function that a docstring describes.
#
# *Needs*: nothing but this repository (and, for trained weights of some size, the small package that `make setup` installs with it). *Takes*: about three minutes on two cores.
# *The code*: `foredraft.models.bert` and `foredraft.training.bert`; the tables below are made in `foredraft.articles.bert`.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke", "bert-base"; None: what params.yaml says
model = None  # guesses words and is fine-tuned: "pocket-bert", a folder in the Hugging Face format, or a hub id
encoder = None  # is held against transformers: "all-MiniLM-L6-v2", or as above
layers = None  # of the model that is trained in section 5, as all down to tokens
hidden_size = None
masking_rate = None
whole_words = None  # True: chance decides about words, not about pieces of words
tokens = None
tuning_steps = None  # of fine-tuning, section 7
questions = None  # that are asked at most, section 7
seed = None

# %%
import pandas as pd
import torch
from IPython.display import Markdown, display

from foredraft import paths
from foredraft.articles.bert import experiment, learning, masking, parity
from foredraft.articles.bert import plots as draw
from foredraft.articles.bert import retrieval as searching
from foredraft.articles.outputs import Outputs
from foredraft.models.bert import model as parts
from foredraft.models.bert.fused import ActivatedLinear, ResidualLinear
from foredraft.repro import claims as results
from foredraft.repro import live, recording
from foredraft.repro.params import load as load_params
from foredraft.training.bert.docstrings import load_docstrings
from foredraft.training.bert.ship import evaluated
from foredraft.training.bert.wordpiece import read_wordpiece

overrides = {
    "profile": profile,
    "model": model,
    "encoder": encoder,
    "layers": layers,
    "hidden_size": hidden_size,
    "masking_rate": masking_rate,
    "whole_words": whole_words,
    "tokens": tokens,
    "tuning_steps": tuning_steps,
    "questions": questions,
    "seed": seed,
}
params = load_params("bert", overrides)
ours, real = experiment.model(params), experiment.encoder(params)
outputs = Outputs(
    "bert",
    params.model_dump(mode="json"),
    [
        paths.CORPUS,
        *learning.files(),
        *ours.files,
        *real.files,
        *paths.recordings("bert"),
    ],
)
found = load_docstrings()
known = f" It is not the one that was asked for: {real.missing}." if real.missing else ""
display(Markdown(f"*Held against the reference*: **{real.name}**.{known}"))

# %% [markdown]
# ## 1 · The parts
#
# A batch of texts has rows of all lengths; a rectangle of tokens is filled up with padding. All that follows works on *packed* tokens instead: one row of a
# matrix for each real token, texts of equal length next to each other, so that padding is never computed. The batch that is used to compare holds docstrings of a package that no model here was trained on, cut to lengths
# from one token to all that the model has positions for. Each part is loaded twice, in float32 and in float64, and given **what the reference's part was given**; in float64 nothing can hide behind rounding.

# %%
batch = experiment.ragged(real, found.held_out_package)
both = [parity.Pieces(real.folder, batch, dtype) for dtype in parity.BOUNDS]
share = 1 - batch.mask.float().mean().item()
display(
    Markdown(
        f"{len(batch.ids)} rows of {', '.join(str(n) for n in batch.mask.sum(1).tolist())} tokens; as a rectangle, **{share:.0%}** of it would be padding."
    )
)


# %%
def show(*classes):
    """Show classes as they stand in the package."""
    for each in classes:
        display(Markdown(experiment.source(each)))


compared = []


def compare(*pieces):
    """Hold pieces against the reference, and keep what was found."""
    compared.append(parity.compared(both, *pieces))
    return parity.worst(compared[-1])


# %% [markdown]
# **Embeddings.** What a token is, to which of two sentences it belongs, where it stands; the sum is normalised.

# %%
show(parts.Embeddings)
compare(parity.Pieces.embeddings)

# %% [markdown]
# **Attention.** Query, key and value come from one product with one matrix, `qkv`. Rows of one length are a block of the packed tokens, so attention needs no mask. The residual sum is part of the last linear map:
# oneDNN adds it while a tile of the product is still in registers (`ResidualLinear`).

# %%
show(ResidualLinear, parts.Attention)
compare(parity.Pieces.attention)

# %% [markdown]
# The same sums in another order: float32 differs in its last digits, float64 in its own. Where a line below says zero, even the order is the reference's.
#
# **The MLP**, each token by itself.

# %%
show(ActivatedLinear, parts.MLP)
compare(parity.Pieces.feed_forward)

# %% [markdown]
# **A layer.** BERT normalises *after* each residual sum, the decoders of the other articles before each branch.

# %%
show(parts.Layer)
compare(parity.Pieces.layer)

# %% [markdown]
# **The pooler**: one vector for a text, from its first token.

# %%
show(parts.Pooler)
compare(parity.Pieces.pooler)

# %% [markdown]
# **The encoder**: all of it, from the tokens on. Now errors add up from layer to layer. *mean-pooled* is the average over a text's tokens, by which sentence encoders compare.

# %%
show(parts.Bert)
compare(parity.Pieces.encoder)

# %%
states = compared[-1][compared[-1].piece == "states"]
outputs.save(draw.parity(states), "parity")

# %% [markdown]
# **The heads.** For training: which word was here (against every word's embedding), and does the second sentence follow? These have trained weights in the model that guesses. Their loss has gradients, and
# these are compared too, all at once. For classification: random weights, in a small model that we save and `transformers` loads.

# %%
show(parts.MaskedLanguageHead, parts.NextSentenceHead)
compared.append(parity.guessing(ours.folder, experiment.masked_pairs(ours, found.held_out_package)))
parity.worst(compared[-1])

# %%
show(parts.SequenceClassifier, parts.TokenClassifier)
compared.append(parity.classifying(batch, generator=torch.Generator().manual_seed(params.seed)))
parity.worst(compared[-1])

# %% [markdown]
# ## 2 · Parity, in one table
#
# The largest difference of any number, over all layers. Promised are 2·10⁻⁵ in float32 and 10⁻¹² in float64.

# %%
differences = pd.concat(compared, ignore_index=True)
worst = parity.worst(differences)
display(
    Markdown(
        f"**{worst.holds.sum()} of {len(worst)}** pieces are within both bounds, over {worst.numbers.sum():,} numbers; the largest differences are "
        f"**{worst.float32.max():.1e}** in float32 and **{worst.float64.max():.1e}** in float64."
    )
)
worst

# %% [markdown]
# ## 3 · Where it looks
#
# Attention maps are there on request. First a measurement, over many docstrings: of what a token gives away, how much goes to itself, to its neighbours, to the marks at both ends?

# %%
reader = real.encoder()
searches = searching.searches(found.held_out_package, params.questions)
texts = searches["functions"].questions
looks = experiment.attended(reader.bert, reader.tokenizer, texts[: params.attended])
outputs.save(draw.looks(looks), "looks")

# %% [markdown]
# Then the heads that follow each pattern most, on one sentence.

# %%
sentence = experiment.sentence(reader, texts)
clearest = experiment.clearest(looks)
pieces, maps = experiment.maps(reader.bert, reader.tokenizer, sentence, clearest)
names = [f"layer {r.layer}, head {r.head}: {r.pattern}" for r in clearest.itertuples()]
outputs.save(draw.heads(pieces, maps, names), "heads")

# %%
means = looks.groupby("pattern", sort=False)["share"].mean()
display(
    Markdown(
        "Of a token's attention, on average over all heads, "
        + ", ".join(f"{share:.0%} goes to {name}" for name, share in means.items())
        + ". "
        + "; ".join(
            f"head {r.head} of layer {r.layer} gives {r.share:.0%} to {r.pattern}"
            for r in clearest.itertuples()
        )
        + "."
    )
)

# %% [markdown]
# Heads that look to one side, and many that look at a mark, are what Clark et al. ([1906.04341](https://arxiv.org/abs/1906.04341)) found in the original, where the mark is [SEP]; to look at a mark is to have nothing to say.
#
# ## 4 · What masking does
#
# A share of the tokens is asked for. Most of these are masked, some are replaced by others, some stay as they are, so that the model cannot tell by the mask alone where it is asked. Chance decides about
# single pieces, or, with *whole words*, about words: then all pieces of one are asked or none.

# %%
tokenizer = read_wordpiece(ours.folder)
rows = learning.training_rows(params, found.train)
rule = learning.recipe(params).masking
shipped_tokenizer = read_wordpiece(learning.folder())
fates = masking.fates(rows.passages, shipped_tokenizer, rule, seed=params.seed)
outputs.save(draw.fates(fates), "fates")

# %%
shares = masking.shares(rows.passages, shipped_tokenizer, rule, seed=params.seed)
shares.round(4)

# %% [markdown]
# *asked* is what the rule says, *low* and *high* the 95 % interval of what it did. With single pieces most words of several pieces are asked in part: the other pieces stay and may tell the answer. Whether they do, the trained
# model shows: the same rows of the held-out package, masked by either rule at several rates.

# %%
by_rate = masking.by_rate(
    learning.guesser(ours.folder),
    tokenizer,
    found.held_out_package,
    params.rates,
    n_rows=params.rate_rows,
)
outputs.save(draw.by_rate(by_rate), "by_rate")

# %%
at = by_rate.set_index(["rule", "rate"])["accuracy"]
first, last = min(params.rates), max(params.rates)
display(
    Markdown(
        f"At {first:.0%}, **{at['single pieces', first]:.1%}** of single pieces are guessed and **{at['whole words', first]:.1%}** of the pieces of whole words; at {last:.0%}, {at['single pieces', last]:.1%} and {at['whole words', last]:.1%}."
    )
)

# %% [markdown]
# ## 5 · A model that is trained here
#
# From nothing, on docstrings of the pinned packages, by masked words and next sentences: small enough for a notebook, and as its parameters say. It is judged as the shipped `pocket-bert` was: on masked tokens of a package that is held out whole.
# The bar is counting. A *unigram* guesses the most frequent token, always; a *bigram* knows the token to the left; *both neighbours* knows the true tokens on either side, even where the model sees a mask.


# %%
judged = learning.judging_rows(found)
here = learning.trained(params, rows, judged, report=live.counter("tokens read", params.tokens))
card = learning.card()
guessers = learning.guessers(card, evaluated(here.model, None, judged, n_rows=params.judged_rows))
curves = learning.curves(card, here)
outputs.save(draw.learning(curves, guessers), "learning")

# %%
nats, right = guessers.set_index("who")["nats"], guessers.set_index("who")["accuracy"]
n_here = sum(weight.numel() for weight in here.model.parameters())
display(
    Markdown(
        f"The shipped model ({card['parameters']:,} parameters, {card['tokens_seen']:,} tokens) guesses **{right['bert']:.1%}** of the masked tokens at **{nats['bert']:.2f}** nats each; a unigram has {right['unigram']:.1%} and {nats['unigram']:.2f}, "
        f"a bigram {right['left_neighbour']:.1%} and {nats['left_neighbour']:.2f}, both neighbours {right['both_neighbours']:.1%} and {nats['both_neighbours']:.2f}. "
        f"The one trained here ({n_here:,} parameters, {params.tokens:,} tokens): **{right['here']:.1%}** and **{nats['here']:.2f}**."
    )
)
guessers.drop(columns=["who"]).round(3)

# %% [markdown]
# ## 6 · Filling in
#
# What the model that guesses puts into the gap of a sentence:

# %%
guessed = experiment.filled(learning.guesser(ours.folder), tokenizer, experiment.SENTENCES)
guessed["said"] = [f"{r.guess} ({r.probability:.0%})" for r in guessed.itertuples()]
with pd.option_context("display.max_colwidth", None):
    display(
        guessed.groupby("text", sort=False)["said"].apply(", ".join).to_frame("likeliest first")
    )

# %% [markdown]
# ## 7 · Finding functions
#
# A use that can be judged: a docstring's first paragraph describes a function; find it among all public functions of the held-out package, by name and parameters alone. And, as a second task, find the rest of the docstring.
# The bar is TF-IDF, which knows which words are rare and nothing else. The trained encoder is used as it comes; ours is a guesser of words, first as it is, then fine-tuned on the functions of the *other* packages: bring
# a description nearer to its function than to the rest of the batch (InfoNCE, [1807.03748](https://arxiv.org/abs/1807.03748)).

# %%
before = ours.encoder()
after, contrast = searching.tuned(before, found.train, params)
outputs.save(draw.tuning(contrast), "tuning")

# %%
encoders = {searching.BEFORE: before, searching.AFTER: after}
if real.folder != ours.folder:
    encoders = {searching.REAL: reader} | encoders
similar = {
    task: searching.similarities(each, encoders)
    for task, each in live.steps(searches.items(), "searches")
}
recalls = searching.recalls(similar, params.ks)
arms = experiment.arm_names(ours, real)
outputs.save(draw.recall(recalls, arms), "recall")

# %%
table = recalls.assign(arm=[arms[arm] for arm in recalls.arm])
wide = table.pivot_table(index=["task", "arm"], columns="k", values="share", sort=False)
wide.columns = [f"among the first {k}" for k in wide.columns]
wide.round(3)

# %%
at_one = recalls[recalls.k == min(params.ks)].set_index(["task", "arm"])
display(
    Markdown(
        "Found first: "
        + "; ".join(
            f"**{arms[arm]}** {row.share:.1%} [{row.low:.1%}, {row.high:.1%}]"
            for (task, arm), row in at_one.iterrows()
            if task == "functions"
        )
        + "."
    )
)

# %% [markdown]
# Some questions that the fine-tuned model answers and TF-IDF does not, then the other way round:

# %%
with pd.option_context("display.max_colwidth", None):
    display(
        searching.cases(
            searches["functions"],
            similar["functions"],
            one=searching.AFTER,
            other=searching.WORDS,
            n=4,
        ).rename(columns=arms)
    )

# %% [markdown]
# A question of one's own (change it):

# %%
searching.places(searches["functions"], "how far apart are two nodes", after, 5).round(3)

# %% [markdown]
# ## 8 · How fast
#
# Against `transformers` with `sdpa`, on the same float32 weights, in one process, in alternation. Times are never taken in this pipeline; they were recorded with `foredraft record bert`. Four workloads of 32 texts; padding is what a rectangle would hold of it. *Packed* is after `pack()`, which lays the weights out for this processor: a copy, beside the pages of the file that they were read from.

# %%
recordings = recording.recordings("bert")
for each in recordings.values():
    where = f"{each.machine.name}, {each.machine.cores} cores, {each.date}"
    display(Markdown(f"*Recorded on* {where}."))
times = pd.concat([each.table for each in recordings.values()], ignore_index=True)
outputs.save(draw.speed(times), "speed", recorded=recordings["cpu"].file)

# %%
columns = ["workload", "padding", "task", "unit", "foredraft_median", "transformers_median"]
times[[*columns, "ratio_median", "ratio_min", "ratio_max", "n", "threads", "device"]].round(2)

# %% [markdown]
# Where all texts are equally long, the gain is what fusing saves: the residual sum and the activation are done while the product is in registers. With texts of all lengths it is what padding would have cost.
#
# ## 9 · The results

# %%
values, claims = experiment.findings(
    {
        "parity": worst,
        "masking": shares,
        "guessers": guessers,
        "recall": recalls,
        "speed": times,
    },
    arms,
)
everything = pd.concat(
    [
        differences.assign(part="parity"),
        looks.assign(part="looks"),
        shares.assign(part="masking"),
        by_rate.assign(part="by_rate"),
        curves.assign(part="curves"),
        guessers.assign(part="guessers"),
        guessed.drop(columns="said").assign(part="filled"),
        contrast.assign(part="tuning"),
        recalls.assign(part="recall"),
    ],
    ignore_index=True,
)
outputs.finish(
    everything, values, claims, recorded=dict.fromkeys(("speed",), recordings["cpu"].file)
)
pd.DataFrame(
    [
        {"claim": claim.text, "ours": results.ours(claim, results.flattened(values))}
        for claim in claims
    ]
)

# %% [markdown]
# ## 10 · What surprised us

# %%
found_first = at_one["share"].xs("functions")
evaluations = curves[curves.run == learning.SHIPPED].sort_values("tokens")
as_it_comes = next(iter(encoders))
most = means[[*experiment.MARKS]].idxmax()
display(
    Markdown(
        f"""
* **Words hold their own.** TF-IDF of characters finds {found_first[searching.CHARACTERS]:.1%} of the functions at once, of words {found_first[searching.WORDS]:.1%}; {arms[as_it_comes]} as it comes {found_first[as_it_comes]:.1%}. A function is called what it does.
* **To guess words is not to know what a text is about.** {arms[searching.BEFORE]}, mean-pooled, finds {found_first[searching.BEFORE]:.1%}; {params.tuning_steps} steps of fine-tuning make that {found_first[searching.AFTER]:.1%}.
* **Learning from masks is slow.** One token in {1 / card["masking"]["rate"]:.0f} teaches. After {evaluations.tokens.iloc[0] / 1e6:.1f} million tokens the shipped model was at {evaluations.held_out.iloc[0]:.2f} nats, where a unigram has {nats["unigram"]:.2f}; after {evaluations.tokens.iloc[-1] / 1e6:.1f} million at {evaluations.held_out.iloc[-1]:.2f}.
* **Two true neighbours are worth a lot.** Counting from both sides has {nats["both_neighbours"]:.2f} nats and {right["both_neighbours"]:.1%}, the shipped model {nats["bert"]:.2f} and {right["bert"]:.1%}.
* **Where {real.name} has nothing to say it looks at {most}**: {means[most]:.0%} of all attention.
"""
    )
)

# %% [markdown]
# Next: [08, a first Triton kernel](../README.md#the-articles).
