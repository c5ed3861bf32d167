"""The output law is the target's own: integrated exactly, over the functions that `generate` runs.

All randomness of the package enters through `invert` (a token from weights and a uniform) and
`accepts` (a coin from a chance and a uniform). Here every row of one batch stands for one outcome
of all these in one round: the uniform is put at either end of the interval of that outcome, the
shipped function decides, and the row's probability is multiplied by the interval's length. Summed
over rows that is the exact law of one round after a text, through the whole of `generate`: draft
model, caches, exit, verification. Rounds are chained to the joint law of three tokens, by text and,
where an exit learns or a gate remembers, by what of: the rounds of each row so far.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch

import foredraft as fd
from foredraft import sampling
from foredraft.decoding import verify
from foredraft.decoding.exit import ExitPolicy
from foredraft.decoding.expected_gain import Curve
from foredraft.decoding.gate import GatePolicy
from foredraft.decoding.signal import confidence
from foredraft.decoding.theory import Costs
from tests.decoding.conftest import Opener, Scripted, tiny
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
    gate: object = None
    learns: bool = False
    """Whether the exit or the gate decides by what earlier rounds gave."""
    drawn: int | None = None
    """How many drafts are drawn at random; None for all."""

    def parts(self):
        target, draft = (tiny("llama", self.vocab, seed, DTYPE) for seed in (3, 4))
        drafter = self.drafter or fd.ModelDrafter(draft, self.draft_sampler)
        return target, drafter, self.stop or fd.FixedLength(self.length)


@dataclass
class Taught:
    """An exit that has been through the rounds of each row: pairs of drafted and accepted."""

    policy: ExitPolicy
    histories: Sequence[tuple[tuple[int, int], ...]]

    def begin(self, batch):
        stop = self.policy.begin(batch)
        for outcomes in itertools.zip_longest(*self.histories, fillvalue=(0, 0)):
            stop.learn(*map(list, zip(*outcomes, strict=True)))
        return stop


@dataclass
class Reminded:
    """A gate that was shown, for each row, what the rounds before the last one ended in."""

    policy: GatePolicy
    shown: Sequence[Sequence[float]]

    def begin(self, batch):
        gate = self.policy.begin(batch)
        for seen in zip(*self.shown, strict=True):
            gate.opens(list(seen))
        return gate


def reminded(case, texts, histories):
    """Remind a case's gate of what these rounds of these texts have shown it."""
    watches, shown = case.gate.begin(1).watches or confidence, []
    for text, history in zip(texts, histories, strict=True):
        counts = (accepted + 1 for _, accepted in history)
        places = itertools.accumulate(counts, initial=len(PROMPT))
        shown.append([seen_of_last(watches, case.vocab, text[:place]) for place in places])
    longest = max(map(len, shown))
    # Rows of fewer rounds see what they saw first once more, which changes none of these gates.
    rows = [[seen[0]] * (longest - len(seen)) + seen for seen in shown]
    return Reminded(case.gate, [row[:-1] for row in rows])


@cache
def seen_of_last(signal, vocab, text):
    ids = torch.tensor([text])
    return signal(tiny("llama", vocab, 3, DTYPE)(ids[:, :-1])[:, -1], ids[:, -1]).item()


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
        drafts, coins = self.drafts.shape[1], self.coins.shape[1]
        return vocab ** (drafts - self.drawn + 1) * 2 ** (coins - self.tossed)


def round_laws(case, states, monkeypatch):
    """Give, for each text and history, the law of what one round emits and how it came about."""
    target, drafter, stop = case.parts()
    n_drafts, ids = case.length, range(case.vocab)
    n_drawn = n_drafts if case.drawn is None else case.drawn
    table = torch.tensor(
        [
            (state, *drafts, *coins, last)
            for state in range(len(states))
            for drafts in itertools.product(ids, repeat=n_drawn)
            for coins in itertools.product((0, 1), repeat=n_drafts)
            for last in ids
        ]
    )
    origins = table[:, 0].tolist()
    texts, histories = zip(*(states[origin] for origin in origins), strict=True)
    outcomes = Outcomes(
        torch.tensor([text[-1] for text in texts]),
        table[:, 1 : n_drawn + 1],
        table[:, n_drawn + 1 : -1].bool(),
        table[:, -1],
    )
    monkeypatch.setattr(sampling, "invert", outcomes.choose)
    monkeypatch.setattr(verify, "accepts", outcomes.toss)
    law = [defaultdict(float) for _ in states]

    def collect(each):
        if each.index == 0:
            return
        same = outcomes.surplus(case.vocab)
        for row, origin, mass in zip(
            each.rows, origins, outcomes.probability.tolist(), strict=True
        ):
            law[origin][row.tokens, (row.drafted, row.accepted)] += mass / same
        raise Enough

    with pytest.raises(Enough):
        fd.generate(
            target,
            [list(text[:-1]) for text in texts],
            sampler=case.sampler,
            max_new_tokens=n_drafts + 2,
            drafter=drafter,
            exit_policy=Taught(stop, histories) if case.learns else stop,
            gate=reminded(case, texts, histories) if case.gate and case.learns else case.gate,
            eos_token_id=[],
            verification=case.verification,
            on_round=collect,
        )
    monkeypatch.undo()
    return law


def joint_law(case, monkeypatch):
    """Chain rounds to the law of the three tokens after the prompt."""
    joint = defaultdict(float)
    waiting: defaultdict[tuple, float] = defaultdict(float, {(PROMPT, ()): 1.0})
    for length in range(len(PROMPT), len(PROMPT) + JOINT):
        states = [state for state in waiting if len(state[0]) == length]
        laws = round_laws(case, states, monkeypatch) if states else []
        for state, law in zip(states, laws, strict=True):
            assert sum(law.values()) == pytest.approx(1, abs=1e-12), state
            text, history = state
            for (tokens, outcome), share in law.items():
                after, mass = text + tokens, waiting[state] * share
                if len(after) >= len(PROMPT) + JOINT:
                    joint[after[len(PROMPT) : len(PROMPT) + JOINT]] += mass
                elif mass:
                    waiting[after, (*history, outcome) if case.learns else ()] += mass
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


@dataclass
class Capricious:
    """Decide by digits of the confidence that no law knows, which differ by the token drafted."""

    max_length: int = 2
    watches = staticmethod(confidence)

    def begin(self, batch):
        return self

    def goes_on(self, seen):
        return (seen * 1e6).long() % 2 == 0

    def learn(self, drafted, accepted):
        pass

    def keep_rows(self, rows):
        pass


@dataclass
class Between(Opener):
    """A gate that opens on some confidences of the target."""

    least: float
    most: float

    def opens(self, seen):
        return [self.least <= each <= self.most for each in seen]


CHANCE = Curve((0.0, 1.0), (0.0, 1.0))
"""For a signal that is the chance itself."""
RULE = fd.ExpectedGain(
    Costs(target=1.0, draft=0.05, verify={1: 1.0, 2: 1.2}),
    rate=2.0,
    max_length=2,
    opening=CHANCE,
    stands=Curve((0.0, 1.0), (0.5, 1.0)),
    follows=Curve((0.0, 1.0), (0.5, 1.0)),
    later=0.5,
)
MOVING = {"target": 0.5, "step": 0.4, "memory": 0.2, "inertia": 0.1, "max_length": 2}
"""So that a round or two change what the exit says of tokens as sure as these."""
FURTHER_STOPS = {
    "Draft & Verify": fd.AdaptiveExit("draft_and_verify", 0.45, **MOVING),
    "article": fd.AdaptiveExit("article", 0.45, **MOVING),
    "worth its time": fd.CostAwareExit(0.4, 2),
    "expected gain": RULE.exit,
    "capricious": Capricious(),
}
GATES = {"always": None, "unsure": Between(0.0, 0.4), "sure": Between(0.4, 1.0)}
SHIPPED_GATES = {
    "confidence 0": fd.ConfidenceGate(0),
    "confidence 0.1": fd.ConfidenceGate(0.1),
    "confidence 0.5": fd.ConfidenceGate(),
    "confidence 1": fd.ConfidenceGate(1),
    "entropy": fd.EntropyGate(0.665),
    "margin": fd.MarginGate(0.662),
    "expected gain": RULE.gate,
}
REOPENING = {
    "confidence": fd.ConfidenceGate(0.1, reopen=0.5),
    "entropy": fd.EntropyGate(0.68, reopen=0.65),
    "margin": fd.MarginGate(0.6, reopen=0.65),
}
"""Gates that remember whether they have closed."""


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


def further(stop, **options):
    """A case with an exit that learns, counts or is capricious."""
    learns = isinstance(FURTHER_STOPS[stop], fd.AdaptiveExit)
    return Case(stop=FURTHER_STOPS[stop], learns=learns, **options)


@rules
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("stop", FURTHER_STOPS)
def test_so_they_do_whatever_a_gate_and_an_exit_decide_and_learn(
    stop, gate, verification, monkeypatch, record_property
):
    case = further(stop, gate=GATES[gate], sampler=fd.Sampler(0.8), verification=verification)
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


@rules
@pytest.mark.parametrize("gate", SHIPPED_GATES)
def test_so_they_do_behind_every_gate(gate, verification, monkeypatch, record_property):
    case = Case(
        gate=SHIPPED_GATES[gate],
        stop=FURTHER_STOPS.get(gate),
        sampler=fd.Sampler(0.8),
        verification=verification,
    )
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


@rules
@pytest.mark.parametrize("stop", ["confident", "article"])
@pytest.mark.parametrize("gate", REOPENING)
def test_so_they_do_behind_gates_that_remember(
    gate, stop, verification, monkeypatch, record_property
):
    case = Case(
        gate=REOPENING[gate],
        stop=(STOPS | FURTHER_STOPS)[stop],
        learns=True,
        verification=verification,
    )
    found = distance(case, monkeypatch)
    record_property(DISTANCE, found)
    assert found < 1e-12


TEXTS = [PROMPT + more for more in itertools.product(range(3), repeat=2)]
HISTORIES = [((1, 0), (1, 0)), ((2, 0), (2, 0)), ((2, 0), (1, 0)), ((1, 1),), ((2, 1),)]
"""What two tokens may have come of; a gate that closed leaves less."""


def draft_lengths(case, states, monkeypatch):
    """Give the law of the draft's length after each text and history."""
    found = []
    for law in round_laws(case, states, monkeypatch):
        lengths = [0.0] * (case.length + 1)
        for (_, (drafted, _)), mass in law.items():
            lengths[drafted] += mass
        found.append(lengths)
    return found


@pytest.mark.parametrize("stop", FURTHER_STOPS)
def test_the_exits_of_these_proofs_decide_by_the_token_drafted(stop, monkeypatch):
    found = draft_lengths(further(stop), [(text, ()) for text in TEXTS], monkeypatch)
    assert any(min(lengths[1:]) > 0.1 for lengths in found)


@pytest.mark.parametrize("stop", ["Draft & Verify", "article"])
def test_the_adaptive_exits_of_these_proofs_decide_by_earlier_rounds(stop, monkeypatch):
    states = list(itertools.product(TEXTS, HISTORIES))
    found = draft_lengths(further(stop), states, monkeypatch)
    two = {state: lengths[2] for state, lengths in zip(states, found, strict=True)}
    moved = [max(of) - min(of) for text in TEXTS if (of := [two[text, h] for h in HISTORIES])]
    assert max(moved) > 0.1


@pytest.mark.parametrize("gate", ["unsure", "sure"])
def test_the_gates_of_these_proofs_open_after_some_texts_only(gate, monkeypatch):
    states = [(text, ()) for text in TEXTS]
    found = draft_lengths(Case(gate=GATES[gate]), states, monkeypatch)
    assert {round(lengths[0], 12) for lengths in found} == {0.0, 1.0}


@pytest.mark.parametrize("gate", SHIPPED_GATES)
def test_so_do_the_shipped_ones_but_for_always_and_never(gate, monkeypatch):
    states = [(text, ()) for text in [PROMPT, *TEXTS]]
    found = draft_lengths(Case(gate=SHIPPED_GATES[gate]), states, monkeypatch)
    wanted = {"confidence 0": {0.0}, "confidence 1": {1.0}}.get(gate, {0.0, 1.0})
    assert {round(lengths[0], 12) for lengths in found} == wanted


@pytest.mark.parametrize("gate", REOPENING)
def test_the_remembering_gates_of_these_proofs_decide_by_earlier_rounds(gate, monkeypatch):
    case = Case(gate=REOPENING[gate], learns=True)
    states = [((*PROMPT, 0, 0), history) for history in (((1, 0), (1, 0)), ((1, 1),))]
    found = draft_lengths(case, states, monkeypatch)
    assert {round(lengths[0], 12) for lengths in found} == {0.0, 1.0}


@dataclass
class Withdrawing:
    """A mistake: draft as another does, but take back what begins with one of the tokens."""

    drafter: fd.ModelDrafter
    token: int

    def begin(self, job):
        self.proposer = self.drafter.begin(job)
        self.settle, self.keep_rows = self.proposer.settle, self.proposer.keep_rows
        return self

    def propose(self, text, limits, stop, *, generator):
        draft = self.proposer.propose(text, limits, stop, generator=generator)
        return replace(draft, lengths=draft.lengths * (draft.tokens[:, 0] != self.token))


@rules
@pytest.mark.parametrize("token", range(3))
def test_a_gate_that_looks_at_what_was_drafted_is_off_by_a_known_amount(
    token, verification, monkeypatch
):
    """The negative control: of y it makes q(x) p(y), and what the other drafts make of it.

    So of x itself, where the draft overrates it, too little by p(x) (1 − q(x)).
    """
    target, drafter, _ = Case().parts()
    models, text = (target, drafter.draft_model), torch.tensor([PROMPT])
    p, q = (PLAIN.probs(model(text)[0, -1]) for model in models)
    case = Case(length=1, drafter=Withdrawing(drafter, token), verification=verification)
    ours, kept = torch.zeros_like(p), torch.arange(3) != token
    for (tokens, _), mass in round_laws(case, [(PROMPT, ())], monkeypatch)[0].items():
        ours[tokens[0]] += mass
    stands, residual = torch.minimum(p, q), (p - q).clamp(min=0)
    rejected = (kept * (q - stands)).sum()
    wanted = q[token] * p + kept * stands + rejected * residual / residual.sum()
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=0)
    assert (ours - p).abs().max() > 0.02
    if q[token] > p[token]:
        short = p[token] * (1 - q[token])
        torch.testing.assert_close(p[token] - ours[token], short, atol=1e-12, rtol=0)


@rules
@pytest.mark.parametrize(("vocab", "length"), [(2, 3), (3, 3), (4, 2), (5, 1), (4, 3)])
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
    case = Case(
        length=3,
        drawn=0,
        sampler=SAMPLERS[sampler],
        drafter=proposals,
        verification=verification,
    )
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
