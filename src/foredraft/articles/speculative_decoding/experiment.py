"""Article 02: how far the drafts of a real model are accepted, and when speculation pays.

That it keeps the target's law is enumerated on nine words (`nine_words`). Intervals are 95 %
bootstrap intervals over texts, since the rounds of one text hang together; there is one text a
prompt, or several samples where prompts are few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from foredraft import paths
from foredraft.analysis.acceptance import (
    ROWS,
    logits_after,
    tokens_per_pass,
)
from foredraft.decoding import theory
from foredraft.decoding.draft import ModelDrafter
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.loop import Generation, generate
from foredraft.decoding.prefill import Prefill, prefill
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load, require_same_tokens
from foredraft.prompts import OwnPrompt, Prompt, chat_ids, code_prompts, own_file, own_prompts
from foredraft.repro.claims import Claim, notch
from foredraft.repro.live import steps
from foredraft.repro.params import SpeculativeDecoding
from foredraft.sampling import Sampler
from foredraft.types import DTYPES, Float, Tensor

CUTS = (0.3, 0.7)
"""Where in each text, as shares of its new tokens, a draft is drawn to compare the two rules."""

SPARSE = 3
"""Greedy texts are compared for one prompt in this many."""


RECORDED_PAIR = ("pocket-llama", "pocket-llama-draft")
"""The models that timings are recorded for."""


CLAIMS = {
    "acceptance": "Acceptance rate at the parameters' temperature and draft length",
    "tokens_per_pass": "Tokens for each target pass over a full draft, the same setting",
    "overlap": "Mean β = Σ min(p, q) along the target's own text, the same temperature",
    "coldest": "Acceptance rate at the lowest temperature swept (0 is greedy)",
    "block": "Further tokens a target pass by block verification, longest draft length",
}

TIMED = {
    "speedup_greedy": (
        "greedy",
        "foredraft",
        "Speed-up with the pocket draft model, greedy: the fastest way (recorded)",
    ),
    "speedup_sampled": (
        "temperature 1",
        "foredraft",
        "The same at temperature 1: the fastest way (recorded)",
    ),
    "transformers_greedy": (
        "greedy",
        "transformers",
        "The same of transformers' assisted generation, greedy: the fastest way (recorded)",
    ),
}
"""Over our own autoregressive decoding: the fastest rule and draft length, batch 1."""


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """A target, the model that drafts for it, and the tokenizer of both."""

    target: Decoder
    draft: Decoder
    tokenizer: PreTrainedTokenizerBase


def load_pair(params: SpeculativeDecoding, dtype: str | None = None) -> Pair:
    """Load both models; ValueError, with what to run instead, if they cannot be had."""
    precision = DTYPES[dtype or params.dtype]
    try:
        draft, read_by = load(params.draft_model, device=params.device, dtype=precision)
        target, tokenizer = load(params.model, device=params.device, dtype=precision)
        require_same_tokens(tokenizer, read_by)
    except ValueError as error:
        instead = "foredraft run speculative_decoding -p profile=pocket"
        raise ValueError(f"{error}. What runs anywhere is the pocket pair: {instead}") from error
    return Pair(target, draft, tokenizer)


def prompts(tokenizer: PreTrainedTokenizerBase, params: SpeculativeDecoding) -> list[Prompt]:
    """Give the reader's own prompts; else the questions, as chats; else code, kind by kind."""
    if params.prompts_file:
        return [_own(tokenizer, each) for each in own_prompts(params.prompts_file)]
    if params.questions:
        return [Prompt("question", chat_ids(tokenizer, each)) for each in params.questions]
    found = code_prompts(params.kinds, params.n_prompts)
    return [Prompt(each.kind, tuple(tokenizer.encode(each.text()))) for each in found]


def prompt_file(params: SpeculativeDecoding) -> Path:
    """Name the file that prompts come from, unless they are questions."""
    return own_file(params.prompts_file) if params.prompts_file else paths.prompts("pocket")


def _own(tokenizer: PreTrainedTokenizerBase, prompt: OwnPrompt) -> Prompt:
    ids = chat_ids(tokenizer, prompt.text) if prompt.chat else tokenizer.encode(prompt.text)
    return Prompt(prompt.kind, tuple(ids))


def ends(params: SpeculativeDecoding) -> list[int] | None:
    """Let a text end where the model ends it; our code goes on to the full length, for equal n."""
    return None if params.questions or params.prompts_file else []


@final
@dataclass(frozen=True, slots=True)
class Run:
    """One setting over all prompts: its rounds that drafted, and each text with its prompt."""

    rounds: pd.DataFrame
    texts: list[list[int]]
    starts: list[int]
    """How many tokens of each text are prompt."""
    kinds: list[str]


def speculate(
    pair: Pair,
    asked: Sequence[Prompt],
    params: SpeculativeDecoding,
    *,
    temperature: float | None = None,
    length: int | None = None,
) -> Run:
    """Decode all prompts in one batch; what is None is what the parameters say."""
    heat = params.temperature if temperature is None else temperature
    gamma = length or params.length
    samples = 1 if heat == 0 else params.samples  # greedy texts of one prompt are one text
    rows = [prompt for prompt in asked for _ in range(samples)]
    known = _read_once(pair.target, tuple(tuple(prompt.ids) for prompt in rows))
    made = generate(
        pair.target,
        known.prompts,
        sampler=Sampler(temperature=heat, top_p=params.top_p),
        max_new_tokens=params.max_new_tokens,
        drafter=ModelDrafter(pair.draft),
        exit_policy=FixedLength(gamma),
        verification=params.verification,
        generator=torch.Generator(pair.target.device).manual_seed(params.seed),
        eos_token_id=ends(params),
        prefilled=known,
    )
    rounds = _rounds(made, rows)
    rounds = rounds.assign(temperature=float(heat), length=gamma)
    texts = [[*prompt.ids, *new] for prompt, new in zip(rows, made.tokens, strict=True)]
    starts = [len(prompt.ids) for prompt in rows]
    return Run(rounds, texts, starts, [prompt.kind for prompt in rows])


@lru_cache(maxsize=1)
def _read_once(target: Decoder, prompts: tuple[tuple[int, ...], ...]) -> Prefill:
    """Read prompts with the target once for all lengths and temperatures."""
    return prefill(target, prompts)


def _rounds(made: Generation, rows: Sequence[Prompt]) -> pd.DataFrame:
    """Give the rounds that drafted: the prefill does not, nor does a row's last token."""
    table = made.trace.table()
    table = table.loc[table["drafted"] > 0]
    kinds = [rows[row].kind for row in table["row"].tolist()]
    return table.assign(text=table["row"], kind=kinds, one=1)


def tokens_foretold(rounds: pd.DataFrame) -> pd.DataFrame:
    """Set beside the tokens a pass of every length what the α of the longest drafts foretell.

    `by_position` takes each α_k, `one_alpha` their mean over all drafts that were judged (eq. 1).
    """
    table = tokens_per_pass(rounds, "length")
    longest = rounds.loc[rounds["length"] == rounds["length"].max()]
    alphas = theory.position_acceptances(longest)
    judged = (longest["accepted"] + (longest["accepted"] < longest["drafted"])).sum()
    alpha = float(longest["accepted"].sum() / judged)
    lengths = table["length"].tolist()
    return table.assign(
        one_alpha=[theory.expected_tokens(alpha, length) for length in lengths],
        by_position=[theory.expected_tokens(alphas, length) for length in lengths],
    )


def overlaps(pair: Pair, run: Run, params: SpeculativeDecoding) -> pd.DataFrame:
    """Give β and p(argmax q) at every position of the run's texts, which follow the target's law.

    The second is what a greedy draft, a one-hot proposal, would be accepted with.
    """
    sampler, parts = _sampler(run, params), []
    for row in range(len(run.texts)):
        text, new = run.texts[row][:-1], len(run.texts[row]) - run.starts[row]
        p, q = (sampler.probs(logits_after(model, [text], new)[0]) for model in _models(pair))
        favourite = p.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)
        part = pd.DataFrame({"overlap": theory.overlap(p, q).cpu(), "favourite": favourite.cpu()})
        parts.append(part.assign(text=row, kind=run.kinds[row]))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(one=1, temperature=sampler.temperature)


def rules_compared(pair: Pair, run: Run, params: SpeculativeDecoding) -> pd.DataFrame:
    """Give the tokens that both rules expect of the same drafts, for every length, a line a draft.

    No coin is tossed, and both look at the same drafts, so that the difference has little noise.
    """
    generator = torch.Generator(pair.target.device).manual_seed(params.seed)
    sampler, longest = _sampler(run, params), max(params.lengths)
    parts = []
    for cut in steps(CUTS, "both rules"):
        whole = zip(run.texts, run.starts, strict=True)
        texts = [text[: start + int(cut * (len(text) - start))] for text, start in whole]
        for first in range(0, len(texts), ROWS):
            rows = texts[first : first + ROWS]
            numbers = range(first, first + len(rows))
            chances = _chances(pair, rows, sampler, longest, generator)
            parts += [
                pd.DataFrame(
                    {rule: 1 + each[:, :length].sum(-1) for rule, each in chances.items()}
                ).assign(length=length, one=1, text=numbers)
                for length in params.lengths
            ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(gain=table["block"] - table["token"])


def _chances(
    pair: Pair,
    texts: list[list[int]],
    sampler: Sampler,
    length: int,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, "text drafted"]]:
    """Draft after each text; give the chance that at least 1, 2, … drafts stand, by rule."""
    made = generate(
        pair.draft,
        texts,
        sampler=sampler,
        max_new_tokens=length,
        generator=generator,
        eos_token_id=[],
    )
    drafts = torch.tensor(made.tokens, device=pair.target.device)
    whole = [[*text, *new] for text, new in zip(texts, made.tokens, strict=True)]
    p, q = (
        sampler.probs(logits_after(model, whole, length + 1)).double() for model in _models(pair)
    )
    return {rule: chances.cpu() for rule, chances in theory.stand(drafts, q[:, :-1], p).items()}


def divergences(asked: Sequence[Prompt], params: SpeculativeDecoding) -> pd.DataFrame:
    """Compare greedy speculative with greedy plain decoding in the set precision and in bfloat16.

    A line for every third prompt: the `position` of the first token that differs (−1: none), and
    there the `margin`, the target's lead of its best over its second-best logit, in units of the
    last place of the former.
    """
    rows = []
    some = asked[::SPARSE]
    for dtype in steps(dict.fromkeys((params.dtype, "bfloat16")), "greedy texts"):
        pair = load_pair(params, dtype)
        plain, drafted = (
            _greedy(pair, some, params, drafter) for drafter in (None, ModelDrafter(pair.draft))
        )
        for prompt, once, again in zip(some, plain, drafted, strict=True):
            place = next((i for i, (a, b) in enumerate(zip(once, again)) if a != b), -1)  # noqa: B905
            margin = float("nan")
            if place >= 0:
                text = [*prompt.ids, *once[:place]]
                margin = _margin(logits_after(pair.target, [text], 1)[0, 0])
            line = {"dtype": dtype, "kind": prompt.kind, "position": place, "margin": margin}
            rows.append({**line, "tokens": len(once)})
    return pd.DataFrame(rows)


def _greedy(
    pair: Pair, asked: Sequence[Prompt], params: SpeculativeDecoding, drafter: ModelDrafter | None
) -> list[list[int]]:
    return generate(
        pair.target,
        [prompt.ids for prompt in asked],
        sampler=Sampler(temperature=0.0),
        max_new_tokens=params.max_new_tokens,
        drafter=drafter,
        exit_policy=FixedLength(params.length),
        eos_token_id=ends(params),
    ).tokens


def _margin(logits: Float[Tensor, " vocab"]) -> float:
    best, second = logits.topk(2).values
    last_place = best.abs() * torch.finfo(logits.dtype).eps
    return float((best - second) / last_place)


def _sampler(run: Run, params: SpeculativeDecoding) -> Sampler:
    return Sampler(temperature=float(run.rounds["temperature"].iloc[0]), top_p=params.top_p)


def _models(pair: Pair) -> tuple[Decoder, Decoder]:
    return pair.target, pair.draft


def costs(pair: Pair, params: SpeculativeDecoding, recorded: pd.DataFrame) -> theory.Costs:
    """Give what the parts of a round cost: as recorded in ms, or in target steps by the weights.

    Recorded are the pocket models. Of another pair only the bytes are known: a step then costs what
    reading the weights does, and verification one step.
    """
    if (params.model, params.draft_model) != RECORDED_PAIR:
        ratio = weight_ratio(pair)
        return theory.Costs(target=1.0, draft=ratio, verify=dict.fromkeys(params.lengths, 1.0))
    rows = [
        row
        for row in recorded.to_dict("records")
        if (row["strategy"], row["library"], row["batch"]) == ("draft model", "foredraft", 1)
        and row["sampler"] == "temperature 1"
    ]
    nearest = min(rows, key=lambda row: abs(row["length"] - params.length))
    return theory.Costs(
        target=nearest["target_ms"],
        draft=nearest["draft_ms"],
        verify=_interpolated(
            {0: nearest["target_ms"]} | {r["length"]: r["verify_ms"] for r in rows}
        ),
    )


def _interpolated(times: Mapping[int, float]) -> dict[int, float]:
    """Fill the lengths between those that were timed, up to the longest, along straight lines."""
    known = sorted(times)
    lengths = range(1, known[-1] + 1)
    passes = np.interp(lengths, known, [times[length] for length in known])
    return dict(zip(lengths, passes.tolist(), strict=True))


def fastest_arms(
    recorded: pd.DataFrame, *, library: str | None = None, batch: int | None = 1
) -> pd.DataFrame:
    """Give of each way to decode the recorded row of its fastest draft length; None: all."""
    chosen = recorded
    for column, wanted in (("library", library), ("batch", batch)):
        if wanted is not None:
            chosen = chosen.loc[chosen[column] == wanted]
    arm = ["sampler", "strategy", "library", "batch"]
    best = chosen.groupby(arm, sort=False)["tokens_per_second_median"].idxmax()
    return recorded.loc[best].reset_index(drop=True)


def gain_by_batch(arms: pd.DataFrame) -> pd.DataFrame:
    """Give tokens a second ÷ those of autoregressive decoding at the same sampler and batch."""
    wide = arms.pivot_table(
        index=["sampler", "batch"], columns="strategy", values="tokens_per_second_median"
    )
    return wide.div(wide["autoregressive"], axis=0)


def weight_ratio(pair: Pair) -> float:
    """Give the draft model's weights ÷ the target's: c, if reading them were all."""
    draft, target = (
        sum(tensor.numel() for tensor in m.state_dict().values()) for m in (pair.draft, pair.target)
    )
    return draft / target


def findings(
    tables: Mapping[str, pd.DataFrame], recorded: pd.DataFrame
) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back.

    `tables` hold one row each under the names of CLAIMS, and one a kind under `kinds`.
    """
    values: dict[str, Any] = {
        "kinds": {row["kind"]: _interval(row) for row in tables["kinds"].to_dict("records")}
    }
    claims = []
    for name, text in CLAIMS.items():
        (row,) = tables[name].to_dict("records")
        values[name] = _interval(row)
        spread = (row["high"] - row["low"]) / 2
        claims.append(Claim(name, text, f"{name}.mean", n=row["n"], spread=spread))
    for name, (sampler, library, text) in TIMED.items():
        row = _fastest(recorded, sampler, library)
        values[name] = {key: row[f"speedup_{key}"] for key in ("median", "min", "max")}
        values[name] |= {"strategy": row["strategy"], "length": row["length"]}
        n, spread = int(row["n"]), notch(row["speedup_iqr"], row["n"])
        claims.append(Claim(name, text, f"{name}.median", n=n, spread=spread))
    return values, claims


def _fastest(recorded: pd.DataFrame, sampler: str, library: str) -> dict[str, Any]:
    """Give the row of the fastest way, at batch 1, in which a draft model takes part."""
    rows = fastest_arms(recorded, library=library)
    drafting = rows["strategy"].str.startswith("draft model")
    rows = rows.loc[(rows["sampler"] == sampler) & drafting].reset_index(drop=True)
    row = rows.to_dict("records")[int(rows["tokens_per_second_median"].idxmax())]
    return {str(key): value for key, value in row.items()}


def _interval(row: Mapping[Any, Any]) -> dict[str, float]:
    return {name: float(row[name]) for name in ("mean", "low", "high")}
