"""Vector addition equals torch's to the last bit, at every size, type and stride; or refuses."""

import pytest
import torch

from foredraft.kernels import vector_add as module
from foredraft.kernels.environment import is_interpreted
from foredraft.kernels.vector_add import COMPUTED, Launch, collapsed, reference, vector_add
from tests.kernels.conftest import guarded, margins, sentinel

SMALL = Launch(block=64, warps=1)
SIZES = (0, 1, 2, 63, 64, 65, 127, 128, 129, 257)


def view(name: str, drawn, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two operands of one shape that lie in memory in other ways."""
    return {
        "every second": lambda: (drawn(140, dtype=dtype)[::2], drawn(141, dtype=dtype)[1::2]),
        "transposed": lambda: (drawn(7, 13, dtype=dtype).t(), drawn(13, 7, dtype=dtype)),
        "both transposed": lambda: (drawn(7, 13, dtype=dtype).t(), drawn(7, 13, dtype=dtype).t()),
        "permuted": lambda: (
            drawn(3, 5, 7, dtype=dtype).permute(2, 0, 1),
            drawn(7, 5, 3, dtype=dtype).permute(0, 2, 1),
        ),
        "expanded": lambda: (drawn(1, 67, dtype=dtype).expand(3, 67), drawn(3, 67, dtype=dtype)),
        "sliced": lambda: (drawn(9, 11, dtype=dtype)[1:, 2:-1], drawn(8, 8, dtype=dtype)),
        "six ranks": lambda: (
            drawn(2, 3, 1, 2, 3, 2, dtype=dtype).permute(5, 3, 1, 2, 0, 4),
            drawn(2, 2, 3, 1, 2, 3, dtype=dtype),
        ),
        "a number": lambda: (drawn(1, dtype=dtype)[0], drawn(1, dtype=dtype)[0]),
    }[name]()


VIEWS = (
    *("every second", "transposed", "both transposed", "permuted"),
    *("expanded", "sliced", "six ranks", "a number"),
)


@pytest.mark.parametrize("dtype", COMPUTED, ids=str)
def test_sums_are_torchs_at_every_size_around_a_block(drawn, dtype):
    for n in SIZES:
        x, y = drawn(n, dtype=dtype), drawn(n, dtype=dtype)
        assert torch.equal(vector_add(x, y, launch=SMALL), reference(x, y)), n


@pytest.mark.parametrize("name", VIEWS)
def test_sums_of_views_are_torchs(drawn, name):
    for dtype in (torch.float32, torch.bfloat16, torch.int32):
        x, y = view(name, drawn, dtype)
        assert torch.equal(vector_add(x, y, launch=SMALL), x + y), dtype


def test_the_layout_is_that_of_the_first_if_it_has_no_gaps(drawn):
    x, y = drawn(7, 13).t(), drawn(13, 7)
    assert vector_add(x, y, launch=SMALL).stride() == x.stride() == (x + y).stride()


@pytest.mark.parametrize("programs", [1, 3, 100])
def test_program_instances_may_stride_over_the_blocks(drawn, programs):
    launch = Launch(64, 1, programs)
    for n in (1, 64, 65, 500):
        x, y = drawn(n), drawn(n)
        assert torch.equal(vector_add(x, y, launch=launch), x + y)


@pytest.mark.parametrize("n", [1, 63, 65, 130])
def test_nothing_is_written_beside_the_sum(drawn, n):
    x, y = drawn(n), drawn(n)
    for kernel in (module.add_block, module.add_grid_stride):
        out = guarded(torch.zeros_like(x))
        grid = (-(-n // 64),)
        kernel[grid](x, y, out, n, COMPUTED[x.dtype], BLOCK=64, num_warps=1)
        assert torch.equal(out, x + y)
        assert margins(out).isnan().all()


def test_the_mask_is_what_keeps_the_sentinels_away(drawn):
    """The negative control: told of one element too many, the kernel does fetch a sentinel."""
    x, y, n = drawn(65), drawn(65), 66
    out = guarded(torch.zeros_like(x))
    module.add_block[(2,)](x, y, out, n, COMPUTED[x.dtype], BLOCK=64, num_warps=1)
    assert torch.equal(out, x + y)
    ends = guarded(torch.zeros(1, dtype=torch.int32))
    assert (margins(ends) == sentinel(torch.int32)).all()
    whole = out.new_empty(0).set_(out.untyped_storage())
    assert whole[out.storage_offset() + 65].isnan(), "a sum of sentinels"


def test_integers_wrap_as_torchs_do(device):
    most = torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32, device=device)
    assert torch.equal(vector_add(most, most, launch=SMALL), most + most)


def test_halves_are_rounded_to_the_nearest_and_to_even(device):
    """Every pair of 256 neighbours of bfloat16: cutting off instead of rounding fails half."""
    bits = torch.arange(0x3F80, 0x4080, dtype=torch.int16, device=device)
    x = bits.view(torch.bfloat16).repeat(16)
    y = (bits[:16] + 0x0011).view(torch.bfloat16).repeat_interleave(256)
    total = vector_add(x, y, launch=Launch(4096, 4))
    assert torch.equal(total, x + y)
    cut = ((x.float() + y.float()).view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    assert not torch.equal(cut, x + y)


def test_offsets_beyond_two_to_the_31_reach_the_right_elements(device):
    """Two bytes more than 2³¹ apart; no page between them is ever touched."""
    apart = 2**31 + 8
    x, y = (torch.empty(apart + 8, dtype=torch.int8, device=device) for _ in range(2))
    for buffer, (near, far) in ((x, (1, 2)), (y, (10, 20))):
        buffer[0], buffer[8], buffer[apart] = near, 99, far
    views = [each.as_strided((2,), (apart,)) for each in (x, y)]
    assert vector_add(*views, launch=SMALL).tolist() == [11, 22]


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.ones(3, 1), torch.ones(3, 2), r"\(3, 1\), y \(3, 2\).*expand"),
        (torch.ones(1), torch.ones(()), r"\(1,\), y \(\)"),
        (torch.ones(2), torch.ones(2, dtype=torch.float16), r"float32, y torch.float16.*\.to"),
        (torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), "torch.bool; the"),
        (torch.ones(2), torch.ones(2, device="meta"), "x on cpu, y on meta"),
        (torch.ones(2, device="meta"), torch.ones(2, device="meta"), "x is on meta"),
        (torch.ones(2, requires_grad=True), torch.ones(2), "no_grad"),
    ],
)
def test_what_cannot_be_added_is_refused_in_words(x, y, told):
    with pytest.raises(ValueError, match=told):
        vector_add(x, y)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"block": 1000}, "block is 1000; it must be a power of two"),
        ({"block": 0}, "block is 0"),
        ({"warps": 64}, "warps is 64; it must be a power of two, at most 32"),
        ({"programs": -1}, "programs is -1"),
    ],
)
def test_a_launch_that_no_card_makes_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Launch(**options)


def test_launches_are_tuned_where_kernels_are_compiled_and_nowhere_else(drawn):
    x, y = drawn(1000), drawn(1000)
    if is_interpreted(module.add_block):
        with pytest.raises(ValueError, match="the interpreter has none to time"):
            vector_add(x, y, launch=None)
    else:
        assert torch.equal(vector_add(x, y, launch=None), x + y)


def test_arguments_stay_as_they_were(drawn):
    x, y = drawn(65), drawn(65)
    before = x.clone(), y.clone()
    vector_add(x, y, launch=SMALL)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("shape", "strides", "wanted"),
    [
        ((4, 5), ((5, 1), (5, 1)), ((20,), (1,), (1,))),
        ((4, 5), ((1, 4), (5, 1)), ((4, 5), (1, 4), (5, 1))),
        ((4, 5), ((5, 1), (1, 4)), ((5, 4), (1, 5), (4, 1))),
        ((1, 1), ((7, 3), (1, 1)), ((1,), (1,), (1,))),
        ((3, 2, 4), ((8, 4, 1), (16, 8, 2)), ((24,), (1,), (2,))),
        ((3, 2, 4), ((10, 4, 1), (8, 4, 1)), ((3, 8), (10, 1), (8, 1))),
        ((2, 3), ((0, 1), (3, 1)), ((2, 3), (0, 1), (3, 1))),
    ],
)
def test_dimensions_are_joined_where_every_tensor_steps_evenly(shape, strides, wanted):
    assert collapsed(shape, *strides) == wanted


def test_an_addition_moves_three_numbers_an_element():
    assert module.bytes_moved(1000, torch.bfloat16) == 6000
