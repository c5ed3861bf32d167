"""Every known bug of speculative decoding, put into the shipped code, fails an ordinary test.

A mutation changes the source of one function while the ordinary test runs; that test must fail. The
catalogue is that of the bugs seen in published implementations. `pytest -s` prints the table.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import pytest

import foredraft as fd
from foredraft.decoding import draft, gate, loop, reader, self_draft, text, verify
from tests.decoding import test_gate as gates
from tests.decoding import test_law as law
from tests.decoding import test_self_drafting as self_drafting
from tests.decoding import test_speculation as speculation
from tests.decoding import test_verify as unit
from tests.proofs import BUG


@dataclass(frozen=True)
class Bug:
    """What goes wrong, where (a function, or a method of a class), and which test must notice."""

    name: str
    home: object
    function: str
    right: str
    wrong: str
    test: Callable[[pytest.MonkeyPatch], None]
    shows: type[Exception] = AssertionError
    """How: by a wrong result, as a rule; a few bugs run into an error of the code itself."""


def enumeration(**options):
    def run(monkeypatch):
        assert law.distance(law.Case(**options), monkeypatch) < 1e-12

    run.__name__ = "test_three_tokens_follow_the_target_s_law"
    return run


def ordinary(function, *args):
    def run(monkeypatch):
        speculation.plain.cache_clear()
        self_drafting.plain.cache_clear()
        function(*args)

    run.__name__ = function.__name__
    return run


greedy = ordinary(
    speculation.test_greedy_text_is_autoregressive_decoding_s_token_for_token,
    *("llama", "another", "four", "token"),
)
itself = ordinary(
    speculation.test_a_model_that_drafts_for_itself_is_never_rejected, "llama", "token"
)
ends = ordinary(speculation.test_an_end_inside_the_accepted_block_ends_the_row_there, "llama", 1)
budget = ordinary(speculation.test_the_budget_is_exact_whatever_the_draft_length, "llama", 3, 5)


def caches(monkeypatch):
    speculation.test_keys_and_values_after_each_round_are_those_of_a_fresh_prefill(
        "llama", "another", monkeypatch
    )


def shared(plan):
    def run(monkeypatch):
        self_drafting.test_keys_and_values_after_each_round_are_those_of_a_fresh_prefill(
            "llama", plan, "four", monkeypatch
        )

    run.__name__ = f"the shared cache's, under the plan of {plan}"
    return run


unread = ordinary(
    self_drafting.test_a_text_that_nobody_has_read_is_read_by_the_whole_model, "llama"
)
corrected = ordinary(
    self_drafting.test_what_drafting_spared_is_not_taken_for_drafts_that_others_changed, "llama"
)


reopening = ordinary(gates.test_a_gate_that_has_closed_keeps_to_its_own_row)


def gated(name):
    return ordinary(
        gates.test_each_round_drafts_by_the_last_token_of_the_one_before,
        *(name, gates.SAMPLING[name], "a model"),
    )


def trimmed(monkeypatch):
    drafter = fd.SelfDrafter(fd.SkipPlan(mlp=[0]), vocabulary=[0, 2])
    assert law.distance(law.Case(drafter=drafter), monkeypatch) < 1e-12


def impossible(monkeypatch):
    unit.test_a_uniform_of_zero_does_not_accept_what_the_target_forbids()


def coins(monkeypatch):
    for length in (1, 2):
        unit.test_coins_are_independent_of_each_other_and_of_the_draws(length)


COLD = fd.Sampler(temperature=0.6)
BUGS = [
    Bug(
        "resample from p after a rejection",
        verify,
        "residual",
        "(w * p - q).clamp(min=0)",
        "p",
        enumeration(),
    ),
    Bug(
        "residual |p - q| instead of max(0, p - q)",
        verify,
        "residual",
        "(w * p - q).clamp(min=0)",
        "(w * p - q).abs()",
        enumeration(),
    ),
    Bug(
        "epsilon leaks mass into the residual",
        verify,
        "residual",
        "clamp(min=0)",
        "clamp(min=1e-5)",
        enumeration(sampler=fd.Sampler(top_k=2)),
    ),
    Bug(
        "residual from the next position's q",
        verify,
        "residual",
        "clamp(max=draft_probs.shape[1] - 1)",
        "add(1).clamp(max=draft_probs.shape[1] - 1)",
        enumeration(),
    ),
    Bug(
        "bonus drawn from the last draft's position",
        verify,
        "residual",
        "p = target_probs[rows, n_accepted]",
        "p = target_probs[rows, n_accepted.clamp(max=1)]",
        enumeration(),
    ),
    Bug(
        "accept with min(1, q / p)",
        verify,
        "_ratios",
        "_at(target[:, :-1], tokens) / _at(draft_probs, tokens)",
        "_at(draft_probs, tokens) / _at(target[:, :-1], tokens)",
        enumeration(),
    ),
    Bug(
        "accept by the next position's p",
        verify,
        "_ratios",
        "target[:, :-1]",
        "target[:, 1:]",
        enumeration(),
    ),
    Bug(
        "accept a token after a rejected one",
        verify._TokenRule,
        "count",
        "accepted.cumprod(-1).sum(-1)",
        "accepted.sum(-1)",
        enumeration(),
    ),
    Bug(
        "r <= p / q accepts what the target forbids",
        verify,
        "accepts",
        "uniforms < chances",
        "uniforms <= chances",
        impossible,
    ),
    Bug(
        "greedy drafts with a softmax q",
        draft,
        "drafted",
        "laws.append(sampler.probs(logits, prefix))\n        tokens.append(sampler.draw(laws[-1],",
        "laws.append(Sampler().probs(logits))\n"
        "        tokens.append(sampler.draw(sampler.probs(logits, prefix),",
        enumeration(draft_sampler=fd.Sampler(temperature=0.0)),
    ),
    Bug(
        "q before the temperature, tokens after it",
        draft,
        "drafted",
        "return Draft(torch.stack(tokens, 1), torch.stack(laws, 1), lengths)",
        "laws = [law.sqrt() / law.sqrt().sum(-1, keepdim=True) for law in laws]\n"
        "    return Draft(torch.stack(tokens, 1), torch.stack(laws, 1), lengths)",
        enumeration(sampler=COLD),
    ),
    Bug(
        "target without the sampler's filters",
        loop._Batch,
        "round",
        "self.sampler.probs(logits, self._prefixes(draft))",
        "Sampler().probs(logits)",
        enumeration(sampler=COLD),
    ),
    Bug(
        "bonus without the sampler's filters",
        loop._Batch,
        "round",
        "probs = self.sampler.probs(logits, self._prefixes(draft))",
        "probs = self.sampler.probs(logits, self._prefixes(draft))\n"
        "    probs = torch.cat([probs[:, :-1], Sampler().probs(logits[:, -1:])], 1)",
        enumeration(sampler=COLD),
    ),
    Bug(
        "repetition penalty does not see the drafts",
        loop._Batch,
        "_prefixes",
        "behind = torch.ones",
        "behind = torch.zeros",
        enumeration(sampler=fd.Sampler(repetition_penalty=1.8)),
    ),
    Bug(
        "repetition penalty sees later drafts",
        loop._Batch,
        "_prefixes",
        ".tril(-1)",
        ".tril(0)",
        enumeration(vocab=4, sampler=fd.Sampler(repetition_penalty=1.8)),
    ),
    Bug(
        "the low-confidence token is discarded",
        draft,
        "drafted",
        "lengths = lengths + going\n"
        "            wanted = stop.goes_on(stop.watches(logits, tokens[-1]))",
        "wanted = stop.goes_on(stop.watches(logits, tokens[-1]))\n"
        "            lengths = lengths + (going & wanted)",
        enumeration(stop=fd.ConfidenceExit(0.45, 2)),
    ),
    Bug(
        "a gate looks at the drafted token and takes it back",
        loop._Batch,
        "_draft",
        "return _fitting(draft,",
        "sure = draft.probs.gather(-1, draft.tokens[..., None])[:, 0, 0] > 0.4\n"
        "    draft = Draft(draft.tokens, draft.probs, draft.lengths * sure)\n"
        "    return _fitting(draft,",
        enumeration(),
    ),
    Bug(
        "a gate is shown the token before the last",
        loop._Batch,
        "_commit",
        "last = logits[rows, n_kept - 1], tokens[rows, n_kept - 1]",
        "place = (n_kept - 2).clamp(min=0)\n    last = logits[rows, place], tokens[rows, place]",
        gated("confidence"),
    ),
    Bug(
        "a gate is shown the confidence, whatever it watches",
        loop._Batch,
        "_commit",
        "else watches(*last)",
        "else sure",
        gated("entropy"),
    ),
    Bug(
        "a gate closes the rows that move up when others leave",
        gate._Rows,
        "keep_rows",
        "[self.open[row] for row in rows]",
        "self.open[: len(rows)]",
        reopening,
    ),
    Bug(
        "block rule: weight not capped at 1",
        verify._BlockRule,
        "__init__",
        ".clamp(max=1)",
        "",
        enumeration(verification="block"),
    ),
    Bug(
        "block rule with the token rule's residual",
        verify,
        "residual",
        "w = weights[rows, n_accepted, None].to(p.dtype)",
        "w = 1.0",
        enumeration(vocab=4, verification="block", draft_sampler=fd.Sampler(1.7)),
    ),
    Bug(
        "block rule: the last coin as an inner one",
        verify._BlockRule,
        "__init__",
        "torch.where(last, weight, coins)",
        "coins",
        enumeration(verification="block"),
    ),
    Bug(
        "block rule: the first yes instead of the last",
        verify._BlockRule,
        "count",
        "(accepted * places).amax(-1)",
        "accepted.cumprod(-1).sum(-1)",
        enumeration(verification="block"),
    ),
    Bug(
        "rollback keeps one position too many",
        reader.Reader,
        "forget",
        "end - 1",
        "end",
        greedy,
        shows=RuntimeError,  # nothing is left to read
    ),
    Bug(
        "rejected drafts stay in the cache",
        reader.Reader,
        "forget",
        "min(n, end - 1)",
        "max(0, n - 1)",
        caches,
    ),
    Bug(
        "what a round rejected stays in the draft model's cache",
        draft._ModelProposer,
        "settle",
        "self.reader.forget(text)",
        "pass",
        caches,
    ),
    Bug(
        "drafts follow an older token than the last",
        reader,
        "_tails",
        "hidden[:, missing[0] - 1 :]",
        "hidden[:, :width]",
        itself,
    ),
    Bug(
        "tokens after the end of the text are kept",
        loop,
        "_kept",
        "torch.minimum(before_end + 1, counts)",
        "counts",
        ends,
    ),
    Bug(
        "the last accepted draft is overwritten by the token after it",
        loop._Batch,
        "_commit",
        "tokens.scatter(1, n_accepted[:, None],",
        "tokens.scatter(1, (n_accepted[:, None] - 1).clamp(min=0),",
        greedy,
    ),
    Bug(
        "drafts up to the budget, and a bonus on top",
        loop._Batch,
        "_limits",
        "- 1 for row",
        "for row",
        budget,
    ),
    Bug(
        "drafts are appended past the accepted ones",
        text.Text,
        "followed_by",
        "offsets < counts[:, None]",
        "offsets >= 0",
        ordinary(
            speculation.test_greedy_text_is_autoregressive_decoding_s_token_for_token,
            *("llama", "lookup", "four", "token"),
        ),
    ),
    Bug(
        "one uniform for every coin of a draft",
        verify,
        "verify_rows",
        "generator=generator\n    )\n    within",
        "generator=generator\n    )[:, :1].expand(draft_tokens.shape)\n    within",
        coins,
    ),
    Bug(
        "coins and draws share their uniforms",
        verify,
        "verify_rows",
        "generator=generator\n    )\n    within",
        "generator=generator.clone_state()\n    )\n    within",
        coins,
    ),
    Bug(
        "finished rows go on",
        loop._Batch,
        "drop_finished",
        "self.emitted[row][-1] not in self.ends and ",
        "",
        ends,
    ),
    Bug(
        "the target's own rejected drafts stay in its cache",
        reader.Reader,
        "forget",
        "min(n, end - 1)",
        "max(0, n - 1)",
        shared("here and there"),
    ),
    Bug(
        "the prompt is read with branches skipped",
        reader.Reader,
        "read",
        "skip=begun.skip",
        "skip=begun.skip if n_drafted else SkipPlan(mlp=[1])",
        shared("here and there"),
    ),
    Bug(
        "what is missing before a draft is read with branches skipped",
        reader.Reader,
        "catch_up",
        "max(missing)), self.cache",
        "max(missing)), self.cache, skip=SkipPlan(mlp=[1])",
        unread,
    ),
    Bug(
        "the draft's keys and values of accepted tokens are kept",
        self_draft.SelfDrafter,
        "_spared",
        "None if exit_layer is None else SkipPlan.early_exit(0, n_layers) - self.plan",
        "SkipPlan.early_exit(0, n_layers) - self.plan",
        shared("here and there"),
    ),
    Bug(
        "the last draft leaves a hole in the first layers",
        self_draft._SelfProposer,
        "propose",
        "self.target.advance(draft.tokens[:, -1], self.plan)",
        "self.states[-1]",
        shared("an early exit"),
    ),
    Bug(
        "verification goes on one layer too late",
        self_draft.SelfDrafter,
        "_spared",
        "n_layers) - self.plan",
        "n_layers) - SkipPlan.early_exit(exit_layer + 1, n_layers)",
        shared("an early exit"),
    ),
    Bug(
        "hidden states of a draft that is not the verified one are reused",
        reader.Reader,
        "read",
        "self._begun.drafts is drafts",
        "self._begun.drafts is not None and drafts.shape == self._begun.drafts.shape",
        corrected,
    ),
    Bug(
        "hidden states are reused one position off",
        self_draft._SelfProposer,
        "propose",
        "torch.stack(self.states, 1)",
        "torch.stack(self.states, 1).roll(1, 1)",
        shared("an early exit"),
    ),
    Bug(
        "q of the whole vocabulary, tokens of the trimmed one",
        self_draft._SelfProposer,
        "propose",
        "return draft",
        "logits = self.target.model.logits(torch.stack(self.states, 1))\n"
        "    return Draft(draft.tokens, self.sampler.probs(logits), draft.lengths)",
        trimmed,
    ),
]


def mutated(bug):
    """The function of a bug, with the bug in it."""
    source = textwrap.dedent(inspect.getsource(getattr(bug.home, bug.function)))
    assert source.count(bug.right) == 1, f"{bug.name}: the line is no longer there"
    module = inspect.getmodule(getattr(bug.home, bug.function))
    defined = {}
    exec(source.replace(bug.right, bug.wrong), vars(module), defined)  # our own source, on purpose
    return defined[bug.function]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_known_bug_is_caught(bug, monkeypatch, record_property):
    caught = pytest.MonkeyPatch()
    caught.setattr(bug.home, bug.function, mutated(bug))
    try:
        with pytest.raises(bug.shows):
            bug.test(monkeypatch)
    finally:
        caught.undo()
    record_property(BUG, f"{bug.name:57} caught by {bug.test.__name__}")


@pytest.mark.parametrize(
    "test", {bug.test.__name__: bug.test for bug in BUGS}.values(), ids=lambda t: t.__name__
)
def test_the_same_test_passes_without_a_bug(test, monkeypatch):
    test(monkeypatch)
