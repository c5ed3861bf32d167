"""The rounds of a generation, timed in place."""

from itertools import count

import pytest
import torch

import foredraft as fd
from foredraft.benchmarks.harness import Beat, Pace, Parts, paced, plain_round
from tests.benchmarks.conftest import tiny

PROMPT, NEW_TOKENS, LENGTH = [1, 2, 3, 4], 15, 2


@pytest.fixture(scope="module")
def decoders():
    return tuple(fd.Decoder.from_hf(tiny(seed)) for seed in (0, 1))


def decode(model):
    def run(drafter, on_round):
        return fd.generate(
            model,
            [PROMPT],
            sampler=fd.Sampler(),
            max_new_tokens=NEW_TOKENS,
            drafter=drafter,
            exit_policy=fd.FixedLength(LENGTH),
            generator=torch.Generator().manual_seed(0),
            on_round=on_round,
        )

    return run


def ticking():
    """A clock that moves on by one second each time that it is read."""
    ticks = count()
    return lambda: float(next(ticks))


def test_each_round_is_timed_and_drafting_apart(decoders):
    target, draft = decoders
    made, pace = paced(decode(target), fd.ModelDrafter(draft), ticking())
    rounds = [made_round.rows[0] for made_round in made.trace.rounds]
    assert [beat.drafted for beat in pace.beats] == [row.drafted for row in rounds[1:]]
    assert pace.prefill == 1  # the clock is read before and after it
    for beat in pace.beats:
        drafts = beat.drafted > 0
        assert (beat.drafting, beat.whole) == ((1, 3) if drafts else (0, 1))


def test_timing_changes_no_token(decoders):
    target, draft = decoders
    made, _ = paced(decode(target), fd.ModelDrafter(draft), ticking())
    assert made.tokens == decode(target)(fd.ModelDrafter(draft), None).tokens


def test_without_a_drafter_all_rounds_are_plain(decoders):
    _, pace = paced(decode(decoders[0]), None, ticking())
    assert len(pace.plain()) == NEW_TOKENS - 1
    assert plain_round([pace]) == 1


def test_parts_leave_out_the_first_draft_and_those_that_the_end_of_a_text_cut_short():
    beats = (Beat(2, 9.0, 12.0), Beat(2, 4.0, 7.0), Beat(0, 0.0, 5.0), Beat(2, 2.0, 6.0))
    pace = Pace(1.0, (*beats, Beat(1, 50.0, 60.0)))
    parts = Parts.of([pace, Pace(1.0, ())], 2)
    assert (parts.step, parts.rest) == (1.5, 3.5)
    assert pace.start(parts.step) == 6.0
    assert plain_round([pace]) == 5.0


def test_what_was_never_drafted_has_no_parts():
    parts = Parts.of([Pace(1.0, (Beat(0, 0.0, 5.0),))], 2)
    assert parts.step != parts.step  # NaN
    assert Pace(1.0, ()).start(1.0) == 0
