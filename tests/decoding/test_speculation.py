"""Speculative decoding end to end: greedy text, caches, ends, budgets, whoever drafts."""

import itertools
import math
import random
from functools import cache, partial

import pytest
import torch

import foredraft as fd
from foredraft.decoding import verify
from foredraft.decoding.draft import Draft, Job
from foredraft.decoding.expected_gain import Curve
from foredraft.decoding.reader import Reader
from foredraft.decoding.text import Text
from foredraft.decoding.theory import Costs
from tests.decoding.conftest import WINDOW, Opener, Scripted, Waits, tiny

VOCAB = 24
GREEDY = fd.Sampler(temperature=0.0)
PENALISED = fd.Sampler(temperature=0.0, repetition_penalty=1.4)
PROMPTS = [
    [int(t) for t in torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n))]
    for n in (1, 9, 4, 17, 2, 6, 13, 3)
]
EXITS = {"four": fd.FixedLength(4), "confident": fd.ConfidenceExit(0.4, 6)}


def target(family, dtype=torch.float32):
    return tiny(family, VOCAB, 1, dtype)


def wrong(text, limit):
    """Propose what the text hardly goes on with: its last token again and again."""
    return [text[-1]] * limit


def fickle(text, limit):
    """Propose now much, now little, now nothing, at random but repeatably."""
    chance = random.Random(len(text) * 7919 + text[-1])
    return [chance.randrange(VOCAB) for _ in range(chance.randint(0, limit))]


def almost_right(family, text, limit):
    """Propose what greedy decoding goes on with, but for one token in most drafts."""
    known = (
        [*prompt, *new]
        for sampler in (GREEDY, PENALISED)
        for prompt, new in zip(PROMPTS, plain(family, sampler, 16), strict=True)
    )
    right = next(whole[len(text) :] for whole in known if whole[: len(text)] == text)
    place = len(text) % (limit + 1)
    return [(token + (i == place)) % VOCAB for i, token in enumerate(right[:limit])]


def drafters(family):
    ours = target(family)
    return {
        "itself": fd.ModelDrafter(ours),
        "another": fd.ModelDrafter(tiny(family, VOCAB, 2, torch.float32)),
        "another, sampled": fd.ModelDrafter(tiny(family, VOCAB, 2, torch.float32), fd.Sampler(1.3)),
        "in part": fd.SelfDrafter(fd.SkipPlan(attn=[0], mlp=[1])),
        "in part, trimmed": fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2), vocabulary=range(9)),
        "lookup": fd.PromptLookupDrafter(),
        "wrong": Scripted(wrong),
        "fickle": Scripted(fickle),
        "almost right": Scripted(partial(almost_right, family)),
    }


@cache
def plain(family, sampler, n):
    return fd.generate(target(family), PROMPTS, sampler=sampler, max_new_tokens=n).tokens


@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("stop", EXITS)
@pytest.mark.parametrize(
    "name",
    [
        *("itself", "another", "another, sampled", "in part", "in part, trimmed"),
        *("lookup", "wrong", "fickle", "almost right"),
    ],
)
def test_greedy_text_is_autoregressive_decoding_s_token_for_token(family, name, stop, verification):
    """Ragged 8 and batch 1, beyond Gemma-2's window; with and without a repetition penalty.

    Over exits, verifications and samplers each drafter continues each prompt alone.
    """
    turn = 4 * list(EXITS).index(stop) + 2 * (verification == "block")
    for row, sampler in enumerate((GREEDY, PENALISED), turn):
        wanted = plain(family, sampler, 16)
        options = {
            "sampler": sampler,
            "max_new_tokens": 16,
            "drafter": drafters(family)[name],
            "exit_policy": EXITS[stop],
            "verification": verification,
            "generator": torch.Generator().manual_seed(0),
        }
        assert fd.generate(target(family), PROMPTS, **options).tokens == wanted
        assert fd.generate(target(family), [PROMPTS[row]], **options).tokens == [wanted[row]]


def read(model, text, width):
    """Give the float32 logits after each token of a text that is read `width` tokens at a time."""
    cache, parts = model.new_cache(1, len(text)), []
    for start in range(0, len(text), width):
        part = text[start : start + width]
        parts.append(model(torch.tensor([part]), cache)[0].float())
        cache.commit(len(part))
    return torch.cat(parts)


def noise(model, text):
    """Measure by how much one logit gains on another if k tokens are read at once, not each alone.

    At worst over the text's places, for drafts of one and of four.
    """
    alone = read(model, text, 1)
    moved = [read(model, text, width) - alone for width in (2, 5)]
    return max((each.amax(-1) - each.amin(-1)).max().item() for each in moved)


def lead_and_noise(seed, n_prompt):
    """Decode a text greedily in bfloat16 without a draft and with one.

    Where the two part, gives the target's lead of the former's token over the latter's, no less
    than the margin of its two best; 0 if they do not part. And the noise.
    """
    vocab, n_new = 1000, 40
    ours = tiny("llama", vocab, seed, torch.bfloat16, hidden=64)
    prompt = torch.randint(vocab, (n_prompt,), generator=torch.Generator().manual_seed(n_prompt))
    prompt, drafter = prompt.tolist(), fd.SelfDrafter(fd.SkipPlan(mlp=[1]))
    alone, drafted = (
        fd.generate(ours, [prompt], sampler=GREEDY, max_new_tokens=n_new, drafter=who).tokens[0]
        for who in (None, drafter)
    )
    place = next((i for i in range(n_new) if alone[i] != drafted[i]), None)
    lead = 0.0
    if place is not None:
        after = read(ours, [*prompt, *alone[:place]], 1)[-1]
        lead = (after[alone[place]] - after[drafted[place]]).item()
    return lead, noise(ours, prompt + alone)


PARTING = [(2, 1), (2, 17)]
"""Seeds, and lengths of prompts whose greedy texts part, at least where they were chosen."""


@pytest.mark.parametrize(("seed", "n_prompt"), PARTING)
def test_greedy_texts_part_in_bfloat16_only_where_the_lead_is_no_more_than_noise(seed, n_prompt):
    lead, most = lead_and_noise(seed, n_prompt)
    assert lead <= most


def test_a_verifier_that_lets_everything_stand_is_told_from_noise(monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(verify, "accepts", lambda uniforms, chances: chances > -1)
    lead, most = lead_and_noise(*PARTING[1])
    assert lead > 3 * most


@pytest.mark.parametrize("verification", ["token", "block"])
def test_a_model_that_drafts_for_itself_is_never_rejected(family, verification):
    ours = target(family, torch.float64)
    for sampler in (GREEDY, fd.Sampler(), fd.Sampler(0.7, top_p=0.8, repetition_penalty=1.2)):
        made = fd.generate(
            ours,
            PROMPTS,
            sampler=sampler,
            max_new_tokens=26,
            drafter=fd.ModelDrafter(ours),
            verification=verification,
            generator=torch.Generator().manual_seed(1),
        )
        assert made.acceptance_rate == 1
        # One token from the prefill, then five rounds of four drafts and a bonus.
        assert set(made.trace.table().groupby("row")["round"].max()) == {5}


class TwoInThree(Opener):
    """A gate that leaves every third round without a draft."""

    def __init__(self):
        self.rounds = 0

    def opens(self, seen):
        self.rounds += 1
        return [self.rounds % 3 > 0] * len(seen)


@pytest.mark.parametrize("drafter", ["another", "in part", "lookup", "fickle"])
def test_keys_and_values_after_each_round_are_those_of_a_fresh_prefill(
    family, drafter, monkeypatch
):
    ours = target(family, torch.float64)
    who = (
        fd.ModelDrafter(tiny(family, VOCAB, 2, torch.float64))
        if drafter == "another"
        else drafters(family)[drafter]
    )
    readers = []
    begin = Reader.__init__

    def remember(self, *args):
        begin(self, *args)
        readers.append(self)

    monkeypatch.setattr(Reader, "__init__", remember)
    texts = [list(prompt) for prompt in PROMPTS]
    compared = rejected = 0

    def compare(each):
        nonlocal compared, rejected
        for row in each.rows:
            texts[row.row] += row.tokens
        for place, row in enumerate(each.rows):
            text = texts[row.row]
            assert readers[0].cache.lengths[place] == len(text) - 1
            for reader in readers:  # the target's, and the draft model's if there is one
                if row.drafted:  # it has read what it drafted from, and need not do so again
                    assert reader.cache.lengths[place] >= len(text) - len(row.tokens)
                same_as_fresh(reader, place, text)
            compared += 1
            rejected += row.accepted < row.drafted

    def same_as_fresh(reader, place, text):
        cache, valid = reader.cache, min(reader.cache.lengths[place], len(text) - 1)
        fresh = reader.model.new_cache(1, len(text))
        reader.model.hidden(torch.tensor([text[:-1]]), fresh)
        for layer in range(reader.model.config.n_layers):
            for kept, wanted in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
                got = kept[layer][place, :, :valid]
                torch.testing.assert_close(got, wanted[layer][0, :, :valid], atol=1e-10, rtol=0)

    fd.generate(
        ours,
        PROMPTS,
        sampler=fd.Sampler(),
        max_new_tokens=3 * WINDOW,
        drafter=who,
        exit_policy=fd.FixedLength(3),
        gate=TwoInThree(),
        generator=torch.Generator().manual_seed(5),
        on_round=compare,
    )
    assert compared > 40
    assert rejected > 3


def test_rows_of_a_batch_emit_what_each_would_alone(family):
    """Greedy; sampling cannot be compared, since rows share one generator."""
    ours, drafter = target(family), drafters(family)["another"]
    options = {"sampler": GREEDY, "max_new_tokens": 20, "drafter": drafter}
    batch = fd.generate(ours, PROMPTS, **options)
    alone = [fd.generate(ours, [prompt], **options) for prompt in PROMPTS]
    assert batch.tokens == [each.tokens[0] for each in alone]
    rows = batch.trace.table().groupby("row")[["drafted", "accepted", "emitted"]].sum()
    for row, each in enumerate(alone):
        assert tuple(rows.loc[row]) == (each.trace.drafted, each.trace.accepted, 20)


@pytest.mark.parametrize("place", [0, 1, 4, 5, 6])
def test_an_end_inside_the_accepted_block_ends_the_row_there(family, place):
    free = plain(family, GREEDY, 20)
    for row in (1, 3):
        end = free[row][place]
        wanted = free[row][: free[row].index(end) + 1]
        made = fd.generate(
            target(family),
            [PROMPTS[row]],
            sampler=GREEDY,
            max_new_tokens=20,
            eos_token_id=end,
            drafter=fd.ModelDrafter(target(family)),
            exit_policy=fd.FixedLength(5),
        )
        assert made.tokens == [wanted]
        assert made.trace.emitted == len(wanted)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_the_budget_is_exact_whatever_the_draft_length(family, n, length):
    made = fd.generate(
        target(family),
        PROMPTS,
        sampler=fd.Sampler(),
        max_new_tokens=n,
        drafter=fd.ModelDrafter(target(family)),
        exit_policy=fd.FixedLength(length),
        generator=torch.Generator().manual_seed(0),
    )
    assert [len(tokens) for tokens in made.tokens] == [n] * len(PROMPTS)
    assert made.trace.drafted <= n * len(PROMPTS)


def test_drafting_up_to_the_model_s_last_position_needs_no_room_behind_it():
    ours = target("llama")
    room = ours.config.max_positions - 9
    made = fd.generate(
        ours,
        [PROMPTS[1], PROMPTS[0]],
        sampler=GREEDY,
        max_new_tokens=room,
        drafter=fd.ModelDrafter(ours),
        exit_policy=fd.FixedLength(8),
    )
    assert [len(tokens) for tokens in made.tokens] == [room, room]


WATCHED = fd.Sampler(0.9, top_k=20, top_p=0.95, repetition_penalty=1.1)


def waits_by_round(family, drafter, stop, prompts, **options):
    """Give how often the host waits in each round, and between it and the one before.

    Rows end at different times, by the budget and by a token that ends a text.
    """
    told = [0]

    def tell(each):
        if each.index == 0:
            seen.sends = 0  # the prompts, beforehand
        told.append(seen.asks + seen.sends)

    with Waits() as seen:
        made = fd.generate(
            target(family),
            prompts,
            sampler=WATCHED,
            max_new_tokens=14,
            drafter=drafter,
            exit_policy=stop,
            eos_token_id=[7],
            generator=torch.Generator().manual_seed(4),
            on_round=tell,
            **options,
        )
    return made, [after - before for before, after in itertools.pairwise(told)]


rows = pytest.mark.parametrize(
    "prompts", [[PROMPTS[3]], PROMPTS[:4]], ids=["one row", "ragged rows"]
)


@rows
@pytest.mark.parametrize(
    ("name", "verification"),
    [
        *(("nobody", "token"), ("another", "token"), ("in part", "block"), ("lookup", "token")),
        *(("an exit, reused", "token"), ("in part, trimmed", "block")),
    ],
)
def test_the_host_waits_for_the_device_once_a_round(family, name, verification, prompts):
    """Draft models, the target itself, the text, or nobody; from the prefill to the last round."""
    reused = {"an exit, reused": fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2))}
    drafter = ({"nobody": None} | reused | drafters(family))[name]
    options = {"verification": verification}
    made, waits = waits_by_round(family, drafter, fd.FixedLength(3), prompts, **options)
    assert len(waits) > 2
    assert waits == [1] * len(waits)
    assert (made.trace.drafted > 0) == (drafter is not None)


RULE = fd.ExpectedGain(
    Costs(1.0, 0.1, {1: 1.0, 2: 1.1, 3: 1.2}),
    rate=1.0,
    max_length=3,
    opening=Curve((0.03, 0.3), (0.0, 1.0)),
    stands=Curve((0.0, 0.3), (0.5, 1.0)),
    follows=Curve((0.0, 0.3), (0.0, 1.0)),
    later=0.5,
)
GATES = {
    "confidence": fd.ConfidenceGate(0.07),
    "reopening": fd.ConfidenceGate(0.05, reopen=0.09),
    "entropy": fd.EntropyGate(2.82),
    "margin": fd.MarginGate(0.035),
    "expected gain": RULE.gate,
}
ENDS = {"always": fd.EntropyGate(math.inf), "never": fd.MarginGate(1)}


@rows
@pytest.mark.parametrize(
    ("name", "gate"),
    [
        *(("another", "confidence"), ("another", "entropy"), ("another", "expected gain")),
        *(("in part", "reopening"), ("in part", "margin"), ("in part", "expected gain")),
        *(("lookup", "entropy"), ("another", "always"), ("another", "never")),
    ],
)
def test_no_gate_makes_it_wait_once_more(name, gate, prompts):
    gates, drafter = GATES | ENDS, drafters("llama")[name]
    options = {"gate": gates[gate]}
    made, waits = waits_by_round("llama", drafter, fd.FixedLength(3), prompts, **options)
    assert waits == [1] * len(waits)
    said = set(made.trace.table().query("round > 0")["gate_open"])
    assert said == {"always": {True}, "never": {False}}.get(gate, {True, False})


@rows
@pytest.mark.parametrize("stop", [fd.ConfidenceExit(0.1, 3), RULE.exit], ids=["sure", "gain"])
@pytest.mark.parametrize("name", ["another", "in part"])
def test_an_exit_that_watches_waits_once_more_for_each_drafted_token_but_the_last_that_may_be(
    family, name, stop, prompts
):
    made, waits = waits_by_round(family, drafters(family)[name], stop, prompts)
    wanted, left = [], dict.fromkeys(range(len(prompts)), 14)
    for each in made.trace.rounds:
        most = min(3, max(left[row.row] for row in each.rows) - 1)
        drafted = max(row.drafted for row in each.rows)
        wanted.append(1 + (min(drafted, most - 1) if drafted else 0))
        left |= {row.row: left[row.row] - len(row.tokens) for row in each.rows}
    assert waits == wanted
    assert len(set(waits)) > 1


def test_prompt_lookup_looks_at_the_device_only_where_that_is_the_cpu():
    """There one look at the longest match spares verification what no row has to propose."""
    ours = target("llama")
    text = Text([[1, 2, 3, 1, 2], [3]], 12, ours.device)
    job = Job(Reader(ours, 2, 12, 6), GREEDY, 2, 12, 6)
    proposer = fd.PromptLookupDrafter().begin(job)
    for looks in (False, True):
        with Waits(looks=looks) as seen:
            draft = proposer.propose(text, [2, 4], fd.FixedLength(4), generator=torch.Generator())
        assert seen.asks + seen.sends == looks
        assert draft.tokens.shape[1] == (2 if looks else 4)


class Argmax:
    """Draws without a generator."""

    repetition_penalty = 1

    def probs(self, logits, prefix=None):
        return logits.softmax(-1)

    def draw(self, probs, *, generator):
        return probs.argmax(-1)


def elsewhere(decoder):
    """The same without values, on a device that refuses what lies on the CPU."""
    state = {name: tensor.to("meta") for name, tensor in decoder.state_dict().items()}
    return fd.Decoder.without_weights(decoder.config).take(state)


def test_a_model_reads_a_text_that_lies_on_another_device(family):
    reader = Reader(elsewhere(target(family)), 2, 40, 6)
    text = Text(PROMPTS[:2], 40, torch.device("cpu"))
    with torch.inference_mode():
        assert reader.read(text).device.type == "meta"
        assert reader.step(torch.tensor([1, 2])).device.type == "meta"
        text.append(torch.ones(2, 3, dtype=torch.int64), torch.tensor([1, 3]))
        text.extend_lengths([1, 3])
        assert reader.read(text).shape == (2, 1, VOCAB)


def test_drafts_are_drawn_where_the_target_is(family):
    home, ours = torch.device("meta"), target(family)
    job = Job(Reader(elsewhere(ours), 2, 40, 6), GREEDY, 2, 40, 6, drawing=lambda _: Argmax())
    proposer = fd.ModelDrafter(ours).begin(job)
    text = Text(PROMPTS[:2], 40, torch.device("cpu"))
    with torch.inference_mode():
        draft = proposer.propose(text, [1, 1], fd.FixedLength(1), generator=torch.Generator())
    assert draft.tokens.device == draft.probs.device == draft.lengths.device == home
    assert proposer.reader.cache.keys[0].is_cpu


def test_two_generations_in_a_row_are_two_fresh_ones():
    drafter, ours = drafters("gemma2")["another"], target("gemma2")
    options = {"sampler": fd.Sampler(), "max_new_tokens": 15, "drafter": drafter}
    first, second = (
        fd.generate(ours, PROMPTS, **options, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first.tokens == second.tokens


def test_prompt_lookup_proposes_what_followed_the_longest_then_latest_match():
    text = Text([[1, 2, 3, 4, 1, 2, 5, 2, 3, 9, 1, 2], [7, 8, 7, 8], [3]], 20, torch.device("cpu"))
    job = Job(Reader(tiny("llama", 10, 1, torch.float32), 3, 20, 6), GREEDY, 3, 20, 6)
    draft = (
        fd.PromptLookupDrafter(3)
        .begin(job)
        .propose(text, [4, 3, 4], fd.FixedLength(4), generator=torch.Generator())
    )
    rows = [
        tokens[:n] for tokens, n in zip(draft.tokens.tolist(), draft.lengths.tolist(), strict=True)
    ]
    assert rows == [[5, 2, 3, 9], [7, 8, 7], []]
    assert (draft.probs.gather(-1, draft.tokens[..., None]) == 1).all()


def test_a_gate_sees_the_confidence_of_the_last_token_and_closed_rounds_decode_plainly():
    seen = []

    class Every(Opener):
        def opens(self, confidences):
            seen.append(list(confidences))
            return [len(seen) % 3 == 0] * len(confidences)

    ours = target("llama")
    made = fd.generate(
        ours,
        PROMPTS[:3],
        sampler=GREEDY,
        max_new_tokens=18,
        drafter=drafters("llama")["another"],
        gate=Every(),
    )
    assert made.tokens == plain("llama", GREEDY, 18)[:3]
    table = made.trace.table()
    assert (table.loc[~table["gate_open"], "drafted"] == 0).all()
    told = table[(table["round"] == 0)]["confidence"].tolist()
    assert seen[0] == told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"drafter": fd.ModelDrafter(tiny("llama", VOCAB + 1, 2, torch.float32))}, "25 tokens"),
        ({"verification": "blok"}, "block"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(change, told):
    options = {"sampler": GREEDY, "max_new_tokens": 4, **change}
    with pytest.raises(ValueError, match=told):
        fd.generate(target("llama"), PROMPTS, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fd.FixedLength(0),
        lambda: fd.ConfidenceExit(1.5, 3),
        lambda: fd.ConfidenceExit(0.5, 0),
        lambda: fd.PromptLookupDrafter(0),
    ],
)
def test_nonsense_in_a_policy_is_refused(call):
    with pytest.raises(ValueError, match=r"give|choose|match"):
        call()


def test_a_drafter_that_misstates_its_law_is_refused():
    class Lying(Scripted):
        def propose(self, *args, **named):
            draft = super().propose(*args, **named)
            return Draft(draft.tokens, draft.probs.roll(1, -1), draft.lengths)

    class Misshapen(Scripted):
        def propose(self, *args, **named):
            draft = super().propose(*args, **named)
            return Draft(draft.tokens, draft.probs[..., :-1], draft.lengths)

    class Narrow(Scripted):
        def propose(self, *args, **named):
            draft = super().propose(*args, **named)
            return Draft(draft.tokens.int(), draft.probs, draft.lengths)

    for kind, told in (
        (Lying, "gives no mass"),
        (Misshapen, r"\[batch, k, vocab\]"),
        (Narrow, "torch.int32"),
    ):
        with pytest.raises(ValueError, match=told):
            fd.generate(
                target("llama"), PROMPTS, sampler=GREEDY, max_new_tokens=9, drafter=kind(wrong)
            )


def test_lengths_beyond_the_drafted_tokens_are_cut():
    class Boasting(Scripted):
        def propose(self, *args, **named):
            draft = super().propose(*args, **named)
            return Draft(draft.tokens, draft.probs, draft.lengths + 2)

    made = fd.generate(
        target("llama"),
        PROMPTS,
        sampler=GREEDY,
        max_new_tokens=16,
        drafter=Boasting(lambda text, limit: [text[-1]]),
    )
    assert made.tokens == plain("llama", GREEDY, 16)
    assert made.trace.table()["drafted"].max() == 1
