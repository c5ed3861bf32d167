"""Article 01: what each sampling knob does to a distribution, and to the text drawn from it.

Every table is tidy: one line a sampler and measure, with the median and the quartiles over n
positions or prompts.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from scipy import stats
from transformers import PreTrainedTokenizerBase

from foredraft.analysis.nine_words import NINE_LOGITS, NINE_WORDS
from foredraft.decoding.loop import Generation, generate
from foredraft.models.decoder import Decoder
from foredraft.repro.claims import Claim, notch
from foredraft.repro.params import Sampling
from foredraft.sampling import Sampler
from foredraft.training.corpus import HELD_OUT_PACKAGE, documents
from foredraft.types import Float, Int, Logits, Probs, Tensor

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

NUCLEUS = 0.9
"""The top-p that is measured in any case, beside the plain softmax, whatever a reader sweeps."""

TIMED = {"top_k_top_p": "temperature, top-k, top-p", "top_p": "temperature, top-p"}

CLAIMS = {
    "entropy.median": "Median entropy of the plain softmax on held-out code (nats)",
    "kept_by_nucleus.median": f"Median number of tokens that top-p {NUCLEUS} keeps there",
    "penalty.weakest.repeated": "Share of repeated 4-grams, greedy, weakest repetition penalty",
    "penalty.strongest.repeated": "The same, strongest repetition penalty",
    "speedup.top_k_top_p.median": (
        "Times faster than transformers' processors at vocabulary 256,000: temperature, top-k, "
        "top-p (recorded; median of paired ratios)"
    ),
    "speedup.top_p.median": "The same for temperature and top-p",
}

SHOWN = 20
"""Tokens that are shown one by one where a law is looked at closely, the likeliest first."""

EVERY = 10
"""One function in ten is a candidate for a prompt."""

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
    ][::EVERY]
    # Ten characters a token are more than any text of this package needs.
    texts = (tokenizer.encode(head[: 10 * length])[:length] for head in heads)
    whole = [text for text in texts if len(text) == length]
    return [whole[i * len(whole) // n] for i in range(n)]


@torch.no_grad()
def logits_along(
    decoder: Decoder, texts: list[list[int]], n_positions: int
) -> Float[Tensor, "position vocab"]:
    """Give the logits after n positions spread over the texts, read as they stand."""
    logits = decoder(torch.tensor(texts, device=decoder.device)).flatten(0, 1)
    return logits[torch.linspace(0, len(logits) - 1, n_positions).long()]


def one_knob_at_a_time(params: Sampling) -> list[tuple[str, Sampler]]:
    """List the samplers that differ from the plain softmax in one knob, with the knob's name.

    The plain softmax and top-p 0.9 come last, named "reference".
    """
    values = {
        "temperature": [t for t in params.temperatures if t > 0],
        "top_k": params.top_ks,
        "top_p": params.top_ps,
        "min_p": params.min_ps,
        "typical_p": params.typical_ps,
    }
    swept = [(knob, Sampler(**{knob: value})) for knob in values for value in values[knob]]
    return [*swept, ("reference", Sampler()), ("reference", Sampler(top_p=NUCLEUS))]


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


def one_position(
    logits: Float[Tensor, " vocab"],
    before: list[int],
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
) -> pd.DataFrame:
    """Set beside the plain softmax after a text what a sampler makes of it.

    A line for each of the likeliest tokens, and one for all others together. `kept`, `of`,
    `entropy` and `plain_entropy` are those of the whole laws, the same in each line.
    """
    plain = Sampler().probs(logits)
    probs = sampler.probs(logits, torch.tensor(before, device=logits.device))
    order = plain.argsort(descending=True)[:SHOWN]
    shown = [tokenizer.decode([token]) for token in order.tolist()]
    law, chosen = plain[order].tolist(), probs[order].tolist()
    rest = [1 - sum(law), 1 - sum(chosen)]
    return pd.DataFrame(
        {
            "token": [*shown, ""],
            "plain": [*law, max(0.0, rest[0])],
            "probability": [*chosen, max(0.0, rest[1])],
            "kept": int(kept(probs)),
            "of": len(logits),
            "entropy": float(entropy(probs)),
            "plain_entropy": float(entropy(plain)),
        }
    )


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
    nats: dict[int, list[float]] = {}
    for each in made.trace.rounds:
        for row in each.rows:
            nats.setdefault(row.row, []).append(-math.log(row.confidence))
    return [sum(values) / len(values) for _, values in sorted(nats.items())]


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
    probs = sampler.probs(logits)
    tokens = sampler.draw(probs.expand(draws, -1), generator=generator)
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    possible = probs > 0
    expected = probs[possible].double() / probs[possible].double().sum() * draws
    if counts[~possible].any():
        return 0.0
    return float(stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue)


def findings(table: pd.DataFrame, costs: pd.DataFrame) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back."""
    plain = _only(table, part="reference", top_p=1.0, measure="entropy")
    nucleus = _only(table, part="reference", top_p=NUCLEUS, measure="kept")
    penalties = pd.Series(table["repetition_penalty"][table["part"] == "penalty"])
    loops = {
        name: {
            measure: float(
                _only(table, part="penalty", repetition_penalty=penalty, measure=measure)["mean"]
            )
            for measure in ("repeated", "nats")
        }
        for name, penalty in (("weakest", penalties.min()), ("strongest", penalties.max()))
    }
    timed = {
        key: _only(costs, setting=setting, logits="peaked", vocab=256_000)
        for key, setting in TIMED.items()
    }
    values = {
        "entropy": _quartiles(plain),
        "kept_by_nucleus": _quartiles(nucleus),
        "penalty": loops,
        "speedup": {key: _ratio(row) for key, row in timed.items()},
    }
    weakest, strongest = (
        _only(table, part="penalty", repetition_penalty=penalty, measure="repeated")
        for penalty in (penalties.min(), penalties.max())
    )
    spreads = {
        "entropy.median": _spread_of_median(plain),
        "kept_by_nucleus.median": _spread_of_median(nucleus),
        "penalty.weakest.repeated": (int(weakest["n"]), float(weakest["half_width"])),
        "penalty.strongest.repeated": (int(strongest["n"]), float(strongest["half_width"])),
        "speedup.top_k_top_p.median": _spread_of_ratio(timed["top_k_top_p"]),
        "speedup.top_p.median": _spread_of_ratio(timed["top_p"]),
    }
    claims = [
        Claim(key, text, key, n=spreads[key][0], spread=spreads[key][1])
        for key, text in CLAIMS.items()
    ]
    return values, claims


def _spread_of_median(row: dict[str, Any]) -> tuple[int, float]:
    return int(row["n"]), notch(float(row["high"] - row["low"]), int(row["n"]))


def _spread_of_ratio(row: dict[str, Any]) -> tuple[int, float]:
    """Least and greatest of n enclose the median with a chance of 1 − 2^(1−n): 98 % for seven."""
    return int(row["n"]), float(row["ratio_max"] - row["ratio_min"]) / 2


def _only(table: pd.DataFrame, **where: object) -> dict[str, Any]:
    """Give the one row in which all these columns have these values."""
    rows = [
        {str(column): value for column, value in row.items()}
        for row in table.to_dict("records")
        if all(row[column] == wanted for column, wanted in where.items())
    ]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows have {where}; exactly one is needed")
    return rows[0]


def _quartiles(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(row[name]) for name in ("low", "median", "high")}


def _ratio(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(row[f"ratio_{name}"]) for name in ("min", "median", "max")}


def _row(
    part: str, sampler: Sampler, measure: str, values: Tensor | list[float]
) -> dict[str, object]:
    series = torch.as_tensor(values).double()
    low, median, high = series.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    middle = {"mean": series.mean().item(), "median": median, "low": low, "high": high}
    n = len(series)
    # of the mean, by Student's t
    half_width = stats.t.ppf(0.975, n - 1) * series.std().item() / n**0.5 if n > 1 else math.nan
    about = {"part": part, **asdict(sampler), "measure": measure}
    return {**about, **middle, "half_width": float(half_width), "n": n}
