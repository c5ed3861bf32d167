"""Scripted drafts stand as often as they are told to, and what is left of a round is told."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import foredraft as fd
from foredraft.benchmarks.compiled import COMPILED, EAGER
from foredraft.benchmarks.rounds import (
    HOT,
    Scripted,
    Trial,
    asked,
    gemma2_2b,
    gemma2_9b,
    rounds_benchmark,
)
from foredraft.decoding.theory import expected_tokens, speedup
from foredraft.models.skip import Parts
from tests.benchmarks.conftest import Toll, tiny

TARGET, DRAFT = 10.0, 1.0
"""Seconds that a pass takes on the clock of these tests, whatever it reads."""


@pytest.fixture(scope="module")
def trial() -> Trial:
    target, draft = (fd.Decoder.from_hf(tiny(n_layers=n_layers)) for n_layers in (2, 1))
    return Trial(target, draft, prompt_tokens=5, new_tokens=30, repeats=2)


@pytest.fixture(scope="module")
def clock(trial) -> Toll:
    """A clock that only passes move."""
    clock = Toll(trial.target, attention=1, mlp=3, head=2)
    layer = trial.draft.layers[0]
    for module, seconds in ((layer.attention, 0.25), (layer.mlp, 0.5), (trial.draft.norm, 0.25)):
        module.register_forward_pre_hook(partial(clock.pay, seconds * DRAFT))
    return clock


@pytest.fixture(scope="module", autouse=True)
def no_compiler():
    """Let steps be as they are where they are to be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fd.Decoder, "compile_steps", lambda decoder: decoder)
        patch.setattr(fd.Decoder, "unpacked", lambda decoder: decoder)
        yield


@pytest.fixture(scope="module")
def table(trial, clock):
    return rounds_benchmark(trial, clock=clock)


@pytest.mark.parametrize("acceptance", [0.2, 0.6, 0.9])
def test_drafts_stand_as_often_as_scripted(trial, acceptance):
    """Each draft that is looked at is a draw of its own; a false alarm in a million runs."""
    made = fd.generate(
        trial.target,
        torch.randint(64, (40, 5), generator=torch.Generator().manual_seed(0)),
        sampler=HOT,
        max_new_tokens=60,
        drafter=Scripted(fd.ModelDrafter(trial.draft), acceptance),
        generator=torch.Generator().manual_seed(1),
        eos_token_id=[],
    )
    turned_down = sum(row.accepted < row.drafted for each in made.trace.rounds for row in each.rows)
    looked_at = made.trace.accepted + turned_down
    error = (acceptance * (1 - acceptance) / looked_at) ** 0.5
    assert looked_at > 1000
    assert made.trace.accepted / looked_at == pytest.approx(acceptance, abs=4.9 * error)


def test_all_that_is_scripted_to_stand_stands(trial):
    made = fd.generate(
        trial.target,
        [[1, 2]],
        sampler=HOT,
        max_new_tokens=20,
        drafter=Scripted(fd.ModelDrafter(trial.draft), 1.0),
        generator=torch.Generator().manual_seed(0),
        eos_token_id=[],
    )
    assert made.trace.accepted == made.trace.drafted


def test_where_only_passes_take_time_no_round_has_overhead(table):
    for end in ("min", "max"):
        assert table[f"overhead_{end}"].tolist() == pytest.approx([0] * len(table), abs=1e-9)


def test_a_round_takes_its_passes_and_what_arrives_is_what_its_tokens_say(table, trial):
    drafting = table.dropna(subset="acceptance")
    for row in drafting.to_dict("records"):
        cost, length = DRAFT / TARGET, trial.length
        assert row["round_ms_median"] == pytest.approx(1e3 * (TARGET + length * DRAFT))
        assert row["predicted_median"] == pytest.approx(
            speedup(row["acceptance"], length, cost=cost)
        )
        assert row["speedup_median"] == pytest.approx(
            row["tokens_per_round_median"] / (1 + length * cost)
        )
        expected = expected_tokens(row["acceptance"], length)
        assert row["arrived_median"] == pytest.approx(row["tokens_per_round_median"] / expected)


def test_time_beside_the_passes_is_overhead(trial, clock, monkeypatch):
    """Two seconds a verification: of rounds of 10 and 14 seconds, 2 in 12 and 2 in 16."""
    verify = fd.decoding.loop.verify_rows

    def slow(*given, **options):
        clock.seconds += 2
        return verify(*given, **options)

    monkeypatch.setattr(fd.decoding.loop, "verify_rows", slow)
    table = rounds_benchmark(replace(trial, acceptances=(0.8,)), clock=clock)
    assert table["overhead_median"].tolist() == pytest.approx([2 / 12, 2 / 16] * 2)


def test_both_engines_run_plainly_and_at_each_acceptance(table, trial):
    assert table["library"].unique().tolist() == [EAGER, COMPILED]
    assert table.groupby("library").size().tolist() == [1 + len(trial.acceptances)] * 2
    told = ["batch", "prompt", "new_tokens", "n", "device", "dtype", "threads", "round_ms_iqr"]
    assert table[told].notna().all(axis=None)


def test_the_ratios_asked_for_are_what_arrives_and_what_is_lost(table):
    lines = asked(table)
    assert lines.groupby("ratio").size().to_dict() == {
        "measured ÷ predicted": 6,
        "overhead of a round": 8,
    }
    assert lines["of"].iloc[0] == f"{EAGER}, 0.6"
    assert f"{COMPILED}, autoregressive" in set(lines["of"])


def test_the_longest_drafts_that_are_let_through_leave_a_round_to_count(trial, clock):
    whole = replace(trial, acceptances=(1.0,), length=13, repeats=1)
    drafting = rounds_benchmark(whole, clock=clock).dropna(subset="acceptance")
    assert drafting["tokens_per_round_median"].tolist() == [14, 14]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"acceptances": (0.0,)}, "acceptance 0.0"),
        ({"acceptances": (0.5, 1.1)}, "acceptance 1.1"),
        ({"length": 0}, "drafts of 0"),
        ({"length": 14}, "drafts of 14 in texts of 30 new tokens"),
    ],
)
def test_what_cannot_be_timed_is_refused(trial, change, told):
    with pytest.raises(ValueError, match=told):
        replace(trial, **change)


@pytest.mark.parametrize(("shape", "billions"), [(gemma2_9b, 9.24), (gemma2_2b, 2.61)])
def test_published_shapes_have_as_many_weights_as_published(shape, billions):
    config = shape()
    assert Parts.of(config).total(config.n_layers) / 1e9 == pytest.approx(billions, abs=0.01)
