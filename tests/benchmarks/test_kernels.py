"""The kernels' benchmark rotates its inputs, knows its floor, and judges by it; on a GPU alone."""

from itertools import count

import pytest
import torch

from foredraft.benchmarks import kernels
from foredraft.benchmarks.kernels import (
    COMPILED,
    EAGER,
    OURS,
    Contest,
    decoding_contests,
    input_sets,
    judged,
    kernels_benchmark,
    taking_turns,
    verdict,
)
from foredraft.benchmarks.timing import Comparison, Schedule


@pytest.fixture
def contest() -> Contest:
    """Eight numbers, added; each call says which input set it was given."""

    def inputs(generator: torch.Generator, device: str) -> tuple[torch.Tensor, ...]:
        return (torch.rand(8, generator=generator, device=device),)

    return Contest("rms_norm", "8", torch.float32, 1000, inputs, {OURS: id}, id)


def test_a_processor_is_refused_in_words():
    with pytest.raises(ValueError, match="timed on a CUDA device, not on cpu"):
        kernels_benchmark(device="cpu")


def test_a_machine_without_a_cuda_device_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"where torch\.cuda\.is_available\(\)"):
        kernels_benchmark()


def test_input_sets_overflow_the_cache_three_times(contest):
    sets = input_sets(contest, "cpu", cache=320)
    assert len(sets) == 30
    assert len({each[0].data_ptr() for each in sets}) == 30
    assert len(input_sets(contest, "cpu", cache=1)) == 2
    assert len(input_sets(contest, "cpu", cache=10**9)) == kernels.MOST_SETS


def test_every_arm_takes_one_set_after_the_other(contest):
    sets = input_sets(contest, "cpu", cache=32)
    arms = taking_turns(contest, sets, lambda call: call)
    assert list(arms) == [OURS, EAGER, COMPILED]
    for run in arms.values():
        assert [run() for _ in range(4)] == [id(each[0]) for each in (*sets, sets[0])]


def test_copies_are_read_and_written():
    clock = count()
    bandwidth = kernels.copy_bandwidth(
        "cpu", size=1000, schedule=Schedule(3, 0, 1), clock=lambda: float(next(clock))
    )
    assert bandwidth == pytest.approx(2000)


def test_a_row_has_the_floor_the_share_of_it_and_both_ratios(contest):
    seconds = {OURS: (2.0, 2.0), EAGER: (6.0, 6.0), COMPILED: (3.0, 3.0)}
    timed = Comparison(seconds, dict.fromkeys(seconds, 1), {"device": "cuda"})
    (row,) = judged(contest, timed, bandwidth=1000.0)
    assert row["floor_ms"] == pytest.approx(1e3)
    assert row["share_median"] == pytest.approx(0.5)
    assert (row["ratio_eager_median"], row["ratio_compiled_median"]) == (3, 1.5)
    assert (row["n"], row["verdict"]) == (2, "keep")
    (row,) = judged(contest, timed, bandwidth=1000.0, per_call=4)
    assert row["ms_median"] == pytest.approx(500)
    assert row["share_median"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("kernel", "moved", "share", "eager", "compiled", "told"),
    [
        ("rms_norm", 1, 0.1, 1.3, 1.0, "keep"),
        ("rms_norm", 1, 0.9, 1.2, 1.0, "drop"),
        ("rms_norm", 1, 0.9, 2.0, 0.99, "drop"),
        ("vector_add", 64_000_000, 0.92, 1.0, 0.5, "keep"),
        ("vector_add", 64_000_000, 0.91, 1.0, 1.0, "drop"),
        ("vector_add", 64_000_000, 0.95, 0.99, 1.0, "drop"),
        ("vector_add", 63_999_999, 0.1, 0.1, 0.1, "too small to tell"),
    ],
)
def test_a_kernel_is_kept_where_it_wins(contest, kernel, moved, share, eager, compiled, told):
    other = Contest(kernel, "", torch.float32, moved, contest.inputs, contest.ours, id)
    assert verdict(other, share, {EAGER: eager, COMPILED: compiled}) == told


def test_decoding_is_timed_at_one_to_thirty_two_rows_with_every_kernel():
    contests = decoding_contests()
    names = {contest.kernel for contest in contests}
    assert names == {
        *("vector_add", "rms_norm", "gated_linear_unit"),
        *("decode_attention", "sample_tokens", "verify_drafts"),
    }
    additions = [each for each in contests if each.kernel == "vector_add"]
    assert max(each.bytes_moved for each in additions) > kernels.LARGE
    for name in names - {"vector_add"}:
        shapes = {each.shape.split(" ")[0] for each in contests if each.kernel == name}
        assert shapes == {"1", "8", "32"}


def test_in_every_contest_kernel_and_torch_answer_the_same():
    """At sizes that the interpreter finishes: the shapes of one row, cut short."""
    small = [
        kernels._norm(1, 64, "llama"),
        kernels._unit(1, 64, "gelu_tanh"),
        kernels._attention(1, 5, (4, 2, 16), kernels.decode_attention.Scores(0.25, 50.0, 4)),
        kernels._draw(1, 40, kernels.sample_tokens.Filters(0.8, top_k=5)),
        kernels._verification(1, 2, 40),
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for contest in small:
        given = contest.inputs(torch.Generator(device).manual_seed(0), device)
        found, wanted = (tensors(call(*given)) for call in (contest.ours[OURS], contest.theirs))
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)


def tensors(answer: object) -> list[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        return [answer]
    if isinstance(answer, tuple):
        return list(answer)
    return [getattr(answer, name) for name in type(answer).__slots__]
