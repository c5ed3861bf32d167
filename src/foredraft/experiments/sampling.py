"""Article 01: what each sampling knob does to a distribution, and to the text drawn from it.

Every table is tidy: one line a sampler and measure, with the median and the quartiles over n
positions or prompts.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from foredraft.decoding.loop import Generation, generate
from foredraft.models.decoder import Decoder
from foredraft.params import Sampling
from foredraft.results import Claim
from foredraft.sampling import Sampler
from foredraft.training.corpus import HELD_OUT_PACKAGE, documents
from foredraft.types import Float, Int, Logits, Probs, Tensor

NINE_WORDS = ("mat", "floor", "sofa", "chair", "roof", "moon", "table", "idea", "seven")
NINE_LOGITS = (3.2, 2.6, 2.3, 1.9, 1.1, 0.2, 0.0, -1.6, -3.0)
"""A vocabulary for "the cat sat on the …", most likely word first."""

NINE_SETTINGS = {
    "temperature 0.5": Sampler(temperature=0.5),
    "temperature 1": Sampler(),
    "temperature 2": Sampler(temperature=2.0),
    "top-k 6": Sampler(top_k=6),
    "top-k 3": Sampler(top_k=3),
    "top-p 0.9": Sampler(top_p=0.9),
    "top-p 0.6": Sampler(top_p=0.6),
    "min-p 0.3": Sampler(min_p=0.3),
    "typical-p 0.3": Sampler(typical_p=0.3),
}

NGRAM = 4
"""Words of this many tokens count as repeated when they occur again in one continuation."""


def entropy(probs: Probs) -> Float[Tensor, "*batch"]:
    """Give the entropy of each distribution in nats."""
    return torch.special.entr(probs).sum(-1)


def kept(probs: Probs) -> Int[Tensor, "*batch"]:
    """Count the tokens that can still be drawn."""
    return (probs > 0).sum(-1)


def nine_word_table() -> pd.DataFrame:
    """Give the nine words' probabilities under each setting, beside the plain softmax."""
    logits = torch.tensor(NINE_LOGITS, dtype=torch.float64)
    plain = Sampler().probs(logits).tolist()
    rows = [
        {"setting": setting, "word": word, "probability": probability, "plain": before}
        for setting, sampler in NINE_SETTINGS.items()
        for word, probability, before in zip(
            NINE_WORDS, sampler.probs(logits).tolist(), plain, strict=True
        )
    ]
    return pd.DataFrame(rows)


def held_out_functions(tokenizer: PreTrainedTokenizerBase, n: int, length: int) -> list[list[int]]:
    """Take the first `length` tokens of n functions of the held-out package, evenly spaced."""
    heads = [
        document.text[match.start() :]
        for document in documents(HELD_OUT_PACKAGE)
        if "/tests/" not in document.path
        for match in re.finditer(r"^def ", document.text, re.MULTILINE)
    ]
    # Ten characters a token are more than any text of this package needs.
    chosen = (heads[i * len(heads) // n][: 10 * length] for i in range(n))
    return [tokenizer.encode(text)[:length] for text in chosen]


@torch.no_grad()
def logits_along(
    decoder: Decoder, texts: list[list[int]], n_positions: int
) -> Float[Tensor, "position vocab"]:
    """Give the logits after n positions spread over the texts, read as they stand."""
    logits = decoder(torch.tensor(texts, device=decoder.device)).flatten(0, 1)
    return logits[torch.linspace(0, len(logits) - 1, n_positions).long()]


def one_knob_at_a_time(params: Sampling) -> list[tuple[str, Sampler]]:
    """List the samplers that differ from the plain softmax in one knob, with the knob's name."""
    values = {
        "temperature": [t for t in params.temperatures if t > 0],
        "top_k": params.top_ks,
        "top_p": params.top_ps,
        "min_p": params.min_ps,
        "typical_p": params.typical_ps,
    }
    return [(knob, Sampler(**{knob: value})) for knob in values for value in values[knob]]


def knob_table(logits: Logits, samplers: Iterable[tuple[str, Sampler]]) -> pd.DataFrame:
    """Measure entropy, kept tokens and the highest probability under each sampler."""
    rows = []
    for knob, sampler in samplers:
        probs = sampler.probs(logits)
        rows += [
            _row(knob, sampler, "entropy", entropy(probs)),
            _row(knob, sampler, "kept", kept(probs)),
            _row(knob, sampler, "highest", probs.amax(-1)),
        ]
    return pd.DataFrame(rows)


def text_table(
    decoder: Decoder,
    prompts: list[list[int]],
    samplers: Iterable[tuple[str, Sampler]],
    params: Sampling,
) -> pd.DataFrame:
    """Generate with each sampler, and measure the text: likelihood, diversity, repetition.

    `nats` is the mean of −log p a token, p being the model's plain softmax; `distinct` the share of
    distinct bigrams among those of all samples of a prompt; `repeated` the share of 4-grams that
    occurred before in the same continuation.
    """
    rows = []
    for part, sampler in samplers:
        samples = 1 if sampler.temperature == 0 else params.samples
        made = generate(
            decoder,
            [prompt for prompt in prompts for _ in range(samples)],
            sampler=sampler,
            max_new_tokens=params.max_new_tokens,
            generator=torch.Generator(decoder.device).manual_seed(params.seed),
            eos_token_id=[],
        )
        texts = [
            made.tokens[first : first + samples] for first in range(0, len(made.tokens), samples)
        ]
        rows += [
            _row(part, sampler, "nats", nats_per_token(made)),
            _row(part, sampler, "distinct", [distinct_bigrams(several) for several in texts]),
            _row(part, sampler, "repeated", [repeated_share(several) for several in texts]),
        ]
    return pd.DataFrame(rows)


def grid(params: Sampling) -> list[tuple[str, Sampler]]:
    """List the samplers of the temperature × top-p grid."""
    return [
        ("grid", Sampler(temperature=temperature, top_p=top_p))
        for temperature in params.temperatures
        for top_p in params.top_ps
    ]


def penalties(params: Sampling) -> list[tuple[str, Sampler]]:
    """List greedy samplers that punish repetition more and more."""
    return [
        ("penalty", Sampler(temperature=0.0, repetition_penalty=penalty))
        for penalty in params.repetition_penalties
    ]


def nats_per_token(made: Generation) -> list[float]:
    """Average −log p over each row's tokens, p being the model's plain softmax."""
    table = made.trace.table()
    nats = -np.log(table["confidence"])
    return nats.groupby(table["row"]).mean().tolist()


def distinct_bigrams(texts: list[list[int]]) -> float:
    """Give distinct ÷ all bigrams over several texts (distinct-2, arXiv 1510.03055)."""
    bigrams = [pair for text in texts for pair in pairwise(text)]
    return len(set(bigrams)) / max(1, len(bigrams))


def repeated_share(texts: list[list[int]]) -> float:
    """Give the share of n-grams that occurred before in their own text."""
    counts = [
        (len(grams), len(set(grams)))
        for text in texts
        if (grams := [tuple(text[i : i + NGRAM]) for i in range(len(text) - NGRAM + 1)])
    ]
    total = sum(n for n, _ in counts)
    return 1 - sum(distinct for _, distinct in counts) / total if total else 0.0


def chi_square(
    sampler: Sampler, logits: Float[Tensor, " vocab"], *, draws: int, generator: torch.Generator
) -> float:
    """Give the p-value of Pearson's χ² test that draws follow the sampler's own law."""
    from scipy.stats import chisquare

    probs = sampler.probs(logits)
    tokens = sampler.draw(probs.expand(draws, -1), generator=generator)
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    possible = probs > 0
    expected = probs[possible].double() / probs[possible].double().sum() * draws
    if counts[~possible].any():
        return 0.0
    return float(chisquare(counts[possible].numpy(), expected.numpy()).pvalue)


def findings(
    table: pd.DataFrame, costs: pd.DataFrame, params: Sampling
) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back."""
    plain = _only(table, part="temperature", temperature=1.0, measure="entropy")
    nucleus = _only(table, part="top_p", top_p=0.9, measure="kept")
    weak, strong = params.repetition_penalties[0], params.repetition_penalties[-1]
    loops = {
        name: {
            measure: float(
                _only(table, part="penalty", repetition_penalty=penalty, measure=measure)["mean"]
            )
            for measure in ("repeated", "nats")
        }
        for name, penalty in (("weakest", weak), ("strongest", strong))
    }
    usual = _only(costs, setting="temperature, top-k, top-p", logits="peaked", vocab=256_000)
    top_p = _only(costs, setting="temperature, top-p", logits="peaked", vocab=256_000)
    values = {
        "entropy": _quartiles(plain),
        "kept_at_top_p_0.9": _quartiles(nucleus),
        "penalty": loops,
        "speedup": {"top_k_top_p": _ratio(usual), "top_p": _ratio(top_p)},
    }
    return values, _claims(values, int(plain["n"]), params.n_prompts, int(usual["n"]))


def _claims(
    values: dict[str, Any], n_positions: int, n_prompts: int, n_timings: int
) -> list[Claim]:
    def timed(setting: str) -> float:
        ratio = values["speedup"][setting]
        return (ratio["max"] - ratio["min"]) / 2

    return [
        Claim(
            "entropy",
            "Median entropy of the plain softmax on held-out code (nats)",
            "entropy.median",
            n=n_positions,
        ),
        Claim(
            "kept",
            "Median number of tokens that top-p 0.9 keeps there",
            "kept_at_top_p_0.9.median",
            n=n_positions,
        ),
        Claim(
            "loops",
            "Repeated 4-grams of greedy decoding, weakest repetition penalty",
            "penalty.weakest.repeated",
            n=n_prompts,
        ),
        Claim(
            "cured",
            "The same at the strongest",
            "penalty.strongest.repeated",
            n=n_prompts,
        ),
        Claim(
            "speed-top-k-top-p",
            "Sampler against transformers' processors, times faster: temperature, top-k, top-p "
            "at vocabulary 256,000 (recorded)",
            "speedup.top_k_top_p.median",
            n=n_timings,
            spread=timed("top_k_top_p"),
        ),
        Claim(
            "speed-top-p",
            "The same for temperature and top-p",
            "speedup.top_p.median",
            n=n_timings,
            spread=timed("top_p"),
        ),
    ]


def _only(table: pd.DataFrame, **where: object) -> pd.Series:
    """Give the one row in which all these columns have these values; the nearest for numbers."""
    rows = table
    for column, wanted in where.items():
        if isinstance(wanted, float):
            distance = (rows[column] - wanted).abs()
            rows = rows[distance == distance.min()]
        else:
            rows = rows[rows[column] == wanted]
    return rows.iloc[0]


def _quartiles(row: pd.Series) -> dict[str, float]:
    return {name: float(row[name]) for name in ("low", "median", "high")}


def _ratio(row: pd.Series) -> dict[str, float]:
    return {name: float(row[f"ratio_{name}"]) for name in ("min", "median", "max")}


def _row(
    part: str, sampler: Sampler, measure: str, values: Tensor | list[float]
) -> dict[str, object]:
    series = torch.as_tensor(values).double()
    low, median, high = series.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    quartiles = {"mean": series.mean().item(), "median": median, "low": low, "high": high}
    return {"part": part, **asdict(sampler), "measure": measure, **quartiles, "n": len(series)}
