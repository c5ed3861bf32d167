"""A replay has the law of decoding: enumerated, compared round by round, and by sampling.

The joint law of all that a trace tells (tokens, drafted, accepted, gate) is summed over every text,
coin and draw of a recording, whose own functions run. It is compared with decoding written out by
its rule: draft from q, keep each token with min(1, p ÷ q), replace the first that falls.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy
import pytest
import torch
from scipy.stats import chi2_contingency

import foredraft as fd
from foredraft import sampling
from foredraft.decoding import recording as recording_module
from foredraft.decoding.draft import Draft, Job
from foredraft.decoding.expected_gain import Curve
from foredraft.decoding.reader import Reader
from foredraft.decoding.recording import coupled, record
from foredraft.decoding.replay import Script, replay
from foredraft.decoding.signal import SIGNALS, Blend, confidence
from foredraft.decoding.text import Text
from foredraft.decoding.theory import Costs
from tests.decoding.conftest import Scripted, tiny

PLAIN, GREEDY, HOT = fd.Sampler(), fd.Sampler(temperature=0.0), fd.Sampler(1.7)
FALSE_ALARM = 1e-6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# One draw


def laws(vocab: int, seed: int, *, holes: bool) -> torch.Tensor:
    weights = torch.rand(40, vocab, generator=generator(seed), dtype=torch.float64)
    if holes:
        weights = weights * (weights > 0.4) + 1e-9 * torch.eye(vocab, dtype=torch.float64)[0]
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("holes", [False, True])
def test_a_draft_and_the_text_have_the_joint_law_that_verification_gives_them(holes):
    """Of q's token x and the emitted t: x stands with min(1, p ÷ q), else t is of the residual."""
    vocab = 5
    for q, p in zip(laws(vocab, 0, holes=holes), laws(vocab, 1, holes=holes), strict=True):
        chances, weights = coupled(q.expand(vocab, -1), p.expand(vocab, -1), torch.arange(vocab))
        others = weights / weights.sum(-1, keepdim=True)
        ours = p[:, None] * (torch.diag(chances) + (1 - chances)[:, None] * others.nan_to_num())
        residual = (p - q).clamp(min=0)
        rejected = q - torch.minimum(p, q)
        theirs = torch.diag(torch.minimum(p, q)) + torch.outer(residual / residual.sum(), rejected)
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)


@pytest.mark.parametrize("p_says", [0, 1])
def test_what_the_target_denies_having_said_stands_by_the_draft_s_own_chance(p_says):
    """As after rounding in half precision; and the draft that falls is another token."""
    p = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.6, 0.4, 0.0]])[p_says : p_says + 1]
    q = torch.tensor([[0.3, 0.2, 0.5, 0.0]])
    chances, weights = coupled(q, p, torch.tensor([0]))
    assert float(chances) == pytest.approx(0.3)
    assert float(weights[0, 0]) == 0
    assert float(weights.sum()) > 0


@pytest.mark.parametrize("said", [0, 1])
def test_a_proposal_that_the_target_s_own_favourite_leaves_nothing_of_is_still_made(said):
    """p and q agree on token 1; what was said, by another rounding, may be token 0."""
    one_hot = torch.tensor([[0.0, 1.0, 0.0]])
    chances, weights = coupled(one_hot, one_hot, torch.tensor([said]))
    assert float(chances) == said
    assert weights[0].tolist() == ([0.0, 1.0, 0.0] if said == 0 else [0.0, 0.0, 0.0])


# The whole law


VOCAB, LONGEST, PROMPT = 3, 2, (0, 1)


@dataclass
class Capricious:
    """Decide by digits of the confidence that no law knows, which differ by the token drafted."""

    max_length: int = LONGEST
    watches = staticmethod(confidence)

    def begin(self, batch):
        return self

    def goes_on(self, seen):
        return (seen * 1e6).long() % 2 == 0

    def learn(self, drafted, accepted):
        pass

    def keep_rows(self, rows):
        pass


MOVING = {"target": 0.5, "step": 0.4, "memory": 0.2, "inertia": 0.1, "max_length": LONGEST}
STOPS = {
    "fixed": fd.FixedLength(LONGEST),
    "short": fd.FixedLength(1),
    "confident": fd.ConfidenceExit(0.45, LONGEST),
    "adaptive": fd.AdaptiveExit("draft_and_verify", 0.45, **MOVING),
    "worth its time": fd.CostAwareExit(0.4, LONGEST),
    "capricious": Capricious(),
}
GATES = {
    "always": None,
    "sure": fd.ConfidenceGate(0.4),
    "reopening": fd.ConfidenceGate(0.6, reopen=0.8),
    "entropy": fd.EntropyGate(0.75),
    "margin": fd.MarginGate(0.35),
}
CASES = {
    "plain": (PLAIN, None, 4),
    "two of three tokens": (fd.Sampler(0.8, top_k=2), PLAIN, 5),
    "greedy drafts": (PLAIN, GREEDY, 5),
    "greedy": (GREEDY, None, 6),
}
"""The target's sampler, the drafter's own, and the new tokens of a text."""


def models() -> tuple[fd.Decoder, fd.Decoder]:
    target, draft = (tiny("llama", VOCAB, seed, torch.float64) for seed in (3, 4))
    return target, draft


@cache
def logits(which: int, text: tuple[int, ...]) -> torch.Tensor:
    """The logits after a text, of the target (0) or the draft model (1)."""
    return models()[which](torch.tensor([text]))[0, -1]


class Enumerated:
    """Every row of a recording is one outcome of all its coins and draws, at each place alike."""

    def __init__(self, n_texts: int) -> None:
        one_draw = list(itertools.product((False, True), range(VOCAB)))
        outcomes = list(itertools.product(one_draw, repeat=LONGEST))
        self.outcomes = len(outcomes)
        table = torch.tensor(outcomes).repeat(n_texts, 1, 1)
        self.coins, self.others = table[..., 0].bool(), table[..., 1]
        self.masses: list[torch.Tensor] = []
        self.tossed = self.drawn = 0

    def toss(self, uniforms, chances):
        step, self.tossed, chances = self.tossed % LONGEST, self.tossed + 1, chances[:, 0]
        if step == 0:
            self.masses.append(torch.ones(len(chances), dtype=torch.float64))
        said = self.coins[:, step]
        self.masses[-1] *= torch.where(said, chances, 1 - chances)
        return ((said & (chances > 0)) | (chances >= 1))[:, None]

    def choose(self, weights, uniform):
        step, self.drawn = self.drawn % LONGEST, self.drawn + 1
        token = self.others[:, step]
        shares = weights / weights.sum(-1, keepdim=True)
        share = shares.gather(-1, token[:, None]).squeeze(-1)
        self.masses[-1] *= share
        return torch.where(share > 0, token, weights.argmax(-1))


@cache
def recorded(case: str) -> tuple[Script, torch.Tensor]:
    """All texts with all combinations of drafts at their places, and the mass of each."""
    (sampler, draft_sampler, n_new), (target, draft) = CASES[case], models()
    texts = [
        text
        for text in itertools.product(range(VOCAB), repeat=n_new)
        if chance(PROMPT, text, sampler) > 0
    ]
    enumerated = Enumerated(len(texts))
    rows = [text for text in texts for _ in range(enumerated.outcomes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "invert", enumerated.choose)
        patch.setattr(recording_module, "accepts", enumerated.toss)
        script = record(
            *(target, [PROMPT] * len(rows), rows),
            sampler=sampler,
            drafter=fd.ModelDrafter(draft, draft_sampler),
            max_length=LONGEST,
            generator=generator(),
            at_once=len(rows),
        )
    assert len(enumerated.masses) == n_new - 2
    picked, masses = [], []
    for first in range(0, len(rows), enumerated.outcomes):
        here = [
            distinct(script.drafts[:, place, : n_new - 2 - place], mass, first, enumerated.outcomes)
            for place, mass in enumerate(enumerated.masses)
        ]
        for combination in itertools.product(*here):
            picked.append([row for row, _ in combination])
            masses.append(numpy.prod([share for _, share in combination]))
            masses[-1] *= chance(PROMPT, rows[first], sampler)
    index, places = torch.tensor(picked), torch.arange(n_new - 2)
    return (
        Script(
            tuple(rows[row] for row in index[:, 0].tolist()),
            {name: rows_of[index[:, 0]] for name, rows_of in script.target.items()},
            *(each[index, places] for each in (script.drafts, script.lengths, script.accepted)),
            {name: rows_of[index, places] for name, rows_of in script.signals.items()},
        ),
        torch.tensor(masses, dtype=torch.float64),
    )


@cache
def chance(text: tuple[int, ...], new: tuple[int, ...], sampler: fd.Sampler) -> float:
    """The probability that the target goes on like this."""
    mass = 1.0
    for place, token in enumerate(new):
        mass *= float(sampler.probs(logits(0, text + new[:place]))[token])
    return mass


def distinct(drafts, masses, first, count) -> list[tuple[int, float]]:
    """One row for each draft that occurs at a place of a text, and its mass."""
    found: defaultdict[tuple, list] = defaultdict(lambda: [0, 0.0])
    for row in range(first, first + count):
        if masses[row] > 0:
            entry = found[tuple(drafts[row].tolist())]
            entry[0], entry[1] = row, entry[1] + float(masses[row])
    return [(row, mass) for row, mass in found.values()]


def rounds_of(trace) -> dict[int, tuple]:
    """What a trace tells of each row."""
    found = defaultdict(tuple)
    for each in trace.rounds:
        for row in each.rows:
            found[row.row] += ((row.tokens, row.drafted, row.accepted, row.kind, row.gate_open),)
    return found


def replayed_law(case: str, gate, stop) -> dict[tuple, float]:
    script, masses = recorded(case)
    law: defaultdict[tuple, float] = defaultdict(float)
    for row, rounds in rounds_of(replay(script, gate, stop)).items():
        law[rounds] += float(masses[row])
    return law


def decoding_law(case: str, gate, stop) -> dict[tuple, float]:
    """Decoding by its rule, all drafts and coins enumerated."""
    sampler, draft_sampler, n_new = CASES[case]

    @cache
    def p_after(text):
        return sampler.probs(logits(0, text))

    @cache
    def q_after(text):
        return (draft_sampler or sampler).probs(logits(1, text))

    def opens(seen):
        opener = (gate or fd.AlwaysDraft()).begin(1)
        return [opener.opens([each])[0] for each in seen][-1]

    def length_of(text, drafts, history):
        exit_ = stop.begin(1)
        for drafted, accepted in history:
            exit_.learn([drafted], [accepted])
        for n, token in enumerate(drafts[:-1]):
            if exit_.watches is not None:
                law = logits(1, text + drafts[:n])[None]
                if not exit_.goes_on(exit_.watches(law, torch.tensor([token]))):
                    return n + 1
        return len(drafts)

    def drafts_after(text, limit, history):
        found = set()
        for drafts in itertools.product(range(VOCAB), repeat=limit):
            found.add(drafts[: length_of(text, drafts, history)] if limit else ())
        return found

    def law_after(text, seen, history):
        left = n_new - (len(text) - len(PROMPT))
        if left == 0:
            return {(): 1.0}
        is_open = bool(history) and opens(seen)
        limit = min(stop.begin(1).max_length, left - 1) if is_open else 0
        law: defaultdict[tuple, float] = defaultdict(float)
        for drafts in drafts_after(text, limit, history):
            qs = [q_after(text + drafts[:n]) for n in range(len(drafts))]
            stands = float(numpy.prod([float(q[x]) for q, x in zip(qs, drafts, strict=True)]))
            for n in range(len(drafts) + 1 if stands else 0):
                p = p_after(text + drafts[:n])
                ratio, left_of_p, kind = 0.0, p, "bonus"
                if n < len(drafts):
                    ratio = min(1.0, float(p[drafts[n]] / qs[n][drafts[n]]))
                    left_of_p, kind = (p - qs[n]).clamp(min=0), "recovered"
                mass = stands * (1 - ratio)
                for x in range(VOCAB) if mass > 0 else ():
                    share = float(left_of_p[x] / left_of_p.sum())
                    if share == 0:
                        continue
                    new = (*drafts[:n], x)
                    signal = (gate or fd.AlwaysDraft()).begin(1).watches or confidence
                    shown = float(signal(logits(0, text + new[:-1])[None], torch.tensor([x])))
                    then = law_after(text + new, (*seen, shown), (*history, (len(drafts), n)))
                    for rounds, rest in then.items():
                        this = (new, len(drafts), n, kind, is_open)
                        law[this, *rounds] += mass * share * rest
                stands *= ratio
        return law

    return law_after(PROMPT, (), ())


def distance(ours: dict[tuple, float], theirs: dict[tuple, float]) -> float:
    return max(abs(ours.get(key, 0.0) - theirs.get(key, 0.0)) for key in {*ours, *theirs})


@pytest.mark.parametrize(
    ("case", "gate", "stop"),
    [
        *(("two of three tokens", "always", stop) for stop in STOPS),
        *(("two of three tokens", gate, "confident") for gate in GATES if gate != "always"),
        *(("two of three tokens", gate, "adaptive") for gate in ("sure", "reopening")),
        *((case, "sure", "confident") for case in CASES if case != "two of three tokens"),
        *((case, "always", "capricious") for case in CASES if case != "two of three tokens"),
    ],
)
def test_a_replay_has_the_joint_law_of_all_rounds_of_decoding(case, gate, stop):
    ours = replayed_law(case, GATES[gate], STOPS[stop])
    theirs = decoding_law(case, GATES[gate], STOPS[stop])
    assert sum(theirs.values()) == pytest.approx(1, abs=1e-12)
    assert distance(ours, theirs) < 1e-12


def test_the_policies_of_these_proofs_decide_differently():
    """The negative control: their laws are apart by more than the proofs allow."""
    case, policies = "two of three tokens", [(None, stop) for stop in STOPS.values()]
    policies += [(gate, STOPS["fixed"]) for gate in GATES.values() if gate]
    found = [replayed_law(case, *each) for each in policies]
    for one, other in itertools.combinations(found, 2):
        assert distance(one, other) > 1e-4


# Drafters of every kind


PROMPTS = [[1, 2, 3], [4, 3, 2, 1, 0, 1, 2, 3, 4], [2], [5, 6, 5, 6, 5]]
WORDS, NEW_TOKENS, LONG = 8, 12, 4


def target(dtype: torch.dtype = torch.float32) -> fd.Decoder:
    return tiny("llama", WORDS, 4, dtype)


def drafters(dtype: torch.dtype = torch.float32) -> dict[str, object]:
    return {
        "model": fd.ModelDrafter(tiny("gemma2", WORDS, 5, dtype)),
        "hot model": fd.ModelDrafter(target(dtype), HOT),
        "skipping": fd.SelfDrafter(fd.SkipPlan(attn=[1], mlp=[0])),
        "early exit": fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2)),
        "some tokens": fd.SelfDrafter(fd.SkipPlan(mlp=[0]), vocabulary=range(5)),
        "lookup": fd.PromptLookupDrafter(),
        "scripted": Scripted(lambda text, limit: [(3 * text[-1] + 1) % WORDS] * (len(text) % 3)),
    }


DETERMINATE = [name for name in drafters() if name != "hot model"]


@dataclass
class Watching:
    """A gate and an exit that want this signal to be enough."""

    watches: object
    least: float = 0.0
    max_length: int = 3

    def begin(self, batch):
        return self

    def opens(self, seen):
        return [each >= self.least for each in seen]

    def goes_on(self, seen):
        return seen >= self.least

    def learn(self, drafted, accepted):
        pass

    def keep_rows(self, rows):
        pass


BLEND = Blend({"confidence": 1.0, "entropy": -0.5}, start=0.6)
RULE = fd.ExpectedGain(
    Costs(1.0, 0.1, {n: 1 + 0.02 * n for n in range(1, LONG + 1)}),
    rate=1.1,
    max_length=LONG,
    opening=Curve((0.2, 0.8), (0.0, 0.5)),
    stands=Curve((0.0, 1.0), (0.2, 0.9)),
    follows=Curve((0.0, 1.0), (0.0, 0.8)),
    later=0.5,
)
POLICIES = {
    "fixed": (None, fd.FixedLength(LONG)),
    "confident": (None, fd.ConfidenceExit(0.3, LONG)),
    "adaptive": (None, fd.AdaptiveExit("article", 0.3, step=0.3, inertia=0.2, max_length=LONG)),
    "worth its time": (None, fd.CostAwareExit(0.2, LONG)),
    "gated": (fd.ConfidenceGate(0.4), fd.FixedLength(LONG)),
    "gated by margin, confident": (fd.MarginGate(0.2), fd.ConfidenceExit(0.3, LONG)),
    "reopening": (fd.ConfidenceGate(0.3, reopen=0.5), fd.FixedLength(3)),
    "blended": (Watching(BLEND), Watching(BLEND)),
    "expected gain": (RULE.gate, RULE.exit),
    "never": (fd.ConfidenceGate(1.0), fd.FixedLength(3)),
}


def generated(name: str, policies: str, n_new: int = NEW_TOKENS, prompts=PROMPTS):
    gate, stop = POLICIES[policies]
    return fd.generate(
        target(),
        prompts,
        sampler=GREEDY,
        max_new_tokens=n_new,
        drafter=drafters()[name],
        exit_policy=stop,
        gate=gate,
        generator=generator(),
        eos_token_id=[],
    )


@cache
def greedy_texts() -> list[list[int]]:
    plain = fd.generate(
        *(target(), PROMPTS), sampler=GREEDY, max_new_tokens=NEW_TOKENS, eos_token_id=[]
    )
    return plain.tokens


def recording(name: str, texts: Sequence[Sequence[int]], **options) -> Script:
    settings = {"sampler": GREEDY, "max_length": LONG, "generator": generator()} | options
    drafter = settings.pop("drafter", None) or drafters()[name]
    return record(target(), PROMPTS[: len(texts)], texts, drafter=drafter, **settings)


@cache
def greedy_script(name: str) -> Script:
    return recording(name, greedy_texts())


def assert_same(ours: dict[int, list], theirs: dict[int, list]) -> None:
    """The same rounds of each row; confidences come from other passes."""
    assert ours.keys() == theirs.keys()
    for row, rounds in ours.items():
        for one, other in zip(rounds, theirs[row], strict=True):
            assert replace(one, confidence=0.0) == replace(other, confidence=0.0)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def by_row(trace, *, named: int | None = None) -> dict[int, list]:
    found = defaultdict(list)
    for each in trace.rounds:
        for row in each.rows:
            found[row.row if named is None else named].append(
                row if named is None else replace(row, row=named)
            )
    return found


@pytest.mark.parametrize("drafter", DETERMINATE)
@pytest.mark.parametrize("policies", POLICIES)
def test_greedy_replays_are_what_generate_does_round_by_round(drafter, policies):
    generation, script = generated(drafter, policies), greedy_script(drafter)
    trace = replay(script, *POLICIES[policies])
    assert len(trace.rounds) == len(generation.trace.rounds)
    assert_same(by_row(trace), by_row(generation.trace))


def test_greedy_drafts_stand_and_fall_in_these_comparisons():
    for name in DETERMINATE:
        assert {0, 1} <= set(greedy_script(name).accepted.flatten().tolist()), name


@pytest.mark.parametrize("drafter", ["model", "early exit", "lookup"])
def test_texts_may_have_unequal_lengths(drafter):
    """Each is decoded as if its length were the budget, down to a text of one token."""
    lengths = [9, 1, NEW_TOKENS, 2]
    texts = [text[:n] for text, n in zip(greedy_texts(), lengths, strict=True)]
    trace = replay(recording(drafter, texts), *POLICIES["confident"])
    for row, n in enumerate(lengths):
        alone = generated(drafter, "confident", n, PROMPTS[row : row + 1]).trace
        assert_same({row: by_row(trace)[row]}, by_row(alone, named=row))


@pytest.mark.parametrize("drafter", ["lookup", "scripted"])
def test_a_draft_that_is_shorter_than_it_may_be_is_accepted_no_further(drafter):
    script = greedy_script(drafter)
    assert int(script.lengths.min()) < LONG
    assert bool((script.accepted <= script.lengths).all())


def test_behind_the_end_of_a_text_the_drafter_goes_on_as_it_likes(monkeypatch):
    """Whatever was read there in place of the text, and though every coin says yes."""
    monkeypatch.setattr(
        recording_module, "accepts", lambda uniforms, chances: torch.ones_like(chances) > 0
    )
    texts, place, draft = [greedy_texts()[0][:5], greedy_texts()[1]], 2, target()
    drafter = fd.ModelDrafter(draft, GREEDY)
    drafts = recording("model", texts, drafter=drafter).drafts[0, place].tolist()
    assert drafts[:2] == texts[0][place + 1 :]
    for n in (2, 3):
        written = torch.tensor([[*PROMPTS[0], *texts[0][: place + 1], *drafts[:n]]])
        assert drafts[n] == int(draft(written)[0, -1].argmax())


@dataclass
class Onlooker:
    """A drafter that notes what it is shown; its one-hot drafts are all token 0."""

    def begin(self, job):
        self.target, self.settled, self.read = job.target, [], []
        return self

    def propose(self, text, limits, stop, *, generator):
        self.read.append((list(text.lengths), self.target.cache.lengths))
        probs = torch.zeros(len(limits), 1, WORDS)
        probs[..., 0] = 1.0
        tokens = torch.zeros(len(limits), 1, dtype=torch.int64)
        return Draft(tokens, probs, tokens[:, 0] + 1)

    def settle(self, text):
        self.settled.append(list(text.lengths))

    def keep_rows(self, rows):
        pass


def test_a_drafter_finds_at_each_place_what_the_loop_would_show_it():
    """The text so far, settled, and read by the target but for its last token."""
    drafter = Onlooker()
    recording("model", greedy_texts(), drafter=drafter)
    wanted = [[len(prompt) + n for prompt in PROMPTS] for n in range(1, NEW_TOKENS - 1)]
    assert drafter.settled == wanted
    assert drafter.read == [(ends, tuple(end - 1 for end in ends)) for ends in wanted]


@pytest.mark.parametrize("at_once", [1, 3])
def test_how_many_texts_are_held_at_once_makes_no_difference(at_once):
    together, apart = greedy_script("model"), recording("model", greedy_texts(), at_once=at_once)
    for name in ("tokens", "lengths", "accepted"):
        assert_equal(getattr(together, name), getattr(apart, name))
    for name in SIGNALS:
        torch.testing.assert_close(together.target[name], apart.target[name], atol=1e-5, rtol=0)


def assert_equal(one, other) -> None:
    assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# What is drawn at random


def sampled_texts(model: fd.Decoder, prompts, n_new: int, seed: int) -> list[list[int]]:
    return fd.generate(
        *(model, prompts),
        sampler=PLAIN,
        max_new_tokens=n_new,
        generator=generator(seed),
        eos_token_id=[],
    ).tokens


@pytest.mark.parametrize("name", ["model", "hot model", "skipping", "early exit", "some tokens"])
def test_recorded_signals_are_those_of_a_draft_made_behind_that_text_alone(name):
    """So q is the drafter's own law, whatever it drafted before at other places."""
    model, drafter = target(torch.float64), drafters(torch.float64)[name]
    texts = sampled_texts(model, PROMPTS, 6, 1)
    script = record(
        *(model, PROMPTS, texts),
        sampler=PLAIN,
        drafter=drafter,
        max_length=3,
        generator=generator(2),
    )
    assert torch.equal(script.lengths, torch.full((len(PROMPTS), 4), 3))
    for row, place in itertools.product(range(len(PROMPTS)), range(4)):
        written, drafts = [*PROMPTS[row], *texts[row][: place + 1]], script.drafts[row, place]
        for n, law in enumerate(laws_of_draft(model, drafter, written, drafts.tolist())):
            for signal, found in script.signals.items():
                wanted = float(SIGNALS[signal](law, drafts[n : n + 1]))
                assert float(found[row, place, n]) == pytest.approx(wanted, abs=1e-9)


def laws_of_draft(model, drafter, text, drafts) -> list[torch.Tensor]:
    """The logits that a new proposer gives behind a text, where it drafts these tokens."""
    seen = []

    class Dictated:
        """A script of one draft."""

        repetition_penalty = 1

        def probs(self, logits, prefix=None):
            seen.append(logits)
            return logits.softmax(-1)

        def draw(self, probs, *, generator):
            return torch.tensor([drafts[len(seen) - 1]])

    reader = Reader(model, 1, len(text) + 8, 8)
    job = Job(reader, PLAIN, 1, len(text) + 8, 8, drawing=lambda _: Dictated())
    with torch.inference_mode():
        proposer = drafter.begin(job)
        whole = Text([text], len(text) + 8, model.device)
        proposer.propose(whole, [len(drafts)], fd.FixedLength(3), generator=generator())
    return seen


ROWS, SAMPLED_NEW = 300, 10
RANDOM = {
    "model": fd.ConfidenceExit(0.25, LONG),
    "hot model": fd.FixedLength(LONG),
    "early exit": fd.ConfidenceExit(0.25, LONG),
    "skipping": fd.AdaptiveExit("article", 0.3, step=0.3, inertia=0.2, max_length=LONG),
    "lookup": fd.FixedLength(LONG),
}


@pytest.mark.parametrize("name", RANDOM)
def test_sampled_replays_and_generations_have_the_same_rounds(name):
    """Means of rounds by text (z) and outcomes of the first draft (χ²) of 300 independent texts.

    False-alarm probabilities 1e-6 and, for χ², 1e-3: no luck, since generators are seeded.
    """
    gate, stop, prompts = fd.ConfidenceGate(0.15), RANDOM[name], [PROMPTS[3]] * ROWS
    texts = sampled_texts(target(), prompts, SAMPLED_NEW, 1)
    script = record(
        *(target(), prompts, texts),
        sampler=PLAIN,
        drafter=drafters()[name],
        max_length=LONG,
        generator=generator(2),
        at_once=ROWS,
    )
    decoded = fd.generate(
        *(target(), prompts),
        sampler=PLAIN,
        max_new_tokens=SAMPLED_NEW,
        drafter=drafters()[name],
        exit_policy=stop,
        gate=gate,
        generator=generator(3),
        eos_token_id=[],
    )
    found = [by_row(trace) for trace in (replay(script, gate, stop), decoded.trace)]
    counts = [numpy.array([len(rounds) for rounds in each.values()]) for each in found]
    error = numpy.sqrt(sum(each.var(ddof=1) / ROWS for each in counts))
    assert abs(counts[0].mean() - counts[1].mean()) < 4.9 * error
    firsts = [
        [(rounds[1].drafted, rounds[1].accepted) for rounds in each.values()] for each in found
    ]
    cells = sorted({*firsts[0], *firsts[1]})
    table = numpy.array([[each.count(cell) for cell in cells] for each in firsts])
    rare = table.sum(0) < 10
    table = numpy.column_stack([table[:, ~rare], *([table[:, rare].sum(1)] if rare.any() else [])])
    assert table.shape[1] > 2
    assert chi2_contingency(table).pvalue > 1e-3


# What a replay is not


def test_a_replay_does_not_depend_on_what_was_replayed_before():
    script = greedy_script("model")
    first = {name: replay(script, *policies) for name, policies in POLICIES.items()}
    for name in reversed(POLICIES):
        assert replay(script, *POLICIES[name]) == first[name]


def surprise(logits, tokens):
    """A signal of a reader's own."""
    return -confidence(logits, tokens).log()


@pytest.mark.parametrize("role", ["gate", "exit"])
@pytest.mark.parametrize("signal", [surprise, Blend({"new": 1.0}, signals={"new": surprise})])
def test_a_policy_that_watches_what_was_not_recorded_is_refused_by_name(role, signal):
    policy, fixed = Watching(signal), fd.FixedLength(2)
    policies = (policy, fixed) if role == "gate" else (None, policy)
    with pytest.raises(ValueError, match=r"surprise.*confidence, entropy, margin"):
        replay(greedy_script("model"), *policies)


def test_an_exit_beyond_the_recorded_drafts_is_refused():
    with pytest.raises(ValueError, match=f"5 tokens, but {LONG} were recorded"):
        replay(greedy_script("model"), None, fd.FixedLength(5))


@dataclass
class OwnDraws:
    """A drafter that draws past the script."""

    def begin(self, job):
        self.vocab = job.target.model.config.vocab_size
        return self

    def propose(self, text, limits, stop, *, generator):
        probs = torch.full((len(limits), 1, self.vocab), 1 / self.vocab)
        tokens = torch.randint(self.vocab, (len(limits), 1), generator=generator)
        return Draft(tokens, probs, torch.ones(len(limits), dtype=torch.int64))

    def settle(self, text):
        pass

    def keep_rows(self, rows):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": fd.Sampler(repetition_penalty=1.2)}, r"repetition_penalty is 1\.2"),
        ({"max_length": 0}, "max_length=0"),
        ({"at_once": 0}, "at_once=0"),
        ({"drafter": OwnDraws()}, "0 of them by the script"),
    ],
)
def test_what_cannot_be_recorded_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recording("model", greedy_texts(), **options)


@pytest.mark.parametrize("texts", [[], [[1], []]])
def test_texts_that_nobody_wrote_are_refused(texts):
    with pytest.raises(ValueError, match="1 token or more"):
        recording("model", texts)
