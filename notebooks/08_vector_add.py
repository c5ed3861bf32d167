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
# # 08 · Triton, from vector addition to the kernels of decoding
#
# **A kernel that adds two vectors does no work worth naming: it moves bytes. So it can be judged by them alone, and so can most of what decoding does beside its matrices. What makes such a kernel
# right at every size, and what would make it fast?**
#
# The article writes a first [Triton](https://github.com/triton-lang/triton) kernel, the addition of two vectors. Here it is taken apart: what an instance of it does, where it goes wrong, what the compiler makes of it; then
# the same for kernels that decoding uses: residual-add and RMSNorm ([1910.07467](https://arxiv.org/abs/1910.07467)), gated linear units ([2002.05202](https://arxiv.org/abs/2002.05202)), attention over the cache, sampling, verification of drafts.
#
# *Needs*: nothing but this repository; no GPU. *Takes*: about a minute on two cores. *The code*: `foredraft.kernels` (one file a kernel: kernel, wrapper, reference, bytes), `foredraft.articles.vector_add.experiment` (the tables below).
#
# **Times are not measured here.** No GPU was at hand when this was written. On a CPU the very same source is *interpreted*, which shows that it is right and nothing about its speed; and it is *compiled* for cards that are
# not here, which shows what they would run. What a kernel is worth only a clock can say: `foredraft record vector_add --device cuda` takes the times, and this notebook draws them where they have been recorded.

# %% tags=["parameters"]
profile = None  # "pocket", "smoke"; None: what params.yaml says
size = None  # elements of the addition that is looked at
dtype = None  # "float32", "float16", "bfloat16", "int32"
block = None  # elements of a program instance
warps = None  # of 32 threads, for each of them
blocks = None  # what section 5 compiles
warp_counts = None
rows = None  # positions of a pass, in section 6
seed = None

# %%
import pandas as pd
import torch
from IPython.display import Markdown, display

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.articles.vector_add import cards, compilation, experiment
from foredraft.articles.vector_add import plots as draw
from foredraft.kernels.vector_add import Launch, bytes_moved, reference, vector_add
from foredraft.repro import claims as results
from foredraft.repro import recording
from foredraft.repro.params import load as load_params

overrides = {
    "profile": profile,
    "size": size,
    "dtype": dtype,
    "block": block,
    "warps": warps,
    "blocks": blocks,
    "warp_counts": warp_counts,
    "rows": rows,
    "seed": seed,
}
params = load_params("vector_add", overrides)
outputs = Outputs(
    "vector_add",
    params.model_dump(mode="json"),
    [*paths.recordings("vector_add")],
    dtype=params.dtype,
)
display(Markdown(f"*Kernels in this process*: {experiment.how_it_ran()}."))

# %% [markdown]
# ## 1 · What a program instance does
#
# A Triton kernel is written for one *program instance*, and is started as many times as there are blocks. Its number says which elements are its own: `program_id(0) * BLOCK + arange(0, BLOCK)`. The last block hangs
# over the end, so a *mask* switches those places off, for the loads and for the store. The whole kernel:
#
# ```python
# at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
# within = at < n
# x = tl.load(x_ptr + at, mask=within)
# y = tl.load(y_ptr + at, mask=within)
# tl.store(out_ptr + at, x + y, mask=within)
# ```

# %%
picture = draw.instances(experiment.instances(19, 8))
outputs.save(picture, "instances")

# %%
programs = -(-params.size // params.block)
display(
    Markdown(
        f"{params.size:,} elements in blocks of {params.block:,} are **{programs:,} program instances**; the last one has "
        f"{params.size - (programs - 1) * params.block:,} elements, and {programs * params.block - params.size:,} places masked off."
    )
)

# %% [markdown]
# ## 2 · Right before fast
#
# First in front of you: the addition at that size, then every size around a block's edge, every type, and operands that are views: every second element, transposed, with their dimensions turned round, expanded (a stride of 0). Compared with
# torch to the last bit. The interpreter checks no bounds, so the tests put NaN around the buffers; it also cuts bfloat16 off where a GPU rounds, so the kernels round by hand there.

# %%
generator = torch.Generator().manual_seed(params.seed)
of_type = cards.DTYPES[params.dtype]
x, y = experiment.operands(params.size, of_type, "contiguous", generator=generator)
total = vector_add(x, y, launch=Launch(params.block, params.warps))
assert torch.equal(total, reference(x, y))
total[:5]

# %%
checked = experiment.correctness(params)
assert not checked.wrong.any()
agreeing = checked.pivot_table(
    index="view", columns="dtype", values="equal", aggfunc="sum", sort=False
)
display(
    Markdown(
        f"**{checked.equal.sum():,} sums of {len(checked)} pairs of operands agree with torch to the last bit, none differs**; sizes {', '.join(f'{n:,}' for n in params.sizes)}. Sums compared, by view and type:"
    )
)
agreeing

# %% [markdown]
# What it refuses, it refuses in words and before anything is written:

# %%
refused = {
    "broadcasting": (torch.ones(3, 1), torch.ones(3, 2)),
    "mixed types": (torch.ones(3), torch.ones(3, dtype=torch.float16)),
    "truth values": (torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)),
}
told = {}
for name, operands in refused.items():
    try:
        vector_add(*operands)
    except ValueError as error:
        told[name] = str(error)
assert list(told) == list(refused)
display(Markdown("\n".join(f"* *{name}*: {message}" for name, message in told.items())))

# %% [markdown]
# ## 3 · Bytes, floor, roofline
#
# Two reads and one write an element, one addition. Whatever a card's memory does a second, the addition cannot take less than its bytes over that; nor less than a launch. That floor, by the cards' data sheets (a launch taken for 5 µs), and the share of its adders that a card could keep busy with each kind of work:

# %%
floors, roofline = experiment.floors(params), experiment.roofline(params)
picture = draw.floors(floors, roofline, dtype=params.dtype)
outputs.save(picture, "floors")

# %%
moved = bytes_moved(params.size, of_type)
display(
    Markdown(
        f"{params.size:,} elements of {params.dtype} move **{moved / 1e6:.2f} MB**: "
        + ", ".join(
            f"{1e6 * moved / card.bandwidth:.2f} µs on an {name}"
            for name, card in cards.CARDS.items()
        )
        + ", at the least."
    )
)

# %% [markdown]
# So an addition is judged by its share of what a copy on the same card reaches, never by operations a second. And small vectors are judged by nothing at all: they measure the launch.
#
# ## 4 · The compiler's text, read aloud
#
# Compiling needs no GPU. It needs a process of its own, since in this one kernels are interpreted, and a cache of its own, since an old result would hide a new failure (`foredraft.kernels.compiled`). Twice the same kernel: once as the
# launcher has it compiled when all addresses and the size are multiples of 16, once when they are not.

# %%
made = compilation.compilations(params)
display(
    Markdown(
        f"**Aligned** (sm_90, {params.dtype}):\n\n```text\n{compilation.read_aloud(made.aligned)}\n```\n\n**Not aligned**, the first lines:\n\n```text\n"
        + "\n".join(compilation.read_aloud(made.unaligned).splitlines()[:14])
        + "\n```"
    )
)

# %%
widest, narrow = max(made.aligned.loads), max(made.unaligned.loads)
n_wide, n_narrow = sum(made.aligned.loads.values()), sum(made.unaligned.loads.values())
display(
    Markdown(
        f"Aloud: `%ctaid.x` is the instance's number. Times the block it is a number of 64 bits (`mul.wide`), so no offset wraps at 2³¹. `setp` makes the mask: one predicate for a whole vector where the size is known to be a multiple of 16, one for each element where it is not. "
        f"Aligned, a thread loads **{widest} bytes at a time** in {n_wide} loads; without that knowledge **{narrow} bytes**, in {n_narrow}. "
        f"Nothing in the source says `vector`. A thread has {params.block / (32 * params.warps):g} elements of its block, and the compiler gives it neighbours, as many as one load may move at an address of which it knows enough. "
        "A view that starts at an odd element loses that."
    )
)
outputs.save(draw.loads(made.loads), "loads")

# %% [markdown]
# ## 5 · Block size and warps
#
# What is a good launch? Memory answers after some 600 ns (a rule of thumb), so to keep it busy a card must have *bandwidth × latency* bytes under way (Little's law), two thirds of which are loads. What each launch can have under way follows from what was compiled:
# registers and threads say how many instances a multiprocessor holds, and each has both its blocks under way. This is a model: it says which launches *cannot* reach the bandwidth, not how near the others come.

# %%
outputs.save(draw.launches(made.launches), "launches")

# %%
made.launches[["block", "warps", "registers", "load_bytes", "n_loads", "occupancy", "attainable"]]

# %% [markdown]
# ## 6 · A second kernel: when fusion pays
#
# Add to the residual stream, then normalise. One by one, torch moves each row a dozen times, much of it in float32; fused, it comes in twice and goes out twice.

# %%
counted = compilation.fusion(params)
worth = experiment.worth(params, counted)
outputs.save(draw.fusion(counted, worth), "fusion")

# %%
sums = counted.groupby(["form", "rows", "way"])["bytes"].sum().unstack("way")
llama = worth[(worth.card == "H100 80 GB SXM") & (worth.form == "llama")].set_index("rows")
few, many = llama.index.min(), llama.index.max()
display(
    Markdown(
        f"At {many:,} rows the bytes saved are **{llama.loc[many, 'share_bytes']:.0%}** of an H100's time for a layer of width {params.hidden:,} (its bytes or its products, whichever takes longer); at {few} row they are "
        f"**{llama.loc[few, 'share_bytes']:.2%}**, since the weights are all that moves. What fusion saves in decoding is launches: {llama.loc[few, 'share_launches']:.0%} if the host is what is waited for, and under a CUDA graph "
        "no more than the gaps between operations. So it does not pay where one would look for it first: in the bytes of decoding."
    )
)
(sums["one by one"] / sums["fused"]).unstack("form").round(2)

# %% [markdown]
# ## 7 · The kernels of decoding
#
# Each beside a reference in torch that the tests hold it to. All of them, compiled for three cards: registers of a thread, bytes spilled, bytes that the widest load and store move. `wide_addresses`: no offset is computed with 32 bits.

# %%
assert not made.kernels.spilled.any()
assert made.kernels.wide_addresses.all()
registers = made.kernels.pivot_table(
    index="kernel", columns="target", values="registers", sort=False
)
display(
    Markdown(
        f"**{len(made.kernels)} compilations, {made.kernels.spilled.sum()} bytes spilled.** Registers of a thread:"
    )
)
registers.astype(int)

# %%
made.kernels.pivot_table(index="kernel", columns="target", values="load_bytes", sort=False).astype(
    int
)

# %% [markdown]
# Two of them draw at random, so that they are right is a matter of law. Sampling without a sort: scores are numbered in their order, and top-k's or top-p's cut is found four bits at a time, by counting what lies at or above sixteen numbers.
# Verification: keep with min(1, p/q), else draw from the residual. Below, draws at evenly spread shares beside `foredraft.Sampler`'s own law; and the law of a verified token, put together from what the kernel keeps and draws instead.
# It has to be the target's, whatever the draft was drawn from.

# %%
laws = pd.concat(
    [experiment.sampled_law(params), experiment.verified_law(params)], ignore_index=True
)
outputs.save(draw.laws(laws), "laws")

# %% [markdown]
# ## 8 · By the clock
#
# A kernel is kept where it wins: an addition of 64 MB or more at 92 % of the copy's bandwidth and never below `torch.add`, every other at 1.3 times torch and no slower than `torch.compile`, at batches of 1 to 32. Until that is recorded, none is wired into
# decoding: `foredraft.kernels` are there to be called by name.

# %%
recorded = recording.recordings("vector_add").get("cuda")
if recorded is None:
    display(
        Markdown(
            "**No times are recorded.** `foredraft record vector_add --device cuda` takes them on a machine with a GPU: every kernel against torch, eager and compiled, inputs in rotation so that no cache is measured, with the floor beside each time and a verdict."
        )
    )
else:
    display(Markdown(f"*Recorded on* {recorded.machine.name}, {recorded.date}."))
    display(outputs.save(draw.bandwidth(recorded.table), "bandwidth", recorded=recorded.file))

# %% [markdown]
# ## 9 · The results

# %%
timed = None if recorded is None else recorded.table
values, claims = experiment.findings(checked, made, counted, laws, timed)
everything = pd.concat(
    [
        checked.assign(part="correctness"),
        floors.assign(part="floors"),
        roofline.assign(part="roofline"),
        made.launches.assign(part="launches"),
        made.loads.assign(part="loads"),
        made.kernels.assign(part="kernels"),
        counted.assign(part="fusion"),
        worth.assign(part="worth"),
        laws.assign(part="laws"),
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
# ## 10 · What surprised us
#
# * **Nobody asks for the vector load.** It is not in the source; it follows from two facts about addresses that the launcher finds out at every call. Take them away and the kernel is as right, and makes several times as many loads.
# * **The interpreter is wrong in bfloat16 twice.** Its arithmetic is on raw bits, which casting to float32 avoids. Its cast back cuts the lower bits off, which only shows in the last digit: a tolerance would have hidden it, comparing to the last bit did not.
# * **Fusion does not save what it is praised for.** In decoding the rows are few and the weights are many: the bytes are nothing, the launches are what counts.
# * **A sort is not needed for top-p.** Eight passes that count find the very token that a sort finds, ties included.
#
# This is the last of the articles: [back to the list](../README.md#the-articles).
