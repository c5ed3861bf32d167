"""The plans that article 03 tries: single branches, several at once, triples of layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np
import pandas as pd
import torch

from foredraft.models.config import DecoderConfig
from foredraft.models.skip import SkipPlan
from foredraft.repro.params import LayerSkipping

PERIOD = 3
"""Layers of the shallow model that the pocket models were stacked from."""


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan with its name, of some family of plans."""

    family: str
    name: str
    plan: SkipPlan


def single_branches(n_layers: int) -> list[Candidate]:
    """Give the plans that switch off one branch."""
    attention = [
        Candidate("one branch", f"attention {i}", SkipPlan(attn=[i])) for i in range(n_layers)
    ]
    mlp = [Candidate("one branch", f"MLP {i}", SkipPlan(mlp=[i])) for i in range(n_layers)]
    return attention + mlp


def joint_branches(n_layers: int, params: LayerSkipping) -> list[Candidate]:
    """Draw sets of several branches, as many of each size."""
    generator = torch.Generator().manual_seed(params.seed)
    found = []
    for size in params.joint_sizes:
        for draw in range(params.joint_sets):
            picked = torch.randperm(2 * n_layers, generator=generator)[:size].tolist()
            found.append(Candidate("random", f"random {size}.{draw}", _of(picked, n_layers)))
    return found


def cheapest_first(table: pd.DataFrame, config: DecoderConfig, n: int) -> list[Candidate]:
    """Skip the branches that cost least acceptance for their bytes: the first 1, 2, … up to n.

    By −log β of each alone ÷ its share of the bytes; `table` holds the single branches.
    """
    alone = table.loc[table["family"] == "one branch"]
    rows = zip(alone["plan"], alone["overlap"], alone["cost"], strict=True)
    harm = {plan: -np.log(beta) / (1 - cost) for plan, beta, cost in rows}
    plans = [SkipPlan.from_json(plan) for plan in sorted(harm, key=lambda plan: harm[plan])]
    found, union = [], SkipPlan()
    for count, plan in enumerate(plans[:n], start=1):
        union = union | plan
        found.append(Candidate("cheapest first", f"cheapest {count}", union))
    return found


def equal_costs(n_layers: int) -> list[Candidate]:
    """Skip whole layers, each number of them twice: the last ones, and as many spread out."""
    exits = [
        Candidate("early exit", f"exit {n}", SkipPlan.early_exit(n, n_layers))
        for n in range(1, n_layers)
    ]
    spread = [
        Candidate("spread out", f"spread {n}", SkipPlan.spread(n, n_layers))
        for n in range(1, n_layers)
    ]
    return exits + spread


def threes(n_layers: int) -> list[Candidate]:
    """Skip single layers, and sets of three by where stacking took them from.

    A run of three leaves the layers in the order of the shallow model, over and over; three of one
    origin, or three of one origin each but no run, break it.
    """
    layers = [Candidate("one layer", f"layer {i}", SkipPlan.layers([i])) for i in range(n_layers)]
    found = []
    for chosen in combinations(range(n_layers), PERIOD):
        origins = {i % PERIOD for i in chosen}
        if chosen[-1] - chosen[0] == PERIOD - 1:
            kind = "a run"
        elif len(origins) == 1:
            kind = "one origin"
        elif len(origins) == PERIOD and min(np.diff(chosen)) > 1:
            kind = "one of each, apart"
        else:
            continue
        name = "layers " + " ".join(map(str, chosen))
        found.append(Candidate(kind, name, SkipPlan.layers(chosen)))
    return layers + _thinned(found, "one of each, apart", n_layers)


def _thinned(found: list[Candidate], kind: str, n: int) -> list[Candidate]:
    """Keep n of one kind at equal distances, and all the others."""
    many = [each for each in found if each.family == kind]
    kept = [many[i] for i in sorted({i * len(many) // n for i in range(min(n, len(many)))})]
    return [each for each in found if each.family != kind or each in kept]


def _of(numbers: Iterable[int], n_layers: int) -> SkipPlan:
    """Read branches numbered from 0: attentions first, then MLPs."""
    given = list(numbers)
    return SkipPlan(
        attn=[i for i in given if i < n_layers], mlp=[i - n_layers for i in given if i >= n_layers]
    )
