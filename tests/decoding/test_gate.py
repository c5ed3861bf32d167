"""Gates: each row by its own last token, as their rules say, and nothing else is changed."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import foredraft as fd
from foredraft.decoding.gate import Gate, GatePolicy
from foredraft.decoding.signal import SIGNALS, Blend, confidence, entropy, margin
from tests.decoding.conftest import Opener
from tests.decoding.test_exit import END, kin
from tests.decoding.test_signal import by_hand
from tests.decoding.test_speculation import GREEDY, PROMPTS, target

DTYPE = torch.float64
DRAFTERS = {
    "a model": lambda family: kin(family),
    "the target": lambda family: fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2)),
    "the text": lambda family: fd.PromptLookupDrafter(1),
}
SAMPLING = {
    "confidence": fd.ConfidenceGate(0.06),
    "entropy": fd.EntropyGate(2.82),
    "margin": fd.MarginGate(0.035),
}
"""Thresholds near the medians of the tiny models' sampled texts."""
REOPENING = {
    "confidence": fd.ConfidenceGate(0.04, reopen=0.1),
    "entropy": fd.EntropyGate(2.85, reopen=2.78),
    "margin": fd.MarginGate(0.02, reopen=0.07),
}
CASES = [*SAMPLING.items(), *REOPENING.items()]
ALWAYS = [fd.ConfidenceGate(0), fd.MarginGate(0), fd.EntropyGate(math.inf), fd.AlwaysDraft()]
NEVER = [fd.ConfidenceGate(1), fd.MarginGate(1.0), fd.EntropyGate(0)]
each_drafter = pytest.mark.parametrize("drafter", DRAFTERS)
each_case = pytest.mark.parametrize(("name", "gate"), CASES, ids=repr)
each_reopening = pytest.mark.parametrize("gate", REOPENING.values(), ids=REOPENING)


def drafting(gate, drafter="a model", prompts=PROMPTS, family="llama", seed=0, **options):
    """Sampled text in float64, so that a row alone and in a batch sees the same signals."""
    given = {"sampler": fd.Sampler(), "max_new_tokens": 24, "eos_token_id": END}
    options = given | {"exit_policy": fd.FixedLength(3)} | options
    return fd.generate(
        target(family, DTYPE),
        prompts,
        drafter=drafter and DRAFTERS[drafter](family),
        gate=gate,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def seen_of_last(family, text, name):
    """Give a signal of a text's last token by the whole model's law of it, in numpy."""
    logits = target(family, DTYPE)(torch.tensor([text[:-1]]))[0, -1]
    return by_hand(name, logits, text[-1])


def rounds(made, row):
    """Give a row's rounds in order."""
    return [each for whole in made.trace.rounds for each in whole.rows if each.row == row]


def seen_after(made, row, name, family="llama"):
    """Give the signal of the last token of each of a row's rounds."""
    text, found = list(PROMPTS[row]), []
    for each in rounds(made, row):
        text += each.tokens
        found.append(seen_of_last(family, text, name))
    return found


def opens_by_hand(gate, seen):
    """Say of each round of a row whether it drafts, given what it sees: the rule written out."""
    sign = -1 if isinstance(gate, fd.EntropyGate) else 1
    is_open, said = True, []
    for value in seen:
        bound = gate.threshold if is_open or gate.reopen is None else gate.reopen
        is_open = sign * value >= sign * bound
        said.append(is_open)
    return said


# The rules


def test_a_row_drafts_behind_a_token_as_sure_as_the_threshold():
    gate = fd.ConfidenceGate().begin(3)
    assert gate.opens([0.5, 0.4999, 1.0]) == [True, False, True]
    gate = fd.EntropyGate(1.5).begin(3)
    assert gate.opens([1.5, 1.5001, 0.0]) == [True, False, True]
    gate = fd.MarginGate(0.25).begin(3)
    assert gate.opens([0.25, 0.2499, 1.0]) == [True, False, True]


@pytest.mark.parametrize("gate", ALWAYS, ids=repr)
def test_at_one_end_of_its_thresholds_a_gate_is_always_open(gate):
    assert gate.begin(4).opens([0.0, 0.3, 1.0, 1e-30]) == [True] * 4


@pytest.mark.parametrize("gate", NEVER, ids=repr)
def test_at_the_other_it_is_never_though_a_probability_may_round_to_one(gate):
    assert gate.begin(4).opens([1.0, 0.9999, 0.0, 0.5]) == [False] * 4


def test_a_gate_that_has_closed_opens_at_the_higher_threshold_only():
    gate = fd.ConfidenceGate(0.3, reopen=0.6).begin(1)
    seen = [0.3, 0.29, 0.59, 0.6, 0.3, 0.1, 1.0]
    said = [gate.opens([each])[0] for each in seen]
    assert said == [True, False, False, True, True, False, True]
    gate = fd.EntropyGate(2.0, reopen=1.0).begin(1)
    said = [gate.opens([each])[0] for each in (2.0, 2.1, 1.1, 1.0, 2.0)]
    assert said == [True, False, False, True, True]


def test_a_gate_that_is_to_reopen_never_does_not():
    for gate in (fd.ConfidenceGate(0.5, reopen=1), fd.MarginGate(0.5, reopen=1)):
        rows = gate.begin(1)
        assert [rows.opens([each])[0] for each in (0.5, 0.4, 1.0)] == [True, False, False]
    rows = fd.EntropyGate(0.5, reopen=0).begin(1)
    assert [rows.opens([each])[0] for each in (0.5, 0.6, 0.0)] == [True, False, False]


def test_a_gate_that_has_closed_keeps_to_its_own_row():
    """Four rows, of which the last and the second go on, in this order."""
    gate = fd.MarginGate(0.3, reopen=0.6).begin(4)
    assert gate.opens([0.1, 0.4, 0.1, 0.1]) == [False, True, False, False]
    gate.keep_rows([3, 1])
    assert gate.opens([0.4, 0.4]) == [False, True]
    gate.keep_rows([1])
    assert gate.opens([0.4]) == [True]


def test_a_gate_asks_for_as_many_signals_as_it_has_rows():
    with pytest.raises(ValueError, match="zip"):
        fd.ConfidenceGate().begin(2).opens([0.5])


def test_generations_at_the_same_time_close_apart():
    policy = fd.ConfidenceGate(0.3, reopen=0.6)
    one, other = policy.begin(1), policy.begin(1)
    assert one.opens([0.1]) == [False]
    assert other.opens([0.4]) == [True]
    assert policy.begin(1).opens([0.4]) == [True]


@pytest.mark.parametrize(
    ("policy", "signal"),
    [
        (fd.AlwaysDraft(), None),
        (fd.ConfidenceGate(), confidence),
        (fd.EntropyGate(1), entropy),
        (fd.MarginGate(0.5), margin),
    ],
    ids=["always", "confidence", "entropy", "margin"],
)
def test_what_begins_is_a_gate_as_the_loop_expects_it(policy, signal):
    assert isinstance(policy, GatePolicy)
    gate = policy.begin(2)
    assert isinstance(gate, Gate)
    assert gate.watches is signal


# In the loop


@each_drafter
@each_case
def test_each_round_drafts_by_the_last_token_of_the_one_before(name, gate, drafter):
    """Recovered tokens and bonus tokens alike, and first of all the prefill's."""
    made, met, wanted_first = drafting(gate, drafter), set(), []
    for row in range(len(PROMPTS)):
        mine = rounds(made, row)
        wanted = opens_by_hand(gate, seen_after(made, row, name)[:-1])
        assert [each.gate_open for each in mine] == [False, *wanted]
        assert all(each.drafted == 0 for each in mine if not each.gate_open)
        met |= {(before.kind, now.gate_open) for before, now in itertools.pairwise(mine)}
        wanted_first += wanted[:1]
    assert met == set(itertools.product(("bonus", "recovered"), (True, False)))
    assert set(wanted_first) == {True, False}
    assert len({len(tokens) for tokens in made.tokens}) > 2


@pytest.mark.parametrize("name", REOPENING)
def test_the_reopening_gates_of_these_tests_remember(name):
    """Other than a gate of either threshold alone, and that after some rows have left."""
    gate = REOPENING[name]
    forgetful = [
        replace(gate, threshold=each, reopen=None) for each in (gate.threshold, gate.reopen)
    ]
    made, late = drafting(gate), 0
    left = min(len(rounds(made, row)) for row in range(len(PROMPTS)))
    for row in range(len(PROMPTS)):
        seen = seen_after(made, row, name)[:-1]
        said = opens_by_hand(gate, seen)[left:]
        late += all(said != opens_by_hand(each, seen)[left:] for each in forgetful)
    assert late > 1


@each_reopening
def test_a_round_tells_the_confidence_whatever_the_gate_watches(gate):
    made = drafting(gate)
    for row in range(len(PROMPTS)):
        told = [each.confidence for each in rounds(made, row)]
        assert told == pytest.approx(seen_after(made, row, "confidence"), abs=1e-12)


@each_reopening
def test_rows_of_one_round_decide_each_for_itself(gate):
    made = drafting(gate)
    several = [{row.gate_open for row in each.rows} for each in made.trace.rounds]
    assert sum(len(said) == 2 for said in several) > 3


@each_reopening
def test_a_row_s_gate_says_in_a_batch_what_it_says_alone(gate):
    """Greedy; sampling cannot be compared, since rows share one generator."""
    together = drafting(gate, sampler=GREEDY)
    for row, prompt in enumerate(PROMPTS[:4]):
        alone = drafting(gate, prompts=[prompt], sampler=GREEDY)
        assert [(each.gate_open, each.drafted, each.tokens) for each in rounds(together, row)] == [
            (each.gate_open, each.drafted, each.tokens) for each in rounds(alone, 0)
        ]


@each_drafter
@pytest.mark.parametrize("gate", NEVER, ids=repr)
def test_what_never_drafts_is_plain_decoding_token_for_token(gate, drafter):
    made = drafting(gate, drafter, max_new_tokens=10)
    plain = drafting(None, None, max_new_tokens=10)
    assert made.tokens == plain.tokens
    assert made.trace == plain.trace
    assert made.trace.drafted == 0


@each_drafter
@pytest.mark.parametrize("gate", ALWAYS, ids=repr)
def test_what_always_drafts_is_as_if_there_were_no_gate(gate, drafter):
    made = drafting(gate, drafter, max_new_tokens=10)
    assert made == drafting(None, drafter, max_new_tokens=10)
    assert made.trace.drafted > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_both_ends_are_so_whatever_the_seed(seed):
    assert drafting(NEVER[0], seed=seed).trace == drafting(None, None, seed=seed).trace
    assert drafting(ALWAYS[0], seed=seed) == drafting(None, seed=seed)


@cache
def plain_greedy(family):
    return drafting(None, None, family=family, sampler=GREEDY).tokens


@pytest.mark.parametrize(("name", "drafter"), [*zip(REOPENING, DRAFTERS, strict=True)])
def test_greedy_text_stays_autoregressive_decoding_s(family, name, drafter):
    made = drafting(REOPENING[name], drafter, family=family, sampler=GREEDY)
    assert made.tokens == plain_greedy(family)


@dataclass
class Watching(Opener):
    """Keep what it is shown and which rows go on; open in every other round."""

    signal: object = None

    def begin(self, batch):
        self.shown, self.kept = [], []
        return self

    @property
    def watches(self):
        return self.signal

    def opens(self, seen):
        self.shown.append(list(seen))
        return [len(self.shown) % 2 == 0] * len(seen)

    def keep_rows(self, rows):
        self.kept.append((len(self.shown), list(rows)))


BLEND = Blend({"confidence": 2.0, "entropy": -0.5, "margin": 1.0}, start=0.3)


def blended(made, row):
    parts = {name: torch.tensor(seen_after(made, row, name)) for name in SIGNALS}
    return BLEND.of(parts).tolist()


@pytest.mark.parametrize("signal", [None, confidence, BLEND], ids=["None", "confidence", "blend"])
def test_a_reader_s_gate_is_shown_what_it_watches_or_else_the_confidence(signal):
    gate = Watching(signal)
    made = drafting(gate)
    shown = {row: [] for row in range(len(PROMPTS))}
    for each, seen in zip(made.trace.rounds[1:], gate.shown, strict=True):
        for row, value in zip(each.rows, seen, strict=True):
            shown[row.row].append(value)
    for row, values in shown.items():
        wanted = blended(made, row) if signal is BLEND else seen_after(made, row, "confidence")
        assert values == pytest.approx(wanted[:-1], abs=1e-12)


def test_a_gate_is_told_which_rows_go_on_by_their_places():
    gate = Watching()
    made, rows = drafting(gate), list(range(len(PROMPTS)))
    kept = dict(gate.kept)
    for index, each in enumerate(made.trace.rounds):
        assert [row.row for row in each.rows] == rows
        rows = [rows[place] for place in kept.get(index, range(len(rows)))]
    assert len(gate.kept) > 2


@pytest.mark.parametrize("signal", [None, entropy])
def test_without_a_drafter_there_is_nothing_to_ask_a_gate(signal):
    gate = Watching(signal)
    assert drafting(gate, None) == drafting(None, None)
    assert gate.shown == []


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fd.ConfidenceGate(1.5), "threshold is 1.5; it is compared with probabilities"),
        (lambda: fd.ConfidenceGate(-0.1), "threshold is -0.1; .* choose 0 .always draft. to 1"),
        (lambda: fd.ConfidenceGate(math.nan), "threshold is nan"),
        (lambda: fd.ConfidenceGate(0.5, reopen=1.1), "reopen is 1.1"),
        (lambda: fd.ConfidenceGate(0.5, reopen=0.4), "reopen is 0.4, .* the threshold of 0.5"),
        (lambda: fd.MarginGate(2), "threshold is 2"),
        (lambda: fd.MarginGate(0.5, reopen=0.4), "reopen is 0.4"),
        (lambda: fd.EntropyGate(-1), "threshold is -1; an entropy is 0 nats or more: choose 0"),
        (lambda: fd.EntropyGate(math.nan), "threshold is nan"),
        (lambda: fd.EntropyGate(1, reopen=-0.5), "reopen is -0.5"),
        (lambda: fd.EntropyGate(1, reopen=1.5), "reopen is 1.5, .* the threshold of 1"),
    ],
)
def test_what_makes_no_gate_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
