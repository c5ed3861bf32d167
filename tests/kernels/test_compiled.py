"""What the compiler makes of every kernel, for cards that are not at hand, has what matters."""

import pytest

from foredraft.kernels.compiled import (
    MODULES,
    TARGETS,
    Compiled,
    Request,
    compile_specimens,
    wide_addresses,
    wide_indices,
)

UNALIGNED = {"aligned": False, "launch": {"block": 1024, "warps": 4}}
FULL = {"sm_80": 255, "sm_90": 255, "gfx942": 512}
"""Registers that a thread can have."""


@pytest.fixture(scope="module")
def found() -> list[Compiled]:
    """Everything, in one process with a cache of its own."""
    requests = [Request(module, target) for target in TARGETS for module in MODULES]
    return compile_specimens([*requests, Request("vector_add", "sm_90", UNALIGNED)])


@pytest.fixture(scope="module")
def kernels(found) -> list[Compiled]:
    return found[:-3]


def one(kernels: list[Compiled], name: str, target: str) -> Compiled:
    (compiled,) = (each for each in kernels if (each.kernel, each.target) == (name, target))
    return compiled


def test_every_kernel_compiles_for_every_card(kernels):
    names = {each.kernel for each in kernels}
    assert len(names) == 17
    assert {(each.kernel, each.target) for each in kernels} == {
        (name, target) for name in names for target in TARGETS
    }


def test_nothing_is_spilled_and_a_block_of_threads_finds_registers(kernels):
    for each in kernels:
        assert each.spilled == 0, (each.kernel, each.target)
        assert each.registers <= FULL[each.target]
    for target in ("sm_80", "sm_90"):
        for name in ("add_block", "add_rms_norm llama", "gated_linear_unit silu"):
            assert one(kernels, name, target).registers <= 32, "so that all threads are resident"


@pytest.mark.parametrize("target", TARGETS)
def test_vectors_are_loaded_and_stored_sixteen_bytes_at_a_time(kernels, target):
    for name in ("add_block", "add_grid_stride"):
        compiled = one(kernels, name, target)
        assert set(compiled.loads) == set(compiled.stores) == {16}
    for name in ("add_rms_norm llama", "add_rms_norm gemma", "decode_attention"):
        assert max(one(kernels, name, target).loads) == 16
    for name in ("sample_tokens find_peaks", "sample_tokens weigh", "verify_drafts weigh"):
        assert max(one(kernels, name, target).loads) == 16


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_vector_load_stands_in_the_ptx(kernels, target):
    text = one(kernels, "add_block", target).text
    assert "ld.global.v4.b32" in text
    assert "st.global.v4.b32" in text


def test_without_the_hint_of_alignment_loads_are_single(found):
    unaligned = found[-3:]
    assert unaligned[0].kernel == "add_block"
    assert set(unaligned[0].loads) == {4}
    assert "ld.global.v" not in unaligned[0].text


def test_no_offset_is_computed_with_32_bits(kernels):
    assert all(each.wide_addresses for each in kernels)


def test_an_offset_with_32_bits_would_be_noticed(kernels):
    """The negative control: the same text with the shift that a 32-bit program would make."""
    text = one(kernels, "add_block", "sm_90").text
    (number,) = (line.split()[1].rstrip(",") for line in text.splitlines() if "%ctaid.x" in line)
    assert wide_addresses(text)
    assert not wide_addresses(f"{text}\n\tshl.b32 \t%r99, {number}, 10;")
    wide = "%pid = tt.get_program_id x : i32\n%at = arith.extsi %pid : i32 to i64"
    assert wide_indices(wide)
    assert not wide_indices(f"{wide}\n%start = arith.muli %pid, %c1024_i32 : i32")


def test_attention_multiplies_on_tensor_cores(kernels):
    for target in TARGETS:
        assert one(kernels, "decode_attention", target).matrix
        assert not one(kernels, "add_block", target).matrix


def test_an_unknown_target_and_a_kernel_that_does_not_compile_are_told():
    with pytest.raises(ValueError, match="target 'sm_1' is unknown"):
        compile_specimens([Request("vector_add", "sm_1")])
    with pytest.raises(ValueError, match="module 'bert' is unknown"):
        compile_specimens([Request("bert", "sm_90")])
    with pytest.raises(ValueError, match="do not compile"):
        compile_specimens([Request("vector_add", "sm_90", {"launch": {"block": 3}})])
