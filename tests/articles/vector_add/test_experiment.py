"""What article 08 says of the kernels follows from their bytes and from what was compiled."""

import pandas as pd
import pytest

from foredraft.articles.vector_add import compilation, experiment
from foredraft.kernels.compiled import Compiled
from foredraft.repro.params import load as load_params


@pytest.fixture(scope="module")
def params():
    return load_params("vector_add", {"profile": "smoke"})


def compiled(kernel: str = "add_block", **facts: object) -> Compiled:
    usual = {"target": "sm_90", "warps": 4, "registers": 25, "spilled": 0, "shared": 0}
    usual |= {"loads": {16: 4}, "stores": {16: 2}, "matrix": False, "wide_addresses": True}
    return Compiled(kernel=kernel, **{**usual, "text": "", **facts})


@pytest.fixture
def made(params, monkeypatch):
    """Compilations without a compiler: loads are single where alignment is unknown."""
    asked = []

    def compiler(requests):
        asked.extend(requests)
        return [
            compiled(
                loads={16: 4} if request.options.get("aligned", True) else {4: 16},
                target=request.target,
                warps=request.options.get("launch", {}).get("warps", 4),
            )
            for request in requests
        ]

    monkeypatch.setattr(compilation, "compile_specimens", compiler)
    return compilation.compilations(params), asked


def test_every_element_has_one_program_instance_and_the_mask_the_rest():
    table = experiment.instances(19, 8)
    assert len(table) == 24
    assert table[table.within].element.tolist() == list(range(19))
    assert (table.program * 8 + table.lane == table.element).all()


def test_operands_of_every_view_have_one_shape_and_do_not_both_lie_flat(params):
    import torch

    generator = torch.Generator().manual_seed(0)
    for view in experiment.VIEWS:
        x, y = experiment.operands(37, torch.int32, view, generator=generator)
        assert x.shape == y.shape
        assert (view == "contiguous") == (x.is_contiguous() and y.is_contiguous())


def test_every_sum_is_compared_and_none_is_wrong(params):
    table = experiment.correctness(params)
    assert len(table) == len(params.sizes) * len(params.dtypes) * len(experiment.VIEWS)
    assert table.wrong.sum() == 0
    flat = table[table["view"] == "contiguous"]
    assert (flat.equal == flat.n).all()


def test_a_kernel_that_is_wrong_is_counted(params, monkeypatch):
    monkeypatch.setattr(experiment, "vector_add", lambda x, y, launch: x - y)
    assert experiment.correctness(params).wrong.sum() > 0


def test_floors_are_bytes_over_bandwidth(params):
    table = experiment.floors(params)
    row = table[(table.card == "H100 80 GB SXM") & (table.dtype == "float32")].iloc[-1]
    assert row["bytes"] == 12 * row.n
    assert row.floor_us == pytest.approx(1e6 * 12 * row.n / 3.35e12)
    assert (table.adding_us < table.floor_us).all(), "the additions are free"


def test_no_operation_uses_more_than_a_card_has(params):
    table = experiment.roofline(params)
    assert table.attainable.between(0, 1).all()
    by_card = table.set_index(["card", "operation"]).attainable
    assert by_card["A100 80 GB SXM", "vector add, float32"] == pytest.approx(2.039 / 12 / 9.75)


@pytest.mark.parametrize(
    ("registers", "warps", "resident"), [(16, 4, 16), (16, 1, 32), (64, 4, 8), (255, 8, 1)]
)
def test_registers_threads_and_slots_limit_what_is_resident(registers, warps, resident):
    assert compilation.resident_instances(registers, warps) == resident


def test_each_compilation_goes_to_its_table(params, made):
    found, asked = made
    grid = len(params.blocks) * len(params.warp_counts)
    assert len(found.launches) == grid
    assert len(found.loads) == 2 * len(params.dtypes)
    assert found.loads[found.loads.aligned].load_bytes.tolist() == [16] * len(params.dtypes)
    assert found.loads[~found.loads.aligned].load_bytes.tolist() == [4] * len(params.dtypes)
    assert (found.aligned.loads, found.unaligned.loads) == ({16: 4}, {4: 16})
    assert len(found.kernels) == len(params.targets) * len(compilation.MODULES)
    assert len(asked) == grid + 2 * len(params.dtypes) + len(found.kernels)


def test_a_launch_can_ask_for_what_its_resident_instances_load(made):
    row = made[0].launches.iloc[0]
    assert row.bytes_under_way == 2 * row.block * 4 * row.resident
    wanted = 3.35e12 * 2 / 3 * compilation.LATENCY / 132
    assert row.attainable == pytest.approx(min(1, row.bytes_under_way / wanted))


def test_what_is_read_aloud_loads_stores_and_says_where_the_block_is():
    text = "mov.u32 \t%r1, %ctaid.x;\nret;\n@%p1 ld.global.v4.b32 { %r2 }, [ %rd1 + 0 ];"
    assert compilation.read_aloud(compiled(text=text)).splitlines() == [
        "mov.u32 \t%r1, %ctaid.x;",
        "@%p1 ld.global.v4.b32 { %r2 }, [ %rd1 + 0 ];",
    ]


def test_with_few_rows_fusion_saves_launches_and_with_many_bytes(params):
    counted = compilation.fusion(params)
    worth = experiment.worth(params, counted)
    few, many = (worth[worth["rows"] == n] for n in (min(params.rows), max(params.rows)))
    assert (few.share_launches > 100 * few.share_bytes).all()
    assert (many.share_bytes > 10 * few.share_bytes.max()).all()
    assert worth[["share_bytes", "share_launches"]].to_numpy().max() < 1


def test_drawn_tokens_are_within_the_grid_of_their_law_and_drafted_ones_are_not(params):
    drawn, verified = experiment.sampled_law(params), experiment.verified_law(params)
    for table in (drawn, verified):
        sums = table.groupby("filters")[["expected", "found"]].sum()
        assert sums.to_numpy() == pytest.approx(1, abs=1e-5)
    far = (drawn.expected - drawn.found).abs()
    assert far.max() <= 1 / params.draws + 1e-6
    by_name = {name: rows for name, rows in verified.groupby("filters")}
    near = by_name["drafted, then verified"]
    fine = 0.5 / params.coins + 1 / params.draws
    assert (near.expected - near.found).abs().max() <= fine
    assert (by_name["drafted"].expected - by_name["drafted"].found).abs().max() > fine


def test_claims_have_their_values_and_say_whether_a_clock_was_read(params, made):
    checked = pd.DataFrame({"equal": [90], "wrong": [0]})
    laws = pd.DataFrame(
        {"filters": ["top-p", "drafted"], "expected": [0.5, 0.5], "found": [0.49, 0.1], "n": 16}
    )
    counted = compilation.fusion(params)
    values, claims = experiment.findings(checked, made[0], counted, laws, None)
    assert values["times"] == {"recorded": False}
    assert values["law"]["largest_distance"] == pytest.approx(0.01), "the draft is no claim"
    assert {claim.id for claim in claims} >= {"wrong", "vector", "scalar", "spills", "law"}
    rows = [("graph", 6e8, 0.95), ("one by one", 6e8, 0.9), ("graph", 6e6, 0.2)]
    recorded = pd.DataFrame(rows, columns=["launched", "bytes", "share_median"])
    recorded = recorded.assign(kernel="vector_add", way="kernel", n=7)
    values, claims = experiment.findings(checked, made[0], counted, laws, recorded)
    assert values["times"] == {"recorded": True, "share_of_copy": 0.95}
    assert claims[-1].key == "times.share_of_copy"
