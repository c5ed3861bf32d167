"""The contest of whole generations: who takes part, and what each row of its table says."""

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import replace

import pandas
import pytest
import torch

import foredraft as fd
from foredraft.benchmarks import decoding
from foredraft.benchmarks.decoding import (
    Arm,
    Contest,
    _bytes_read,
    _ours,
    _theirs,
    asked,
    decoding_benchmark,
    memory_bandwidth,
)
from tests.benchmarks.conftest import tiny

NEW_TOKENS = 12
PROMPTS = ((1, 2, 3, 4), (2, 2, 3, 5), (3, 2, 3, 6))


@pytest.fixture(scope="module")
def contest() -> Contest:
    theirs, their_draft = tiny(0), tiny(1)
    return Contest(
        *(fd.Decoder.from_hf(theirs), fd.Decoder.from_hf(their_draft), theirs, their_draft),
        prompts=[[*prompt] for prompt in PROMPTS],
        new_tokens=NEW_TOKENS,
        length=2,
        lengths=(1, 2),
        batch=2,
    )


def digest(ids):
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


@pytest.fixture(scope="module")
def run(contest):
    """Run the contest; give its table and, by arm and case, what each run was given to continue.

    That is a tuple of digests, one a row, taken as either library is asked to generate.
    """
    given, now = defaultdict(list), []
    ours, theirs, alternate = decoding.generate, contest.theirs.generate, decoding.alternate

    def noted(arms, cases, **options):
        def note(arm):
            return lambda case: now.append((arm, case)) or arms[arm](case)

        return alternate({arm: note(arm) for arm in arms}, cases, **options)

    def asked_of(generate):
        def asked(*args, **options):
            prompts = next(each for each in args if not isinstance(each, torch.nn.Module))
            rows = prompts.tolist() if isinstance(prompts, torch.Tensor) else prompts
            given[now[-1]].append(tuple(map(digest, rows)))
            return generate(*args, **options)

        return asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "alternate", noted)
        patch.setattr(decoding, "generate", asked_of(ours))
        patch.setattr(contest.theirs, "generate", asked_of(theirs))
        return decoding_benchmark(contest), given


@pytest.fixture(scope="module")
def table(run):
    return run[0]


def test_all_arms_continue_the_same_prompts_and_no_arm_what_another_made_of_them(run):
    """By the digests of the very ids; a batch has further prompts in its further rows."""
    table, given = run
    prompts = [digest(prompt) for prompt in PROMPTS]
    cases = defaultdict(set)
    for (arm, case), runs in given.items():
        (rows,) = {*runs}
        n_rows = int(arm.removesuffix(", in parts").rpartition(" ")[2])
        assert rows == tuple(prompts[(case + row) % len(prompts)] for row in range(n_rows)), arm
        cases[arm].add(case)
    assert all(met == {0, 1, 2} for met in cases.values())
    assert len([arm for arm in cases if "in parts" not in arm]) == len(table)


def test_every_strategy_meets_its_counterpart(table):
    found = set(table[["strategy", "library", "batch"]].itertuples(index=False, name=None))
    for strategy in ("autoregressive", "draft model", "draft model, confident", "prompt lookup"):
        assert {(strategy, "foredraft", 1), (strategy, "transformers", 1)} <= found
    assert {("autoregressive", "foredraft", 2), ("draft model", "foredraft", 2)} <= found
    assert set(table["sampler"]) == {"greedy", "temperature 1"}
    assert (table["n"] == 3).all()


def test_our_own_autoregressive_decoding_is_the_measure_of_all_others(table):
    plain = table.query("strategy == 'autoregressive' and library == 'foredraft' and batch == 1")
    assert (plain[["speedup_median", "speedup_min", "speedup_max"]] == 1).all(axis=None)
    assert (table["speedup_median"] > 0).all()


def test_a_prediction_stands_beside_each_draft_length(table):
    drafted = table.query("strategy == 'draft model' and library == 'foredraft' and batch == 1")
    assert sorted(drafted["length"].unique()) == [1, 2]
    assert drafted[["predicted", "residual", "draft_ms", "verify_ms"]].notna().all(axis=None)
    others = table.drop(drafted.index)
    assert others["predicted"].isna().all()


def test_acceptance_is_known_of_our_own_arms_alone(table):
    drafted = table.loc[table["strategy"].str.startswith("draft model")]
    drafted = drafted.query("library == 'foredraft'")
    assert drafted["acceptance"].between(0, 1).all()
    assert table.query("library == 'transformers'")["acceptance"].isna().all()


def test_models_of_different_precision_are_not_compared(contest):
    with pytest.raises(ValueError, match="one dtype"):
        replace(contest, theirs=tiny(dtype=torch.bfloat16))


def test_a_batch_needs_as_many_prompts(contest):
    with pytest.raises(ValueError, match="3 prompts for a batch of 4"):
        replace(contest, batch=4)


def test_bandwidth_is_bytes_by_seconds():
    ticks = iter(range(100))
    found = memory_bandwidth("cpu", megabytes=1, clock=lambda: float(next(ticks)))
    assert math.isclose(found, 2**20)


def test_ratios_pair_the_same_draft_length_and_the_same_sampler():
    def row(strategy, library, batch, length, rate):
        arm = {"strategy": strategy, "library": library, "batch": batch, "length": length}
        return {"sampler": "greedy", **arm, "tokens_per_second_median": rate}

    rows = [
        row("autoregressive", "foredraft", 1, 0, 10.0),
        row("autoregressive", "transformers", 1, 0, 5.0),
        row("draft model", "foredraft", 1, 2, 12.0),
        row("draft model", "foredraft", 1, 4, 18.0),
        row("draft model", "transformers", 1, 4, 6.0),
        row("draft model", "foredraft", 8, 4, 72.0),
    ]
    found = asked(pandas.DataFrame(rows))
    ratios = found.set_index(["ratio", "strategy", "length"])["value"].to_dict()
    assert ratios == {
        ("ours ÷ transformers", "autoregressive", 0): 2.0,
        ("ours ÷ transformers", "draft model", 4): 3.0,
        ("÷ autoregressive", "draft model", 2): 1.2,
        ("÷ autoregressive", "draft model", 4): 1.8,
        ("batch 8 ÷ batch 1", "draft model", 4): 4.0,
    }


def test_transformers_drafts_as_many_tokens_as_it_is_told(contest):
    drafted = []

    def count(module, inputs, kwargs, output):
        drafted.append(output.logits.shape[1])

    handle = contest.theirs.register_forward_hook(count, with_kwargs=True)
    try:
        for length in (1, 2):
            drafted.clear()
            _theirs(contest, Arm("greedy", "draft model", "transformers", length=length), 0)
            assert max(drafted[1:]) == length + 1
    finally:
        handle.remove()


def test_bytes_read_are_passes_times_target_and_drafts_times_draft_model(contest):
    arm = Arm("greedy", "draft model", length=2)
    made = _ours(contest, arm, 0).generation
    rows = [round.rows[0] for round in made.trace.rounds]
    target, draft = (4 * sum(p.numel() for p in m.parameters()) for m in (contest.theirs, tiny(1)))
    wanted = len(rows) * target + sum(row.drafted for row in rows) * draft
    assert _bytes_read(contest, arm, [made]) == wanted
    plain = Arm("greedy", "autoregressive")
    made = _ours(contest, plain, 0).generation
    assert _bytes_read(contest, plain, [made]) == NEW_TOKENS * target
