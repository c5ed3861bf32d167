"""Chances along written text are those of real drafts: at each place, and over all texts."""

from functools import cache
from itertools import islice, product

import pytest
import torch

import foredraft as fd
from foredraft.decoding.draft import Job
from foredraft.decoding.prefill import prefill
from foredraft.decoding.reader import Reader
from foredraft.decoding.text import Text
from foredraft.models.compiling.ahead import AheadSteps
from foredraft.search.predict import rounds
from foredraft.search.teacher_forced import along, rehearse
from tests.decoding.conftest import WINDOW, tiny

VOCAB, N_LAYERS = 5, 2
PROMPTS = [[1, 2, 3], [4, 3, 2, 1, 0, 1, 2, 3, 4], [2]]
NEW_TOKENS = 2 * WINDOW

PLANS = {
    "nothing": fd.SkipPlan(),
    "exit": fd.SkipPlan.early_exit(1, N_LAYERS),
    "first layer": fd.SkipPlan.layers([0]),
    "attention": fd.SkipPlan(attn=[0, 1]),
    "one attention": fd.SkipPlan(attn=[1]),
    "MLPs": fd.SkipPlan(mlp=[0, 1]),
    "everything": fd.SkipPlan.layers([0, 1]),
}


@pytest.fixture(params=["llama", "gemma2"])
def family(request) -> str:
    """Each family, Gemma-2 with a window that the texts outgrow."""
    return request.param


every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@cache
def decoder(family: str) -> fd.Decoder:
    return tiny(family, VOCAB, 3, torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def rehearsed(family: str, temperature: float = 1.0):
    return rehearse(
        decoder(family),
        PROMPTS,
        sampler=fd.Sampler(temperature=temperature),
        new_tokens=NEW_TOKENS,
        generator=generator(),
    )


def draft_laws(model, plan, sampler, text, drafts):
    """The laws that a real draft after a text draws from, if it drafts these tokens."""
    reader = Reader(model, 1, len(text) + len(drafts) + 1, len(drafts) + 2)
    job = Job(reader, sampler, 1, len(text), len(drafts) + 2)
    proposer = fd.SelfDrafter(plan, reuse=False).begin(job)
    with torch.inference_mode():
        reader.catch_up(Text([list(text)], len(text) + len(drafts), model.device))
        read = [text[-1], *drafts[:-1]]
        return [sampler.probs(proposer.step(torch.tensor([token])))[0] for token in read]


@every_plan
def test_each_place_of_a_draft_has_the_chance_that_a_real_draft_gives_it(family, plan):
    model, sampler, found = decoder(family), fd.Sampler(), rehearsed(family)
    chances = list(islice(found.drafts(plan), 4))
    for row, prompt in enumerate(PROMPTS):
        new = found.tokens[row].tolist()
        for a in range(NEW_TOKENS - 1):
            drafts = new[a + 1 : a + 5]
            laws = draft_laws(model, plan, sampler, [*prompt, *new[: a + 1]], drafts)
            for k, (q, token) in enumerate(zip(laws, drafts, strict=True)):
                p = found.p[row, a + k]
                wanted = min(1.0, float(q[token] / p[token]))
                assert float(chances[k].accepted[row, a + k]) == pytest.approx(wanted, abs=1e-10)
                beta = float(torch.minimum(p, q).sum())
                assert float(chances[k].overlap[row, a + k]) == pytest.approx(beta, abs=1e-10)


def test_the_target_s_law_is_that_of_reading_each_text_by_itself(family):
    found = rehearsed(family)
    for row, prompt in enumerate(PROMPTS):
        text = torch.tensor([[*prompt, *found.tokens[row, :-1].tolist()]])
        logits = decoder(family)(text)[0, len(prompt) :]
        torch.testing.assert_close(found.p[row], logits.softmax(-1), atol=1e-12, rtol=0)


def test_the_roomier_cache_of_compiled_steps_rehearses_alike(family, monkeypatch):
    model = decoder(family).unpacked().compile_steps()  # the other tests keep theirs
    monkeypatch.setattr(AheadSteps, "takes", lambda *_: False)  # compiling is not asked here
    monkeypatch.setattr(AheadSteps, "logits", lambda _, model, hidden: model.all_logits(hidden))
    sampler = fd.Sampler()
    found = rehearse(model, PROMPTS, sampler=sampler, new_tokens=NEW_TOKENS, generator=generator())
    steps = [list(each.drafts(PLANS["exit"])) for each in (found, rehearsed(family))]
    for ours, wanted in zip(*steps, strict=True):
        torch.testing.assert_close(ours.overlap, wanted.overlap, equal_nan=True)


def test_a_draft_that_skips_nothing_is_always_accepted(family):
    for k, each in enumerate(rehearsed(family).drafts(fd.SkipPlan())):
        for chance in (each.accepted[:, k:], each.overlap[:, k:]):
            torch.testing.assert_close(chance, torch.ones_like(chance))


def test_an_early_exit_s_first_chances_are_those_of_all_its_places(family):
    """Its keys and values are the whole model's own, however far the draft has come."""
    found = rehearsed(family)
    exact = list(islice(found.drafts(PLANS["exit"]), 4))
    for k, (each, first) in enumerate(zip(exact, found.one_pass(PLANS["exit"]), strict=False)):
        torch.testing.assert_close(each.accepted[:, k:], first.accepted[:, k:])


def test_one_pass_is_no_draft_where_a_layer_below_an_attention_is_skipped(family):
    found, plan = rehearsed(family), PLANS["first layer"]
    second, approximate = list(found.drafts(plan))[1], list(found.one_pass(plan))[1]
    assert float((second.accepted - approximate.accepted)[:, 1:].abs().max()) > 1e-3


def test_a_greedy_draft_is_accepted_where_both_have_one_favourite(family):
    found = rehearsed(family, 0.0)
    for each in found.drafts(PLANS["exit"]):
        assert set(each.accepted.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(each.accepted, each.overlap)


def test_a_draft_may_have_a_sampler_of_its_own():
    """A one-hot proposal stands with the target's chance of it."""
    found = rehearsed("llama")
    (first,) = islice(found.drafts(PLANS["exit"], fd.Sampler(temperature=0.0)), 1)
    assert set(first.accepted.unique().tolist()) <= {0.0, 1.0}
    (own,) = islice(found.drafts(PLANS["exit"]), 1)
    assert not torch.equal(own.overlap, first.overlap)


def test_texts_are_taken_in_turn_where_the_vocabulary_is_large(monkeypatch):
    found = rehearsed("llama")
    (together,) = islice(found.drafts(PLANS["exit"]), 1)
    monkeypatch.setattr("foredraft.search.teacher_forced.AT_ONCE", 1)
    (apart,) = islice(found.drafts(PLANS["exit"]), 1)
    torch.testing.assert_close(apart.accepted, together.accepted, atol=1e-12, rtol=0)


def exact_rounds(model, plan, sampler, length, prompt, n_new):
    """Expected rounds, by enumeration of all drafts and of all that becomes of them.

    The rule is written out as in the paper, and the laws come from real readers.
    """

    @cache
    def p_after(text):
        return sampler.probs(model(torch.tensor([text]))[0, -1])

    @cache
    def expected(text):
        left = n_new - (len(text) - len(prompt))
        if left == 0:
            return 0.0
        limit = min(length, left - 1)
        total = 1.0
        for drafts in product(range(VOCAB), repeat=limit):
            laws = draft_laws(model, plan, sampler, text, drafts) if limit else []
            drawn = 1.0
            for q, token in zip(laws, drafts, strict=True):
                drawn *= float(q[token])
            stand = 1.0
            for n in range(limit + 1):
                so_far = (*text, *drafts[:n])
                p = p_after(so_far)
                if n < limit:
                    q = laws[n]
                    ratio = min(1.0, float(p[drafts[n]] / q[drafts[n]]))
                    last, weight = (p - q).clamp(min=0), drawn * stand * (1 - ratio)
                else:
                    ratio, last, weight = 0.0, p, drawn * stand
                if weight > 0:
                    last = last / last.sum()
                    total += weight * sum(
                        float(last[x]) * expected((*so_far, x)) for x in range(VOCAB) if last[x] > 0
                    )
                stand *= ratio
        return total

    # the first new token comes from the prefill, without a round
    p = p_after(prompt)
    return sum(float(p[x]) * expected((*prompt, x)) for x in range(VOCAB))


@pytest.mark.parametrize("name", ["first layer", "exit"])
@pytest.mark.parametrize("length", [1, 2])
def test_expected_rounds_are_those_of_all_drafts_and_all_coins_enumerated(family, name, length):
    model, plan, prompt, n_new = decoder(family), PLANS[name], (1, 2), 4
    sampler = fd.Sampler(top_k=3)
    texts = [list(text) for text in product(range(VOCAB), repeat=n_new)]
    found = along(model, [list(prompt)] * len(texts), texts, sampler=sampler)
    first = sampler.probs(model(torch.tensor([prompt]))[0, -1])
    chance = first[found.tokens[:, 0]] * found.p.gather(-1, found.tokens[:, 1:, None]).prod(1)[:, 0]
    possible = (chance > 0).numpy()
    counted = rounds(list(islice(found.drafts(plan), length)), length)
    weights = chance.numpy()[possible]
    wanted = exact_rounds(model, plan, sampler, length, prompt, n_new)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert float(weights @ counted.count[possible]) == pytest.approx(wanted, abs=1e-10)
    # averaged over the target's law both ways to count tokens agree
    assert float(weights @ counted.tokens[possible]) == pytest.approx(n_new - 1, abs=1e-10)


@pytest.mark.parametrize("continuations", [[[1], [2]], [[1, 2], [1, 2, 3]]])
def test_texts_need_two_new_tokens_or_more_and_as_many_each(continuations):
    with pytest.raises(ValueError, match="the same number, 2 or more"):
        along(decoder("llama"), [[1], [2]], continuations, sampler=fd.Sampler())


def test_a_law_that_depends_on_the_text_is_refused():
    with pytest.raises(ValueError, match=r"repetition_penalty is 1\.2"):
        along(decoder("llama"), [[1]], [[1, 2]], sampler=fd.Sampler(repetition_penalty=1.2))


def test_a_plan_for_another_model_is_refused():
    with pytest.raises(ValueError, match="layers"):
        next(rehearsed("llama").drafts(fd.SkipPlan.layers([7])))


def test_texts_behind_prompts_that_were_read_before_have_the_same_chances(family):
    known = prefill(decoder(family), PROMPTS)
    texts = rehearsed(family).tokens.tolist()
    sampler = fd.Sampler()
    whole, behind = (
        along(decoder(family), PROMPTS, texts, sampler=sampler, prefilled=each)
        for each in (None, known)
    )
    assert torch.allclose(whole.p, behind.p, atol=1e-12)
    for plan in PLANS.values():
        pairs = zip(whole.drafts(plan), behind.drafts(plan), strict=True)
        for one, other in islice(pairs, 3):
            assert torch.allclose(one.accepted, other.accepted, atol=1e-12)
            assert torch.allclose(one.overlap, other.overlap, atol=1e-12)
