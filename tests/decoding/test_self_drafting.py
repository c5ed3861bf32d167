"""The target drafts for itself: same text, same cache, nothing done twice, whatever is skipped."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import foredraft as fd
from foredraft.decoding.draft import Draft, Job
from foredraft.decoding.reader import Reader
from foredraft.decoding.text import Text
from foredraft.models.cache import KVCache
from foredraft.models.packing import InferenceLinear
from tests.decoding.conftest import WINDOW, Opener, tiny

VOCAB, N_LAYERS = 24, 4
LAYERS = range(N_LAYERS)
GREEDY = fd.Sampler(temperature=0.0)
PROMPTS = [
    [int(t) for t in torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n))]
    for n in (1, 9, 4, 17, 2, 6, 13, 3)
]
EXITS = {"four": fd.FixedLength(4), "confident": fd.ConfidenceExit(0.4, 6)}
PLANS = {
    "nothing": fd.SkipPlan(),
    "the first attention": fd.SkipPlan(attn=[0]),
    "all attention": fd.SkipPlan(attn=LAYERS),
    "all MLPs": fd.SkipPlan(mlp=LAYERS),
    "everything": fd.SkipPlan(attn=LAYERS, mlp=LAYERS),
    "an early exit": fd.SkipPlan.early_exit(2, N_LAYERS),
    "an exit but for one MLP": fd.SkipPlan.early_exit(2, N_LAYERS) - fd.SkipPlan(mlp=[3]),
    "the first half": fd.SkipPlan.layers([0, 1]),
    "here and there": fd.SkipPlan(attn=[1, 2], mlp=[0, 3]),
}
TRIMMED = range(0, VOCAB, 2)


@cache
def deep(family, dtype):
    """A decoder of four layers and a head of its own, with random weights for uneven laws."""
    shallow = tiny(family, VOCAB, 1, dtype).config
    config = replace(shallow, n_layers=N_LAYERS, windows=shallow.windows * 2, tied=False)
    decoder, generator = fd.Decoder(config), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.2 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
            parameter.copy_(noise * scale + (parameter if parameter.dim() == 1 else 0))
        decoder.embedding.weight.mul_(1.5)
    return decoder.to(dtype).eval().requires_grad_(False)


def generated(family, drafter, *, dtype=torch.float32, prompts=PROMPTS, n=11, **options):
    options = {"sampler": GREEDY, "generator": torch.Generator().manual_seed(0)} | options
    return fd.generate(deep(family, dtype), prompts, max_new_tokens=n, drafter=drafter, **options)


@cache
def plain(family):
    return generated(family, None).tokens


def at_work(family, drafter, prompts, *, read=True, sampler=GREEDY):
    """A target and its proposer on these texts, all read but the last token."""
    text = Text(prompts, 40, torch.device("cpu"))
    target = Reader(deep(family, torch.float64), len(prompts), 40, 8)
    if read:
        target.catch_up(text)
    return target, text, drafter.begin(Job(target, sampler, len(prompts), 40, 8))


@pytest.mark.parametrize("stop", EXITS)
@pytest.mark.parametrize("plan", PLANS)
def test_greedy_text_is_autoregressive_decoding_s_token_for_token(family, plan, stop):
    """Batch 1 and ragged 8, beyond Gemma-2's window."""
    drafter = fd.SelfDrafter(PLANS[plan])
    exits = {"exit_policy": EXITS[stop]}
    assert generated(family, drafter, **exits).tokens == plain(family)
    assert generated(family, drafter, **exits, prompts=[PROMPTS[3]]).tokens == [plain(family)[3]]


@pytest.mark.parametrize("change", [{"reuse": False}, {"vocabulary": TRIMMED}], ids=str)
def test_so_it_is_without_reuse_and_with_a_trimmed_vocabulary(family, change):
    drafter = replace(fd.SelfDrafter(PLANS["an early exit"]), **change)
    for stop in EXITS.values():
        assert generated(family, drafter, exit_policy=stop).tokens == plain(family)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("verification", ["token", "block"])
def test_the_empty_plan_is_never_rejected(family, verification, reuse):
    for sampler in (GREEDY, fd.Sampler(), fd.Sampler(0.7, top_p=0.8, repetition_penalty=1.2)):
        made = generated(
            family,
            fd.SelfDrafter(fd.SkipPlan(), reuse=reuse),
            dtype=torch.float64,
            sampler=sampler,
            verification=verification,
        )
        assert made.acceptance_rate == 1
        assert made.tokens_per_target_pass == 11 / 3  # the prefill's token, then two rounds of five


def drafted_by_hand(decoder, prompt, tokens, plan):
    """The draft's logits: the whole model reads the prompt, the plan its last token and on."""
    cache = decoder.new_cache(1, 40)
    if len(prompt) > 1:
        decoder.hidden(torch.tensor([prompt[:-1]]), cache)
        cache.commit(len(prompt) - 1)
    logits = []
    for token in (prompt[-1], *tokens[:-1]):
        logits.append(decoder(torch.tensor([[token]]), cache, skip=plan)[0, 0])
        cache.commit(1)
    return torch.stack(logits)


@pytest.mark.parametrize("plan", PLANS)
def test_a_draft_is_the_plan_s_on_top_of_the_whole_model_s_keys_and_values(family, plan):
    sampler = fd.Sampler(0.8)
    target, text, proposer = at_work(
        family, fd.SelfDrafter(PLANS[plan], sampler), [PROMPTS[3], PROMPTS[1], PROMPTS[2]]
    )
    generator = torch.Generator().manual_seed(2)
    draft = proposer.propose(text, [5, 5, 3], fd.FixedLength(5), generator=generator)
    assert draft.lengths.tolist() == [5, 5, 3]
    for row, prompt in enumerate((PROMPTS[3], PROMPTS[1], PROMPTS[2])):
        logits = drafted_by_hand(target.model, prompt, draft.tokens[row].tolist(), PLANS[plan])
        torch.testing.assert_close(draft.probs[row], sampler.probs(logits), atol=1e-12, rtol=0)


def require_fresh(cache, place, text, decoder):
    """The row holds the whole model's keys and values of the text but its last token."""
    fresh, n = decoder.new_cache(1, len(text)), len(text) - 1
    decoder.hidden(torch.tensor([text[:-1]]), fresh)
    for kept, wanted in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
        for ours, theirs in zip(kept, wanted, strict=True):
            torch.testing.assert_close(ours[place, :, :n], theirs[0, :, :n], atol=1e-10, rtol=0)


@pytest.mark.parametrize("stop", EXITS)
@pytest.mark.parametrize("plan", ["an early exit", "here and there"])
def test_keys_and_values_after_each_round_are_those_of_a_fresh_prefill(
    family, plan, stop, monkeypatch
):
    caches, begin = [], KVCache.__init__

    def remember(self, *args, **options):
        begin(self, *args, **options)
        caches.append(self)

    texts, seen = [list(prompt) for prompt in PROMPTS], []
    ours = deep(family, torch.float64)

    def compare(each):
        shared = caches[0]
        for place, row in enumerate(each.rows):
            texts[row.row] += row.tokens
            assert shared.lengths[place] == len(texts[row.row]) - 1
            require_fresh(shared, place, texts[row.row], ours)
            seen.append(row.accepted < row.drafted)

    monkeypatch.setattr(KVCache, "__init__", remember)
    generated(
        family,
        fd.SelfDrafter(PLANS[plan]),
        dtype=torch.float64,
        n=WINDOW + 3,
        sampler=fd.Sampler(),
        exit_policy=EXITS[stop],
        on_round=compare,
    )
    assert sum(seen) > 3


def test_a_text_that_nobody_has_read_is_read_by_the_whole_model(family):
    prompts = [PROMPTS[3], PROMPTS[4], PROMPTS[1]]
    drafter = fd.SelfDrafter(PLANS["here and there"])
    target, text, proposer = at_work(family, drafter, prompts, read=False)
    proposer.propose(text, [2, 2, 2], fd.FixedLength(2), generator=torch.Generator())
    target.forget(text)
    for place, prompt in enumerate(prompts):
        require_fresh(target.cache, place, prompt, target.model)


def test_rows_of_a_batch_emit_what_each_would_alone(family):
    drafter = fd.SelfDrafter(PLANS["an early exit"])
    batch = generated(family, drafter)
    rows = batch.trace.table().groupby("row")[["drafted", "accepted"]].sum()
    for row, prompt in enumerate(PROMPTS[:4]):
        alone = generated(family, drafter, prompts=[prompt])
        assert alone.tokens == [batch.tokens[row]]
        assert tuple(rows.loc[row]) == (alone.trace.drafted, alone.trace.accepted)


def test_two_generations_in_a_row_are_two_fresh_ones(family):
    drafter = fd.SelfDrafter(PLANS["an early exit"], vocabulary=TRIMMED)
    first, second = (generated(family, drafter, sampler=fd.Sampler()) for _ in range(2))
    fresh = generated(family, replace(drafter), sampler=fd.Sampler())
    assert first == second == fresh


def test_rounds_whose_gate_is_closed_decode_plainly(family):
    class Alternating(Opener):
        calls = 0

        def opens(self, seen):
            self.calls += 1
            return [(row + self.calls) % 3 > 0 for row in range(len(seen))]

    drafter = fd.SelfDrafter(PLANS["an early exit"])
    made = generated(family, drafter, gate=Alternating())
    assert made.tokens == plain(family)
    table = made.trace.table()
    assert (table.loc[~table["gate_open"], "drafted"] == 0).all()


@dataclass(frozen=True)
class Corrected:
    """A reader's own drafter: another one works, but what is proposed is how the texts go on."""

    drafter: object
    texts: list[list[int]]

    def begin(self, job):
        self_drafter = self.drafter.begin(job)

        class Corrector:
            keep_rows, settle = self_drafter.keep_rows, self_drafter.settle

            def propose(_, text, limits, stop, *, generator):
                draft = self_drafter.propose(text, limits, stop, generator=generator)
                width = draft.tokens.shape[1]
                ends = zip(text.tokens.tolist(), text.lengths, strict=True)
                rows = [self.rest(row[:end], width) for row, end in ends]
                tokens = torch.tensor(rows)
                one_hot = torch.nn.functional.one_hot(tokens, VOCAB).to(draft.probs.dtype)
                return Draft(tokens, one_hot, draft.lengths)

        return Corrector()

    def rest(self, start, width):
        whole = next((text for text in self.texts if text[: len(start)] == start), start)
        return (whole[len(start) :] + [0] * width)[:width]


def test_what_drafting_spared_is_not_taken_for_drafts_that_others_changed(family):
    texts = [prompt + more for prompt, more in zip(PROMPTS, plain(family), strict=True)]
    made = generated(family, Corrected(fd.SelfDrafter(PLANS["an early exit"]), texts))
    assert made.tokens == plain(family)
    assert made.acceptance_rate == 1


@pytest.mark.parametrize("n", range(N_LAYERS + 1))
def test_reuse_after_any_number_of_layers_changes_nothing(family, n):
    """The same tokens in the same rounds, and the target's probabilities to 1e-10."""
    drafter = fd.SelfDrafter(fd.SkipPlan.early_exit(n, N_LAYERS))
    stop = EXITS["confident"]
    options = {"dtype": torch.float64, "sampler": fd.Sampler(0.9), "exit_policy": stop}
    reused = generated(family, drafter, **options).trace.table()
    again = generated(family, replace(drafter, reuse=False), **options).trace.table()
    columns = ["row", "drafted", "accepted", "emitted", "kind"]
    assert reused[columns].equals(again[columns])
    assert (reused["confidence"] - again["confidence"]).abs().max() < 1e-10


def positions_read(decoder, run):
    """How many positions each layer's MLP saw in each pass."""
    seen = [[] for _ in LAYERS]
    hooks = [
        layer.mlp.register_forward_pre_hook(
            lambda _module, args, passes=passes: passes.append(args[0].shape[1])
        )
        for layer, passes in zip(decoder.layers, seen, strict=True)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("reuse", [True, False])
def test_a_round_reads_no_more_than_it_must(reuse, monkeypatch):
    """One prefill, one cache; the first layers see each draft once if what they gave is reused."""
    caches, begin = [], KVCache.__init__

    def count(self, *args, **options):
        begin(self, *args, **options)
        caches.append(self)

    monkeypatch.setattr(KVCache, "__init__", count)
    drafter = fd.SelfDrafter(PLANS["an early exit"], reuse=reuse)
    options = {"prompts": [PROMPTS[3]], "n": 5, "exit_policy": fd.FixedLength(3)}
    rounds = []
    seen = positions_read(
        deep("llama", torch.float32),
        lambda: generated("llama", drafter, on_round=rounds.append, **options),
    )
    drafts = [each.rows[0].drafted for each in rounds[1:]]
    steps = [[1] * (n + reuse) + [n + 1] * (not reuse) if n else [1] for n in drafts]
    assert seen[0] == seen[1] == [len(PROMPTS[3]), *(n for each in steps for n in each)]
    assert seen[2] == seen[3] == [len(PROMPTS[3]), *(n + 1 for n in drafts)]
    assert len(caches) == 1


@pytest.mark.parametrize("plan", ["an early exit", "here and there"])
def test_a_trimmed_vocabulary_is_the_support_of_what_is_drafted(family, plan):
    whole, trimmed = (
        at_work(family, fd.SelfDrafter(PLANS[plan], vocabulary=ids), PROMPTS, sampler=fd.Sampler())
        for ids in (None, [*TRIMMED, 0])
    )
    laws = []
    for _, text, proposer in (whole, trimmed):
        draft = proposer.propose(
            text, [3] * 8, fd.FixedLength(3), generator=torch.Generator().manual_seed(1)
        )
        laws.append(draft.probs[:, 0])
    wanted = torch.zeros_like(laws[0])
    wanted[:, TRIMMED] = laws[0][:, TRIMMED]
    wanted /= wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(laws[1], wanted, atol=1e-12, rtol=0)
    assert set(draft.tokens.flatten().tolist()) <= set(TRIMMED)


def test_a_vocabulary_of_all_tokens_trims_nothing(family):
    drafter = fd.SelfDrafter(PLANS["here and there"])
    options = {"dtype": torch.float64, "sampler": fd.Sampler(top_p=0.9)}
    trimmed = replace(drafter, vocabulary=range(VOCAB))
    assert (
        generated(family, drafter, **options).tokens == generated(family, trimmed, **options).tokens
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_of_a_packed_head_are_packed_and_give_its_logits(tied):
    """In bf16, the last bits of a sum of 16 terms apart."""
    ours = deep("gemma2", torch.float32)
    state = {name: each.bfloat16() for name, each in ours.state_dict().items()}
    if tied:
        del state["head.weight"]
    packed = fd.Decoder.from_tensors(replace(ours.config, tied=tied), state).pack()
    ids = torch.tensor([3, 5, 22])
    rows = packed.head_rows(ids)
    assert isinstance(rows, InferenceLinear)
    hidden = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(packed.logits(hidden, rows), packed.logits(hidden)[:, ids])


@pytest.mark.parametrize(
    ("drafter", "told"),
    [
        (
            fd.SelfDrafter(fd.SkipPlan(attn=[4])),
            r"skips layers \[4\], but the decoder's are 0 to 3",
        ),
        (fd.SelfDrafter(fd.SkipPlan(), vocabulary=[]), "a vocabulary of 0 tokens"),
        (fd.SelfDrafter(fd.SkipPlan(), vocabulary=[3, VOCAB]), r"\[3\] to \[24\].*0 to 23"),
        (fd.SelfDrafter(fd.SkipPlan(), vocabulary=[-1]), r"\[-1\] to \[-1\]"),
    ],
)
def test_what_does_not_fit_the_target_is_refused(drafter, told):
    with pytest.raises(ValueError, match=told):
        generated("llama", drafter)
