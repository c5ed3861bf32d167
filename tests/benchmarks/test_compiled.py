"""What compiling is worth is paired by prompt, over the same strategy, eager and theirs."""

import pandas
import pytest

import foredraft as fd
from foredraft.benchmarks import compiled
from foredraft.benchmarks.compiled import (
    COMPILED,
    EAGER,
    THEIRS,
    asked,
    compiled_benchmark,
    rounding,
)
from foredraft.benchmarks.decoding import Arm, Contest, runner
from foredraft.benchmarks.timing import Lap
from foredraft.sampling import Sampler
from tests.benchmarks.conftest import tiny
from tests.benchmarks.test_roofline import Metronome


@pytest.fixture
def contest() -> Contest:
    theirs = tiny()
    theirs.generation_config.eos_token_id = None
    ours = fd.Decoder.from_hf(theirs)
    samplers = {"greedy": Sampler(temperature=0.0)}
    prompts = [[1, 2, 3], [4, 5]]
    return Contest(ours, ours, theirs, theirs, prompts, new_tokens=6, batch=1, samplers=samplers)


@pytest.fixture
def table(contest, monkeypatch) -> pandas.DataFrame:
    """With steps that are not compiled, in no more time than any others."""
    monkeypatch.setattr(compiled, "with_compiled_steps", lambda contest: contest)
    return compiled_benchmark(contest, lengths=(2,), clock=Metronome())


def test_every_strategy_runs_in_every_engine(table):
    assert list(table["library"]) == [EAGER, COMPILED, THEIRS] * 2
    assert list(table["length"]) == [0, 0, 0, 2, 2, 2]
    assert set(table["n"]) == {2}


def test_ways_that_take_as_long_have_ratios_of_one(table):
    for name in ("speedup", "over_eager", "over_theirs"):
        assert table[f"{name}_median"].to_list() == [1.0] * 6


def test_tokens_are_compared_with_those_of_the_eager_path(table, contest):
    assert table["same"].dropna().to_list() == [1.0] * 4
    assert table.loc[table["library"] == THEIRS, "same"].isna().all()
    run = runner(contest, Arm("greedy", "autoregressive"))
    straight, crossed = ([Lap(1.0, run(case)) for case in order] for order in ((0, 1), (1, 0)))
    assert compiled._same(straight, straight) == 1
    assert compiled._same(straight, crossed) == 0


def test_what_a_reader_asks_for_is_compiled_over_eager_and_over_theirs(table):
    ratios = asked(table)
    sped = ["compiled ÷ eager", "÷ transformers"]
    assert list(ratios["ratio"]) == [*sped, *sped, "rounding ÷ eager's"]
    ways = ["greedy, autoregressive", "greedy, draft model", "logits, against float64"]
    assert ratios["of"].unique().tolist() == ways
    assert (ratios["value_median"] == 1.0).all()


def test_both_models_of_a_contest_are_compiled_and_those_of_the_other_are_not(contest):
    made = compiled.with_compiled_steps(contest)
    assert made.target.steps is not None
    assert made.draft.steps is not None
    assert contest.target.steps is None


def test_rounding_is_told_by_how_far_float64_lies(contest):
    exact, coarse = contest.target, fd.Decoder.from_hf(tiny().bfloat16())
    prompts = [[1, 2, 3, 4], [4, 5]]
    assert rounding(coarse, coarse, prompts).maximum == 1
    assert rounding(exact, coarse, prompts).minimum > 1e3
    assert rounding(coarse, exact, prompts[:1]).maximum > 0.1


def test_a_prompt_that_leaves_no_step_is_refused(contest):
    with pytest.raises(ValueError, match="one token"):
        rounding(contest.target, contest.target, [[1, 2], [3]])
