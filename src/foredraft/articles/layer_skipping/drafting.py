"""Article 03 decodes: the model drafts for itself under some plans."""

from collections.abc import Iterable
from itertools import groupby

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from foredraft.analysis.acceptance import acceptance_by_position, acceptance_rate, logits_after
from foredraft.articles.layer_skipping.candidates import Candidate
from foredraft.articles.layer_skipping.experiment import Subject
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.loop import generate
from foredraft.decoding.prefill import prefill
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.models.decoder import Decoder
from foredraft.models.skip import SkipPlan
from foredraft.repro.live import steps
from foredraft.repro.params import LayerSkipping
from foredraft.sampling import Sampler


def drafting(
    subject: Subject,
    candidates: Iterable[Candidate],
    params: LayerSkipping,
    *,
    temperature: float | None = None,
) -> pd.DataFrame:
    """Draft and verify in earnest with each plan; give the rounds that drafted."""
    heat = params.temperature if temperature is None else temperature
    parts, known = [], prefill(subject.decoder, subject.prompts)
    for candidate in steps([*candidates], f"plans of {subject.name}"):
        made = generate(
            subject.decoder,
            subject.prompts,
            sampler=Sampler(temperature=heat),
            max_new_tokens=params.max_new_tokens,
            drafter=SelfDrafter(candidate.plan),
            exit_policy=FixedLength(params.length),
            generator=torch.Generator().manual_seed(params.seed),
            eos_token_id=[],
            prefilled=known,
        )
        rounds = made.trace.table()
        rounds = rounds.loc[rounds["drafted"] > 0]
        about = {"model": subject.name, "name": candidate.name, "length": params.length}
        parts.append(rounds.assign(**about, text=rounds["row"], one=1))
    return pd.concat(parts, ignore_index=True)


def drafted_text(
    subject: Subject,
    tokenizer: PreTrainedTokenizerBase,
    plan: SkipPlan,
    params: LayerSkipping,
    *,
    prompt: int,
) -> pd.DataFrame:
    """Continue one prompt, drafting under a plan; say of each token where it came from.

    Columns: text, confidence (the whole model's), fate ("accepted", "bonus", "recovered" or
    "plain"). The same in each line: off, drafted, accepted, `tokens` a round, cost (c by bytes) and
    `speedup`: tokens ÷ what rounds take if a pass of the whole model costs 1 and a draft step c.
    """
    before = subject.prompts[prompt]
    made = generate(
        subject.decoder,
        [before],
        sampler=Sampler(temperature=params.temperature),
        max_new_tokens=params.max_new_tokens,
        drafter=SelfDrafter(plan),
        exit_policy=FixedLength(params.length),
        generator=torch.Generator().manual_seed(params.seed),
        eos_token_id=[],
    )
    fates = []
    for row in (row for each in made.trace.rounds for row in each.rows):
        fates += [*["accepted"] * row.accepted, row.kind if row.drafted else "plain"]
    new, trace, cost = made.tokens[0], made.trace, plan.cost(subject.decoder.config)
    n_rounds, n_tokens = len(trace.rounds) - 1, len(new) - 1  # the prefill is no round of drafts
    return pd.DataFrame(
        {
            "text": [tokenizer.decode([token]) for token in new],
            "confidence": confidences(subject.decoder, before, new),
            "fate": fates,
            "off": _named(plan),
            "drafted": trace.drafted,
            "accepted": trace.accepted,
            "tokens": n_tokens / n_rounds,
            "cost": cost,
            "speedup": n_tokens / (n_rounds + cost * trace.drafted),
        }
    )


def _named(plan: SkipPlan) -> str:
    """Say which branches are off, runs of layers by their ends."""
    branches = {"attention": plan.attn, "MLP": plan.mlp}
    told = [f"{branch} {_runs(layers)}" for branch, layers in branches.items() if layers]
    return " and ".join(told) or "nothing"


def _runs(layers: Iterable[int]) -> str:
    placed = enumerate(sorted(layers))
    runs = [[i for _, i in run] for _, run in groupby(placed, lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def confidences(decoder: Decoder, before: list[int], new: list[int]) -> list[float]:
    """Give the probability of each new token under the plain softmax, from one reading."""
    logits = logits_after(decoder, [[*before, *new[:-1]]], len(new))[0].float()
    return logits.softmax(-1)[torch.arange(len(new)), torch.tensor(new)].tolist()


def in_earnest(rounds: pd.DataFrame) -> pd.DataFrame:
    """Give accepted ÷ drafted and α_k of each plan that drafted, with intervals over texts."""
    plan = ["model", "name"]
    positions = acceptance_by_position(rounds, *plan)
    return pd.concat([acceptance_rate(rounds, *plan), positions], ignore_index=True)


def greedy_texts(
    subject: Subject, candidates: Iterable[Candidate], params: LayerSkipping, *, n_prompts: int
) -> dict[str, list[list[int]]]:
    """Continue the first few prompts greedily: without drafts, then with each plan's."""
    drafters: dict[str, SelfDrafter | None] = {"no draft": None}
    drafters |= {each.name: SelfDrafter(each.plan) for each in candidates}
    prompts = subject.prompts[:n_prompts]
    known = prefill(subject.decoder, prompts)
    return {
        name: generate(
            subject.decoder,
            prompts,
            sampler=Sampler(temperature=0.0),
            max_new_tokens=params.max_new_tokens,
            drafter=drafter,
            exit_policy=FixedLength(params.length),
            eos_token_id=[],
            prefilled=known,
        ).tokens
        for name, drafter in steps(drafters.items(), "greedy texts")
    }
