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
# # 06 · Teaching a vision-language model to write tables
#
# **A model that reads words in pictures does not know what a table is. A few thousand pictures with their Markdown teach
# it. How few, by full fine-tuning or by LoRA, and what does it still get wrong?**
#
# The article fine-tunes LLaVA-1.5 with TRL's `SFTTrainer` on conversations about photographs; what its author is after are pictures of tables,
# to be turned into Markdown. Here is the recipe as it is written today, and the task, judged on tables that the model has not seen.
#
# *Needs*: nothing but this repository. *Takes*: about nine minutes on two cores. *The code*: `foredraft.training.llava` (`tables`, `conversations`, `answer_labels`, `sft`,
# `answering`, `table_scores`); the tables below are made in `foredraft.articles.llava_sft.experiment`.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke", "llava15"; None: what params.yaml says
model = None  # "pocket-llava", a folder in the Hugging Face format, or a hub id
data = None  # "tables", "vsft" (HuggingFaceH4/llava-instruct-mix-vsft), or a folder of images with their .md
method = None  # "full" or "lora": the one that is looked at closely
rank = None  # of LoRA's matrices
learning_rate = None
lora_learning_rate = None
examples = None  # tables to learn from, each seen once
levels = None  # which levels are learnt from
n_tables = None  # held-out tables a level
device = None
seed = None

# %%
import pandas as pd
from IPython.display import Markdown, display

from foredraft import paths
from foredraft.articles.llava_sft import experiment, saliency
from foredraft.articles.llava_sft import plots as draw
from foredraft.articles.llava_sft import table_plots as show
from foredraft.articles.outputs import Outputs
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.live import counter
from foredraft.repro.params import load as load_params

overrides = {
    "profile": profile,
    "model": model,
    "data": data,
    "method": method,
    "rank": rank,
    "learning_rate": learning_rate,
    "lora_learning_rate": lora_learning_rate,
    "examples": examples,
    "levels": levels,
    "n_tables": n_tables,
    "device": device,
    "seed": seed,
}
params = load_params("llava_sft", overrides)
recordings = recording.recordings("llava_sft")
recorded = recordings.get(params.device, recordings["cpu"])
outputs = Outputs(
    "llava_sft",
    params.model_dump(mode="json"),
    [
        *paths.weights(params.model),
        *paths.recordings("llava_sft"),
    ],
    device=params.device,
)

# %% [markdown]
# ## 1 · The task
#
# Tables are drawn, so their Markdown is known and there is no end of them. Level 1: one font, a plain grid of up to three by three, words of a small lexicon and numbers. Level 2: four fonts, rules or none, header
# styles, up to five rows of four, and words that nobody has seen. Level 3: the same, each column set to the left, the middle or the right, turned, noisy, blurred and in colour.

# %%
shown = {level: experiment.held_out(params, level)[:2] for level in params.judged_levels}
pictures = [
    (level, example.image, example.table.markdown())
    for level, some in shown.items()
    for example in some
]
outputs.save(show.levels(pictures), "levels")

# %% [markdown]
# Held-out tables are of other seeds. That alone would not do: small tables of few words meet by chance. So a table belongs to one side by a digest of its Markdown, and beyond level 1 each composed
# word does too. No seed can make training and test meet.
#
# ## 2 · What carries loss
#
# A conversation becomes one row of tokens: the question, the picture (a token a patch), the answer, its end. Only the answer and its end are to be learnt. The article's collator, like TRL's by default, leaves loss on
# the question and on the picture's placeholders. `answer_labels` uses a chat template that marks what is answered, its end included: that is what teaches the model to *stop*.

# %%
_, processor = experiment.base(params)
tokens = experiment.roles(processor, shown[params.judged_levels[0]][0])
outputs.save(show.roles(tokens), "roles")

# %% [markdown]
# ## 3 · Before
#
# The base has learnt to read: words and numbers, in reading order. It has never seen a pipe. Asked for Markdown, it does what it can.

# %%
reader, processor = experiment.base(params)
n_asked = params.n_tables * len(params.judged_levels)
before = experiment.judged(
    reader,
    processor,
    params,
    stage=experiment.BEFORE,
    report=counter("tables asked", n_asked),
)
first = before.iloc[0]
display(
    Markdown(
        f"Wanted:\n\n```text\n{first.reference}\n```\n\nwritten by the base:\n\n```text\n{first.predicted[:400]}\n```"
    )
)

# %% [markdown]
# ## 4 · Teaching it
#
# TRL's `SFTTrainer`, every example seen once, the tower that sees at rest, the projector and the language model learning: all their weights (*full*), or low-rank additions to them (*LoRA*,
# merged at the end). Rows of like length share a batch. Every so many steps the loss on tables of yet other seeds is taken, and the best state is kept: *really* kept, since
# the `Trainer` of today restores no weights of a LLaVA, neither the best nor on resuming, and says so in a log line only (`sft` has the way around, and the tests show both).

# %%
found = {}
for each in dict.fromkeys([params.method, *params.methods]):
    told = counter(f"{each}, steps", params.examples // params.batch_size)
    found[each] = experiment.taught(
        params, method=each, report=lambda step, told=told: told(step.step)
    )
logs = pd.concat([each.log for each in found.values()], ignore_index=True)
outputs.save(draw.learning(logs), "learning")

# %%
trained = {name: each.trained_parameters for name, each in found.items()}
padding = logs.groupby("method", sort=False)["padding"].mean()
display(
    Markdown(
        "; ".join(
            f"**{name}** trains {number:,} numbers, best after step {found[name].best_step} of {found[name].log.step.max()}, "
            f"{padding[name]:.1%} of what a batch holds is padding"
            for name, number in trained.items()
        )
        + "."
    )
)

# %% [markdown]
# ## 5 · After
#
# The same held-out tables, asked in the same words.

# %%
after = pd.concat(
    [
        experiment.judged(
            each.model,
            each.processor,
            params,
            stage=name,
            report=counter(f"tables asked of {name}", n_asked),
        )
        for name, each in found.items()
    ],
    ignore_index=True,
)
tables = pd.concat([before, after], ignore_index=True)
scores = experiment.scored(tables)
outputs.save(draw.scores(scores), "scores")

# %%
exact = scores.set_index(["stage", "level"])
display(
    Markdown(
        "Tables written exactly, of "
        + "; ".join(
            f"level {level} (n {exact.loc[(params.method, level), 'n']:.0f}): {exact.loc[('before', level), 'exact']:.0%} before, "
            + ", ".join(f"**{exact.loc[(name, level), 'exact']:.1%}** by {name}" for name in found)
            for level in params.judged_levels
        )
        + "."
    )
)
columns = ["stage", "level", "n", "exact", "exact_low", "exact_high"]
scores[[*columns, "text", "text_low", "text_high", "cells", "teds", "valid"]].round(3)

# %% [markdown]
# *exact*: the Markdown is the table's, up to spaces, its columns' alignments too. *text*: every cell stands in its place with its text, whatever the alignments. *cells*: the share of cells that stand in place with their text. *teds*: similarity of the trees of rows and cells by edit distance (arXiv 1911.10683).
# *valid*: one Markdown table and nothing else.

# %%
level = params.judged_levels[min(1, len(params.judged_levels) - 1)]
chosen = experiment.cases(tables, params, level=level, after=params.method)
outputs.save(show.before_and_after(chosen), "before_and_after")

# %% [markdown]
# ## 6 · What is still wrong
#
# Each wrong cell gets the first kind that fits it.

# %%
faults = experiment.faults_by_kind(after[after.stage == params.method])
outputs.save(draw.faults(faults), "faults")

# %%
misread = experiment.misread(after[after.stage == params.method])
outputs.save(draw.confusions(misread), "confusions")

# %%
by_size = experiment.by_size(after[after.stage == params.method])
worst = faults.groupby("kind")["count"].sum().sort_values(ascending=False)
display(
    Markdown(
        (
            f"Most frequent: **{worst.index[0]}** ({worst.iloc[0]} of {worst.sum()} faults). "
            if len(worst)
            else "No fault at all. "
        )
        + (
            f"The character most often misread: `{misread.iloc[0]['true']}` for `{misread.iloc[0]['read']}` ({misread.iloc[0]['count']} times)."
            if len(misread)
            else ""
        )
    )
)
by_size.round(3)

# %% [markdown]
# The whole table is right only if all of it is: at a share of p right cells, a table of twelve is exact with p¹² at best. That is why large tables lose, more than because they are large.
#
# ## 7 · Where it looks
#
# For some cells of one table: how much the log-probability of the cell's text depends on each patch of the picture (the norm of the gradient there).

# %%
table = shown[level][0]
places = [(0, 0), (1, 0), (1, 1)]
best = found[params.method]
maps = saliency.saliency(best.model, best.processor, table, places)
labels = [table.table.cells[row][column] for row, column in places]
outputs.save(show.saliency(table.image, maps, labels), "saliency")

# %% [markdown]
# ## 8 · How many examples
#
# By both methods, each time from the base on. The largest number is this notebook's own run; the others are recorded, since they would take it too long.

# %%
where = f"{recorded.machine.name}, {recorded.date}"
display(Markdown(f"*Recorded on* {where}."))
own = scores[scores.stage != experiment.BEFORE].rename(columns={"stage": "method"})
growth = pd.concat(
    [
        recorded.table[recorded.table.strategy == "growth"],
        own.assign(examples=params.examples),
    ],
    ignore_index=True,
).astype({"level": int, "examples": int})
outputs.save(draw.growth(growth), "growth", recorded=recorded.file)

# %%
steps = recorded.table[recorded.table.strategy == "step"]
outputs.save(draw.speed(experiment.parts_of_steps(steps)), "speed", recorded=recorded.file)

# %%
display(
    Markdown(
        "; ".join(
            f"{row.method}: {row.tokens_per_second:,.0f} tokens a second, {row.padding:.1%} padding, a batch is put together in {row.collation_median:.1%} of a step (n {row.n:.0f} steps)"
            for row in steps.itertuples()
        )
        + ". So the data are not what training waits for."
    )
)

# %% [markdown]
# ## 9 · LLaVA-1.5 itself
#
# `foredraft run llava_sft -p profile=llava15` teaches `llava-hf/llava-1.5-7b-hf` on `HuggingFaceH4/llava-instruct-mix-vsft` by LoRA, on one GPU, through the same code. No GPU was at hand for it; what it will take is foretold from its shape:

# %%
experiment.llava15_needs().round(1)

# %% [markdown]
# ## 10 · The results

# %%
values, claims = experiment.findings(scores, logs, trained, params)
everything = pd.concat(
    [
        scores.assign(part="scores"),
        faults.assign(part="faults"),
        misread.assign(part="misread"),
        by_size.assign(part="by_size"),
        growth.assign(part="growth"),
    ],
    ignore_index=True,
)
outputs.finish(everything, values, claims)
pd.DataFrame(
    [
        {"claim": claim.text, "ours": results.ours(claim, results.flattened(values))}
        for claim in claims
    ]
)

# %% [markdown]
# ## 11 · What surprised us
#
# * **The form is learnt in a minute, the reading is not.** Pipes and rules are right long before all letters are.
# * **The `Trainer` keeps a LLaVA's checkpoints and does not read them.** Resuming goes on with fresh weights and an old optimiser, and the best model at the end is the last.
# * **It tells letters apart and not how a column is set.** The rule row stands above the rows that would show it, and what has to be compared are edges some pixels apart: at level 3, the only one with alignments, it guesses (section 6, *alignment*).
#
# Next: [07, BERT from scratch](../README.md#the-articles).
