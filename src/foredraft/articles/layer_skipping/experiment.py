"""Article 03: what each branch of a decoder is worth when the decoder drafts for itself.

A plan is judged at the first step of a draft, as `SelfDrafter` takes it: the verified text has the
whole model's keys and values, and only the last token is read under the plan. β = Σ min(p, q) is
then exact, with no coin tossed. What later steps of a draft are worth, whose keys and values are
the draft's own, is measured by drafting (`drafting`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerBase

from foredraft.analysis.published import published
from foredraft.analysis.speedup_lines import best_gain
from foredraft.analysis.statistics import ratios
from foredraft.articles.layer_skipping.candidates import Candidate
from foredraft.articles.layer_skipping.timings import TIMED, on_the_clock
from foredraft.decoding import theory
from foredraft.decoding.loop import generate
from foredraft.models.attention import KVHeads, Mask, NewKVHeads
from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load
from foredraft.models.rotary import Rotation
from foredraft.models.skip import Parts, SkipPlan
from foredraft.prompts import code_prompts
from foredraft.repro.claims import Claim, notch
from foredraft.repro.live import steps
from foredraft.repro.params import LayerSkipping
from foredraft.sampling import Sampler
from foredraft.types import Float, Int, Tensor

ARTICLE_PLAN = SkipPlan(
    attn=(4, 7, 8, 9, 10, 12, 16, 18, 19, 25, 29, 31, 34, 35, 36, 37, 38, 39, 41),
    mlp=(2, 3, 6, 7, 8, 9, 14, 18, 20, 23, 25, 31, 33, 34, 35, 36, 37, 41),
)
"""The branches of gemma-2-9b-it that the article's draft goes without."""

TARGET_RATE, DRAFT_RATE, SELF_RATE = 29.65, 48.82, 24.08
"""Tokens a second in the article: target alone, draft alone, drafting for itself."""

ARTICLE_ACCEPTANCE = 0.4057


CLAIMS = {
    "best": "β of the plan with the highest predicted speed-up, plain pocket-gemma2",
    "early_exit": "β of an early exit after half the layers, plain pocket-gemma2",
    "early_exit_trained": "The same, trained by LayerSkip's recipe",
    "loss": "Loss on held-out code, plain pocket-gemma2 (nats a token)",
    "loss_trained": "The same, trained by LayerSkip's recipe",
}


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """A model, prompts, and a text of each that the model has written, ready to be read again.

    `cache` holds the texts; `places[row]` are positions whose next token is to be drafted, and
    `log_p` the target's own law there.
    """

    name: str
    decoder: Decoder
    prompts: list[list[int]]
    kinds: list[str]
    texts: Int[Tensor, "row width"]
    places: Int[Tensor, "row place"]
    log_p: Float[Tensor, "row place vocab"]
    cache: KVCache


def subject(name: str, params: LayerSkipping) -> Subject:
    """Load a model, let it continue the prompts by its own law, and read what it wrote."""
    decoder, tokenizer = load(name, dtype=torch.float32)
    kinds, prompts = _prompts(tokenizer, params)
    return read(name, decoder, prompts, kinds, params)


def _prompts(
    tokenizer: PreTrainedTokenizerBase, params: LayerSkipping
) -> tuple[list[str], list[list[int]]]:
    found = code_prompts(params.kinds, params.n_prompts)
    return [each.kind for each in found], [tokenizer.encode(each.text()) for each in found]


@torch.inference_mode()
def read(
    name: str,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    kinds: Sequence[str],
    params: LayerSkipping,
) -> Subject:
    """Write a text after each prompt at the parameters' temperature, and keep what reading gave."""
    made = generate(
        decoder,
        prompts,
        sampler=Sampler(temperature=params.temperature),
        max_new_tokens=params.max_new_tokens,
        generator=torch.Generator().manual_seed(params.seed),
        eos_token_id=[],
    )
    rows = [[*prompt, *new] for prompt, new in zip(prompts, made.tokens, strict=True)]
    width = max(map(len, rows))
    texts = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    spots = np.linspace(0, params.max_new_tokens - 2, params.n_positions).astype(int)
    starts = torch.tensor([len(prompt) for prompt in prompts])
    places = starts[:, None] + torch.from_numpy(spots)
    cache = decoder.new_cache(len(rows), width)
    hidden = decoder.hidden(texts, cache)
    cache.commit(width)
    logits = decoder.logits(hidden.take_along_dim(places[..., None], 1))
    log_p = _log_law(logits, params.temperature)
    return Subject(name, decoder, [*map(list, prompts)], [*kinds], texts, places, log_p, cache)


@torch.inference_mode()
def first_steps(
    subject: Subject, candidates: Iterable[Candidate], params: LayerSkipping
) -> pd.DataFrame:
    """Take each plan's first draft step at every place; a line a plan and text, with means.

    `overlap` is β = Σ min(p, q), `agreement` whether both have one favourite, and `divergence`
    KL(p‖q): by so many nats a token the loss on the target's own text is higher.

    All places are read at once, each behind the whole model's keys and values.
    """
    chosen = [*candidates, Candidate("whole", "whole model", SkipPlan())]
    first = _FirstSteps(subject)
    tables = []
    for candidate in steps(chosen, "plans"):
        log_q = first.log_law(candidate.plan, params.temperature)
        values = compared(subject.log_p, log_q)
        means = {name: value.mean(-1).tolist() for name, value in values.items()}
        tables.append(_lines(subject, candidate, means))
    return pd.concat(tables, ignore_index=True)


@final
class _FirstSteps:
    """First draft steps at all places of a subject's texts, whatever the plan.

    Each place sees the text before it as the whole model has read it, and itself. Up to the first
    layer that a plan skips, it is the whole model that reads: that is done once for all plans.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.memory = _Places(subject)
        decoder = subject.decoder
        hidden = decoder.embedded(subject.texts.gather(1, subject.places))
        self.states = [hidden, *decoder.through(hidden, self.memory, SkipPlan())]

    def log_law(self, plan: SkipPlan, temperature: float) -> Float[Tensor, "row place vocab"]:
        """Give the law of the draft's first token at every place."""
        decoder = self.subject.decoder
        plan.check(decoder.config.n_layers)
        shared = min(plan.attn | plan.mlp, default=decoder.config.n_layers)
        hidden = self.states[shared]
        for layer in list(decoder.layers)[shared:]:
            hidden = layer(hidden, self.memory, plan)
        return _log_law(decoder.logits(hidden), temperature)


@final
class _Places:
    """The memory of single tokens, each of which sees the text before it and itself."""

    def __init__(self, subject: Subject) -> None:
        cache, config = subject.cache, subject.decoder.config
        self.n_places, self.dtype = subject.places.shape[1], subject.decoder.dtype
        self.group = config.n_heads // config.n_kv_heads
        self.positions = subject.places
        self.rotation: Rotation = config.rotation(self.positions, self.dtype)
        self.keys, self.values = (
            [torch.nn.functional.pad(each, (0, 0, 0, self.n_places)) for each in layers]
            for layers in (cache.keys, cache.values)
        )
        self._masks: dict[int | None, Mask] = {}

    def extend(
        self, layer: int, keys: NewKVHeads, values: NewKVHeads, window: int | None
    ) -> tuple[KVHeads, KVHeads]:
        """Give the whole model's, with the places' own behind them."""
        for known, new in ((self.keys[layer], keys), (self.values[layer], values)):
            known[:, :, -self.n_places :] = new.transpose(1, 2)
        return self.keys[layer], self.values[layer]

    def is_plainly_causal(self, window: int | None) -> bool:
        """No: no place sees another."""
        return False

    def mask(self, window: int | None) -> Mask:
        """Make it once for all layers of a window."""
        if window not in self._masks:
            here = self.positions[..., None]
            slots = torch.arange(self.keys[0].shape[2] - self.n_places)
            before = slots < here
            if window is not None:
                before &= slots > here - window
            own = torch.eye(self.n_places, dtype=torch.bool).expand(len(here), -1, -1)
            visible = torch.cat([before, own], -1)[:, None]
            mask = torch.zeros(visible.shape, dtype=self.dtype)
            mask = mask.masked_fill_(~visible, -torch.inf).repeat(1, 1, self.group, 1)
            self._masks[window] = mask
        return self._masks[window]


def compared(
    log_p: Float[Tensor, "*place vocab"], log_q: Float[Tensor, "*place vocab"]
) -> dict[str, Float[Tensor, "*place"]]:
    """Say how near a draft's law q is to the target's p."""
    p = log_p.exp()
    return {
        "overlap": theory.overlap(p, log_q.exp()),
        "agreement": (log_p.argmax(-1) == log_q.argmax(-1)).float(),
        "divergence": (p * (log_p - log_q)).sum(-1),
    }


def _lines(
    subject: Subject, candidate: Candidate, means: Mapping[str, list[float]]
) -> pd.DataFrame:
    plan = candidate.plan
    return pd.DataFrame(
        {
            "model": subject.name,
            "family": candidate.family,
            "name": candidate.name,
            "plan": plan.to_json(),
            "branches": len(plan),
            "cost": plan.cost(subject.decoder.config),
            "text": range(len(subject.prompts)),
            **means,
            "one": 1,
        }
    )


def _log_law(
    logits: Float[Tensor, "*place vocab"], temperature: float
) -> Float[Tensor, "*place vocab"]:
    return (logits.float() / temperature).log_softmax(-1)


def judged(steps: pd.DataFrame) -> pd.DataFrame:
    """Give each plan's mean β with its interval over texts, its other means, and what it brings.

    `gain` is the best speed-up that β, for α at all positions, and the cost by bytes can give.
    """
    plan = ["model", "family", "name", "plan", "branches", "cost"]
    table = ratios(steps, plan, "overlap", "one").rename(columns={"mean": "overlap"})
    for other in ("agreement", "divergence"):
        table[other] = ratios(steps, plan, other, "one")["mean"]
    pairs = list(zip(table["overlap"].clip(0, 1), table["cost"], strict=True))
    table["gain"] = [best_gain(alpha, cost) for alpha, cost in pairs]
    return table


def products(table: pd.DataFrame, families: Sequence[str], parts: str) -> pd.DataFrame:
    """Set beside the β of joint plans the product of the β of their parts (a family of plans).

    `gap` is log(joint ÷ product): 0 where harms multiply, below where they add up to more.
    """
    lines = []
    for model, rows in table.groupby("model", sort=False):
        single = {
            SkipPlan.from_json(plan): beta
            for plan, family, beta in zip(
                rows["plan"], rows["family"], rows["overlap"], strict=True
            )
            if family == parts
        }
        for row in rows.loc[rows["family"].isin(families)].to_dict("records"):
            whole = SkipPlan.from_json(row["plan"])
            betas = [beta for part, beta in single.items() if len(part & whole) == len(part)]
            product = float(np.prod(betas))
            line = {"model": model, "kind": row["family"], "branches": row["branches"]}
            gap = float(np.log(row["overlap"] / product))
            lines.append({**line, "joint": row["overlap"], "product": product, "gap": gap})
    return pd.DataFrame(lines)


def likeness(decoder: Decoder) -> pd.DataFrame:
    """Give the cosine of every two layers' weights, norms left out; a line a pair."""
    with torch.no_grad():
        flat = [
            torch.cat([each.flatten() for each in layer.parameters() if each.dim() > 1])
            for layer in decoder.layers
        ]
    pairs = [(i, j) for i in range(len(flat)) for j in range(len(flat))]
    return pd.DataFrame(
        [
            {"layer": i, "other": j, "cosine": float(cosine_similarity(flat[i], flat[j], dim=0))}
            for i, j in pairs
        ]
    )


def by_distance(table: pd.DataFrame) -> pd.DataFrame:
    """Average `likeness` over the pairs of layers at one distance."""
    distance = (table["layer"] - table["other"]).abs()
    apart = table.assign(distance=distance).loc[distance > 0]
    return apart.groupby("distance", as_index=False)["cosine"].mean()


@torch.inference_mode()
def trimmed(subject: Subject, plan: SkipPlan, params: LayerSkipping) -> pd.DataFrame:
    """Give β of one plan's first step with the draft held to the tokenizer's first N tokens.

    Byte pairs are numbered as they were merged, by frequency, so that the first are the common
    ones. `cost` leaves out the head's other rows.
    """
    config, parts = subject.decoder.config, Parts.of(subject.decoder.config)
    row = parts.head / parts.total(config.n_layers) / config.vocab_size
    log_q = _FirstSteps(subject).log_law(plan, params.temperature)
    lines = []
    for size in sorted({*params.vocabularies, config.vocab_size}):
        kept = log_q[..., :size].log_softmax(-1).exp()
        beta = theory.overlap(subject.log_p[..., :size].exp(), kept).mean(-1)
        cost = plan.cost(config) - (config.vocab_size - size) * row
        line = {"model": subject.name, "vocabulary": size, "cost": cost, "one": 1}
        rows = range(len(subject.prompts))
        lines.append(pd.DataFrame({**line, "overlap": beta.tolist(), "text": rows}))
    table = ratios(pd.concat(lines), ["model", "vocabulary", "cost"], "overlap", "one")
    table = table.rename(columns={"mean": "overlap"})
    gains = zip(table["overlap"], table["cost"], strict=True)
    return table.assign(gain=[best_gain(alpha, cost) for alpha, cost in gains])


@torch.inference_mode()
def read_alone(subject: Subject, plan: SkipPlan, params: LayerSkipping) -> float:
    """Give the mean β of a draft that read all of the text under the plan, by itself.

    That is what one teacher-forced pass measures, and what a draft without the target's keys and
    values would have.
    """
    log_q = _laws_alone(subject, subject.decoder, params, plan)
    return float(theory.overlap(subject.log_p.exp(), log_q.exp()).mean())


@torch.inference_mode()
def trained_alone(subject: Subject, shallow: Decoder, params: LayerSkipping) -> pd.DataFrame:
    """Judge a model of fewer layers that had its training to itself; lines as of `first_steps`.

    Its plan is that of an exit after as many layers, which reads as many bytes.
    """
    compared_laws = compared(subject.log_p, _laws_alone(subject, shallow, params))
    means = {name: value.mean(-1).tolist() for name, value in compared_laws.items()}
    n_layers = shallow.config.n_layers
    plan = SkipPlan.early_exit(n_layers, subject.decoder.config.n_layers)
    return _lines(subject, Candidate("trained alone", f"{n_layers} layers alone", plan), means)


def _laws_alone(
    subject: Subject, draft: Decoder, params: LayerSkipping, plan: SkipPlan | None = None
) -> Float[Tensor, "row place vocab"]:
    """Give the law of a draft that reads the texts by itself."""
    hidden = draft.hidden(subject.texts, skip=plan)
    logits = draft.logits(hidden.take_along_dim(subject.places[..., None], 1))
    return _log_law(logits, params.temperature)


@torch.inference_mode()
def losses(subject: Subject) -> pd.DataFrame:
    """Give the loss on the prompts, which are code that training held out; a line a prompt."""
    lines = []
    for row, prompt in enumerate(subject.prompts):
        tokens = torch.tensor([prompt])
        log_p = subject.decoder(tokens)[:, :-1].float().log_softmax(-1)
        loss = -log_p.gather(-1, tokens[:, 1:, None]).sum()
        line = {"model": subject.name, "text": row, "loss": float(loss)}
        lines.append({**line, "tokens": len(prompt) - 1})
    return pd.DataFrame(lines)


def findings(
    tables: Mapping[str, pd.DataFrame], recorded: pd.DataFrame, trained: str
) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back.

    `tables` hold one row each under the names of CLAIMS, with `mean`, `low` and `high`; `trained`
    is the model of LayerSkip's recipe.
    """
    values: dict[str, Any] = {}
    claims = []
    for name, text in CLAIMS.items():
        (row,) = tables[name].to_dict("records")
        values[name] = {key: float(row[key]) for key in ("mean", "low", "high")}
        spread = (row["high"] - row["low"]) / 2
        claims.append(Claim(name, text, f"{name}.mean", n=row["n"], spread=spread))
    values["article_cost"] = ARTICLE_PLAN.cost(published("gemma-2-9b"))
    claims.append(
        Claim(
            "article_cost",
            "c of the article's plan on gemma-2-9b: ours by bytes, the article's by the clock",
            "article_cost",
            article=round(TARGET_RATE / DRAFT_RATE, 3),
        )
    )
    fastest = on_the_clock(recorded)
    for name, (is_trained, text) in TIMED.items():
        rows = fastest.loc[
            (fastest["library"] == "foredraft") & ((fastest["model"] == trained) == is_trained)
        ]
        row = rows.loc[rows["speedup_median"].idxmax()]
        values[name] = {key: float(row[f"speedup_{key}"]) for key in ("median", "min", "max")}
        values[name] |= {"plan": row["name"], "model": row["model"]}
        n, spread = int(row["n"]), notch(float(row["speedup_iqr"]), int(row["n"]))
        claims.append(Claim(name, text, f"{name}.median", n=n, spread=spread))
    return values, claims
