"""The original post's run and published plans, from their own numbers."""

from collections.abc import Iterable
from itertools import product

import pandas as pd
from transformers import LlamaConfig

from foredraft.analysis.published import published
from foredraft.decoding import theory
from foredraft.models.config import DecoderConfig
from foredraft.models.skip import Parts, PublishedPlan, SkipPlan

PUBLISHED_PLANS = ("gemma-2-9b-it", "llama-2-13b", "llama-2-70b")
"""The article's plan, and those of Draft & Verify."""


ARTICLE_LAYERS = 42
"""How many layers the model has that its plan is for."""


def llama_2(hidden: int, mlp: int, layers: int, kv_heads: int) -> LlamaConfig:
    """Give a configuration from its dimensions; heads have 128 features."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=kv_heads,
        head_dim=128,
        vocab_size=32_000,
    )


def article_run() -> dict[str, float]:
    """Give what the article says of its run, and what follows from that alone.

    `length` is the mean draft length that explains its speed-up S by its α and c:
    S = (1 + αγ) ÷ (1 + cγ), where α counts accepted ÷ drafted tokens.
    """
    said = PublishedPlan.read("gemma-2-9b-it")
    told = dict(said.measured or {})
    cost, alpha = told["target_rate"] / told["draft_rate"], told["acceptance"]
    speedup = told["self_rate"] / told["target_rate"]
    return {
        "acceptance": alpha,
        "cost": cost,
        "cost_bytes": said.plan.cost(published("gemma-2-9b")),
        "speedup": speedup,
        "length": (1 - speedup) / (speedup * cost - alpha),
        "best": max(theory.speedup(alpha, n, cost=cost) for n in range(1, 9)),
    }


def fits_article(config: DecoderConfig) -> bool:
    """Say whether the article's plan is one for this architecture."""
    return (config.architecture, config.n_layers) == ("gemma2", ARTICLE_LAYERS)


def needed(costs: Iterable[float], gains: Iterable[float]) -> pd.DataFrame:
    """Give the acceptance that each speed-up needs at each cost; NaN where 1 does not suffice."""
    rows = []
    for gain, cost in product(gains, costs):
        low, high = 0.0, 1.0 if _best(1.0, cost) >= gain else float("nan")
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (low, middle) if _best(middle, cost) >= gain else (middle, high)
        rows.append({"gain": gain, "cost": cost, "acceptance": high})
    return pd.DataFrame(rows)


def _best(alpha: float, cost: float) -> float:
    """Give the speed-up at the best length of a draft; not to draft is none."""
    return max(theory.speedup(alpha, length, cost=cost) for length in range(1, 33))


def published_plans() -> pd.DataFrame:
    """Give c by bytes of the plans that were published for large models."""
    configs = (
        published("gemma-2-9b"),
        llama_2(5120, 13_824, 40, kv_heads=40),
        llama_2(8192, 28_672, 80, kv_heads=8),
    )
    rows = []
    for name, config in zip(PUBLISHED_PLANS, configs, strict=True):
        said = PublishedPlan.read(name)
        rows.append(
            {
                **{"plan": name, "layers": config.num_hidden_layers},
                **{"attention": len(said.plan.attn), "MLP": len(said.plan.mlp)},
                "cost": said.plan.cost(config),
            }
        )
    return pd.DataFrame(rows)


BANDWIDTHS = {"H100 SXM": 3350, "A100 80 GB": 2039, "RTX 4090": 1008, "L4": 300}
"""What accelerators read from their memory at best, by their makers, in GB/s."""


def floors() -> pd.DataFrame:
    """Give the least time that a token of gemma-2-9b-it takes in bf16: its weights, read once."""
    config = DecoderConfig.from_hf(published("gemma-2-9b"))
    size = 2 * Parts.of(config).total(config.n_layers) / 1e9
    return pd.DataFrame(
        [
            {"device": device, "weights_GB": size, "ms_per_token": 1e3 * size / rate}
            for device, rate in BANDWIDTHS.items()
        ]
    )


def by_bytes(acceptances: Iterable[float]) -> pd.DataFrame:
    """Give what plans of gemma-2-9b-it would gain at their best length, by bytes (theorem 3.8).

    The article's plan, layers at equal distances, and exits; `gain` for each acceptance. A draft
    step's time is its share of the weights, and all positions of a draft are verified in the time
    of one.
    """
    config = published("gemma-2-9b")
    layers = config.num_hidden_layers
    plans = {"the article's": SkipPlan.published(PUBLISHED_PLANS[0])}
    for share, word in ((4, "a quarter"), (3, "a third"), (2, "half")):
        plans[f"{word} of the layers off"] = SkipPlan.spread(layers // share, layers)
    for n in (layers // 2, layers // 4):
        plans[f"exit after {n}"] = SkipPlan.early_exit(n, layers)
    rows = []
    for (name, plan), alpha in product(plans.items(), acceptances):
        cost = plan.cost(config)
        length = theory.best_length(alpha, cost=cost, longest=16)
        gain = theory.speedup(alpha, length, cost=cost)
        rows.append(
            {"plan": name, "cost": cost, "acceptance": alpha, "length": length, "gain": gain}
        )
    return pd.DataFrame(rows)
