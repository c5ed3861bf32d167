"""How far drafts are accepted, with intervals over texts; and the logits of given texts."""

from collections.abc import Sequence

import pandas as pd
import torch

from foredraft.analysis.statistics import ratios
from foredraft.models.decoder import Decoder
from foredraft.types import Float, Tensor

ROWS = 16
"""Texts that are read at once when none of them is being generated."""


def acceptance_rate(rounds: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Give accepted ÷ drafted for each value of these columns."""
    return ratios(rounds, list(by), "accepted", "drafted").assign(measure="acceptance")


def tokens_per_pass(rounds: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Give accepted + 1 over the rounds that drafted to the full length: what γ is worth."""
    full = rounds.loc[rounds["drafted"] == rounds["length"]]
    full = full.assign(tokens=full["accepted"] + 1)
    return ratios(full, list(by), "tokens", "one").assign(measure="tokens_per_pass")


def acceptance_by_position(rounds: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Give α_k, the share of the rounds with k − 1 accepted drafts that accept the k-th too."""
    parts = []
    for position in range(1, max(rounds["drafted"].tolist()) + 1):
        reached = rounds.loc[(rounds["drafted"] >= position) & (rounds["accepted"] >= position - 1)]
        stands = (reached["accepted"] >= position).astype(int)
        parts.append(reached.assign(position=position, stands=stands))
    table = ratios(pd.concat(parts), [*by, "position"], "stands", "one")
    return table.assign(measure="acceptance_by_position")


@torch.no_grad()
def logits_after(
    decoder: Decoder, texts: Sequence[Sequence[int]], last: int
) -> Float[Tensor, "text last vocab"]:
    """Give the logits after each of the last few tokens of every text, read as they stand.

    Shorter texts are padded at the end, which nothing before it sees.
    """
    found = []
    for first in range(0, len(texts), ROWS):
        rows = texts[first : first + ROWS]
        width = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        hidden = decoder.hidden(padded.to(decoder.device))
        ends = torch.tensor([len(row) for row in rows], device=decoder.device)
        places = ends[:, None] - last + torch.arange(last, device=decoder.device)
        found.append(decoder.logits(hidden.take_along_dim(places[..., None], 1)))
    return torch.cat(found)
