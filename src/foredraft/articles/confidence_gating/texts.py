"""Single texts of article 05, token by token."""

import numpy as np
import pandas as pd

from foredraft.articles.confidence_gating.experiment import Subject
from foredraft.articles.confidence_gating.policies import (
    Policy,
    played,
    rounds_of,
)
from foredraft.benchmarks.round_costs import RoundCosts
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.replay import Script, replay


def fates(found: Subject, recorded: Script, policy: Policy, text: int) -> pd.DataFrame:
    """Say of each token of a recorded text, as a policy decodes it, where it came from.

    Columns: text, confidence (the target's), fate: "accepted", "bonus", "recovered" or "plain".
    """
    if policy.stop is None:
        raise ValueError("this policy never drafts: every token is plain")
    marks = ["plain"]  # the prefill's
    for each in replay(recorded, policy.gate, policy.stop).rounds[1:]:
        for row in each.rows:
            if row.row == text:
                last = row.kind if row.drafted else "plain"
                marks += [*["accepted"] * row.accepted, last]
    words = [found.tokenizer.decode([token]) for token in recorded.tokens[text]]
    sure = recorded.target["confidence"][text, : len(words)].tolist()
    return pd.DataFrame({"text": words, "confidence": sure, "fate": marks})


def threshold_fates(
    found: Subject, recorded: Script, policy: Policy, costs: RoundCosts, text: int
) -> pd.DataFrame:
    """Give `fates` of one text, and what a gate comes to on all texts, the same in each line.

    `threshold`, `length`, `closed` (the share of rounds that do not draft), `speedup`, and `open`:
    the speed-up of drafting as far in each round.
    """
    outcome = played(recorded, policy, costs)
    always = played(recorded, Policy("fixed length", policy.stop), costs)
    return fates(found, recorded, policy, text).assign(
        threshold=policy.setting,
        length=policy.length,
        closed=outcome.closed.sum() / outcome.rounds.sum(),
        speedup=outcome.speedup(costs).mean,
        open=always.speedup(costs).mean,
        texts=len(recorded.tokens),
    )


def mixed_text(found: Subject, recorded: Script, policy: Policy) -> int:
    """Find the text of which this policy drafts most nearly half of the rounds.

    Of texts that nowhere go on behind their end, if there are such.
    """
    rounds = rounds_of(replay(recorded, policy.gate, policy.stop or FixedLength(1)))
    texts = len(recorded.tokens)
    end = found.tokenizer.eos_token_id
    ended = np.array([end in tokens for tokens in recorded.tokens])
    opened = np.bincount(rounds["row"], weights=rounds["gate_open"], minlength=texts)
    shares = opened / np.bincount(rounds["row"], minlength=texts)
    return int((np.abs(shares - 0.5) + ended).argmin())
