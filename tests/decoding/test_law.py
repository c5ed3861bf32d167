"""The output law is the target's own: integrated exactly, over the functions that `generate` runs.

All randomness of the package enters through `invert` (a token from weights and a uniform) and
`accepts` (a coin from a chance and a uniform). Here every row of one batch stands for one outcome
of all these in one round: the uniform is put at either end of the interval of that outcome, the
shipped function decides, and the row's probability is multiplied by the interval's length. Summed
over rows that is the exact law of one round after a text, through the whole of `generate`: draft
model, caches, exit, verification. Rounds are chained to the joint law of three tokens.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
import torch

import foredraft as fd
from foredraft import sampling
from foredraft.decoding import verify
from tests.decoding.conftest import Scripted, tiny
from tests.proofs import DISTANCE

PLAIN = fd.Sampler()
PROMPT = (0, 1)
JOINT = 3
DTYPE = torch.float64
NEAR = 1e-6
"""How near to the ends of its interval a token is drawn: as a share of it."""


class Enough(Exception):
    """One round is over; the rest of the generation is not needed."""


@dataclass
class Case:
    """One way to decode."""

    vocab: int = 3
    length: int = 2
    sampler: fd.Sampler = PLAIN
    draft_sampler: fd.Sampler | None = None
    verification: str = "token"
    stop: object = None
    drafter: object = None

    def parts(self):
        target, draft = (tiny("llama", self.vocab, seed, DTYPE) for seed in (3, 4))
        drafter = self.drafter or fd.ModelDrafter(draft, self.draft_sampler)
        return target, drafter, self.stop or fd.FixedLength(self.length)


@dataclass
class Outcomes:
    """What each row is to draw, and the probability that it does so."""

    first: torch.Tensor
    drafts: torch.Tensor
    coins: torch.Tensor
    last: torch.Tensor
    invert: object = field(default=sampling.invert)
    accepts: object = field(default=verify.accepts)

    def __post_init__(self):
        self.probability = torch.ones(len(self.first), dtype=DTYPE)
        self.drawn, self.tossed = -1, 0

    def choose(self, weights, uniform):
        """Stand in for `invert`: the prompt's round, then the drafts, then the last token."""
        self.drawn += 1
        if self.drawn == 0:
            return self._draw(weights, self.first, counts=False)
        if self.tossed:
            return self._draw(weights, self.last)
        return self._draw(weights, self.drafts[:, self.drawn - 1])

    def toss(self, uniforms, chances):
        """Stand in for `accepts`."""
        self.tossed = chances.shape[1]
        heads = chances.nan_to_num(0.0).clamp(max=1)
        coins = self.coins[:, : self.tossed]
        share = torch.where(coins, heads, 1 - heads)
        least = torch.where(coins, 0.0, heads)
        most = torch.where(coins, heads, torch.ones_like(heads)).nextafter(torch.zeros_like(heads))
        for uniform in (least, most):
            said = self.accepts(uniform, chances)
            assert (said == coins)[share > 0].all()
        self.probability *= share.prod(-1)
        return said

    def _draw(self, weights, wanted, counts=True):
        cumulated = weights.double().cumsum(-1)
        upper = cumulated.gather(-1, wanted[:, None]).squeeze(-1)
        mass = weights.double().gather(-1, wanted[:, None]).squeeze(-1)
        for within in (1 - NEAR, NEAR):
            token = self.invert(weights, (upper - within * mass) / cumulated[:, -1])
            assert (token == wanted)[mass > 0].all()
        if counts:
            self.probability *= mass / cumulated[:, -1]
        return token if counts else wanted

    def surplus(self, vocab):
        """How many rows stand for the same outcome, because fewer things were drawn than listed."""
        listed = self.drafts.shape[1]
        return vocab ** (listed - self.drawn + 1) * 2 ** (listed - self.tossed)


def round_laws(case, texts, monkeypatch):
    """Give, for each text, the law of what one round emits."""
    target, drafter, stop = case.parts()
    n_drafts, ids = case.length, range(case.vocab)
    plan = [
        (text, *drafts, *coins, last)
        for text in range(len(texts))
        for drafts in itertools.product(ids, repeat=n_drafts)
        for coins in itertools.product((0, 1), repeat=n_drafts)
        for last in ids
    ]
    table = torch.tensor(plan)
    rows = [texts[text] for text in table[:, 0].tolist()]
    outcomes = Outcomes(
        torch.tensor([text[-1] for text in rows]),
        table[:, 1 : n_drafts + 1],
        table[:, n_drafts + 1 : -1].bool(),
        table[:, -1],
    )
    monkeypatch.setattr(sampling, "invert", outcomes.choose)
    monkeypatch.setattr(verify, "accepts", outcomes.toss)
    law = [defaultdict(float) for _ in texts]

    def collect(each):
        if each.index == 0:
            return
        same = outcomes.surplus(case.vocab)
        for row, text, mass in zip(
            each.rows, table[:, 0].tolist(), outcomes.probability.tolist(), strict=True
        ):
            law[text][row.tokens] += mass / same
        raise Enough

    with pytest.raises(Enough):
        fd.generate(
            target,
            [list(text[:-1]) for text in rows],
            sampler=case.sampler,
            max_new_tokens=n_drafts + 2,
            drafter=drafter,
            exit_policy=stop,
            eos_token_id=[],
            verification=case.verification,
            on_round=collect,
        )
    monkeypatch.undo()
    return law


def joint_law(case, monkeypatch):
    """Chain rounds to the law of the three tokens after the prompt."""
    ids = range(case.vocab)
    texts = [PROMPT + more for n in range(JOINT) for more in itertools.product(ids, repeat=n)]
    laws = dict(zip(texts, round_laws(case, texts, monkeypatch), strict=True))
    for text, law in laws.items():
        assert sum(law.values()) == pytest.approx(1, abs=1e-12), text
    joint = defaultdict(float)

    def go_on(text, mass):
        if len(text) >= len(PROMPT) + JOINT:
            joint[text[len(PROMPT) : len(PROMPT) + JOINT]] += mass
            return
        for tokens, share in laws[text].items():
            if share:
                go_on(text + tokens, mass * share)

    go_on(PROMPT, 1.0)
    return joint


def target_law(case):
    """Give autoregressive decoding's law of the same three tokens."""
    target, *_ = case.parts()
    law = {}
    for tokens in itertools.product(range(case.vocab), repeat=JOINT):
        text = torch.tensor([[*PROMPT, *tokens]])
        logits = target(text)[0]
        mass = 1.0
        for place in range(len(PROMPT), len(PROMPT) + JOINT):
            probs = case.sampler.probs(logits[place - 1], text[0, :place])
            mass *= probs[text[0, place]].item()
        law[tokens] = mass
    return law


def distance(case, monkeypatch):
    """Give the largest difference between the two laws at any outcome."""
    ours, wanted = joint_law(case, monkeypatch), target_law(case)
    return max(abs(ours[tokens] - wanted[tokens]) for tokens in wanted)


SAMPLERS = {
    "plain": fd.Sampler(),
    "cold": fd.Sampler(temperature=0.6),
    "top-k": fd.Sampler(top_k=2),
    "top-p": fd.Sampler(top_p=0.7),
    "min-p": fd.Sampler(temperature=1.4, min_p=0.3),
    "penalty": fd.Sampler(repetition_penalty=1.8),
    "greedy": fd.Sampler(temperature=0.0),
}
STOPS = {"fixed": None, "confident": fd.ConfidenceExit(0.45, 2)}
DRAFT_SAMPLERS = {"same": None, "hot": fd.Sampler(1.7), "greedy": fd.Sampler(temperature=0.0)}
rules = pytest.mark.parametrize("verification", ["token", "block"])


@rules
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("draft_sampler", DRAFT_SAMPLERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_three_tokens_follow_the_target_s_law(
    sampler, draft_sampler, stop, verification, monkeypatch, record_property
):
    case = Case(
        sampler=SAMPLERS[sampler],
        draft_sampler=DRAFT_SAMPLERS[draft_sampler],
        stop=STOPS[stop],
        verification=verification,
    )
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


@rules
@pytest.mark.parametrize(("vocab", "length"), [(2, 3), (3, 3), (4, 2), (5, 1)])
def test_so_they_do_for_other_vocabularies_and_draft_lengths(
    vocab, length, verification, monkeypatch, record_property
):
    case = Case(
        vocab=vocab, length=length, sampler=fd.Sampler(0.9, top_p=0.9), verification=verification
    )
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


@rules
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_so_they_do_for_proposals_that_nobody_drew(
    sampler, verification, monkeypatch, record_property
):
    """One-hot proposals, of a length of their own in each row."""
    proposals = Scripted(lambda text, limit: [(text[-1] + i) % 3 for i in range(1 + sum(text) % 3)])
    case = Case(length=3, sampler=SAMPLERS[sampler], drafter=proposals, verification=verification)
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


SELF_DRAFTERS = {
    "spread": fd.SelfDrafter(fd.SkipPlan(attn=[1], mlp=[0])),
    "exit": fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2), fd.Sampler(1.7)),
    "two tokens": fd.SelfDrafter(fd.SkipPlan(mlp=[0]), vocabulary=[0, 2]),
    "one token": fd.SelfDrafter(fd.SkipPlan.early_exit(0, 2), vocabulary=[1]),
}


@rules
@pytest.mark.parametrize("sampler", ["plain", "top-p", "penalty"])
@pytest.mark.parametrize("drafter", SELF_DRAFTERS)
def test_so_they_do_when_the_target_drafts_for_itself(
    drafter, sampler, verification, monkeypatch, record_property
):
    """Ragged drafts; early exits, which are reused, and other plans; some of the vocabulary."""
    case = Case(
        sampler=SAMPLERS[sampler],
        drafter=SELF_DRAFTERS[drafter],
        stop=STOPS["confident"],
        verification=verification,
    )
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


def test_the_integration_tells_a_wrong_law_from_the_right_one(monkeypatch):
    """The negative control: compared with another temperature's law the distance is plain."""
    case = Case(sampler=fd.Sampler())
    ours, other = joint_law(case, monkeypatch), target_law(Case(sampler=fd.Sampler(0.9)))
    assert max(abs(ours[tokens] - other[tokens]) for tokens in other) > 1e-3


def test_block_verification_accepts_more_and_never_less_as_in_the_paper_s_example():
    """2403.10444, section 2: 10/9 against 11/9 accepted drafts of two, integrated exactly."""
    p, q = torch.tensor([1 / 3, 2 / 3], dtype=DTYPE), torch.tensor([2 / 3, 1 / 3], dtype=DTYPE)
    accepted = {}
    for name in ("token", "block"):
        total = 0.0
        for tokens in itertools.product((0, 1), repeat=2):
            drafts = torch.tensor([tokens])
            rule = verify.RULES[name](
                drafts, q.expand(1, 2, 2), p.expand(1, 3, 2), torch.tensor([2])
            )
            chances = rule.chances.clamp(max=1)
            for coins in itertools.product((False, True), repeat=2):
                said = torch.tensor([coins])
                share = torch.where(said, chances, 1 - chances).prod().item()
                total += q[list(tokens)].prod().item() * share * rule.count(said).item()
        accepted[name] = total
    assert accepted == pytest.approx({"token": 10 / 9, "block": 11 / 9}, abs=1e-12)
