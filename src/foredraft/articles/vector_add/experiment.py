"""Article 08: a first kernel, held to the bytes that it moves; then the kernels of decoding.

No clock is read here. What a kernel must move, what the compiler made of it for cards that are not
at hand, and what the interpreter computes are facts of any machine; how long it takes is not.
"""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from foredraft.articles.vector_add.cards import CARDS, DTYPES
from foredraft.articles.vector_add.compilation import Compilations
from foredraft.kernels import rms_norm, sample_tokens, verify_drafts
from foredraft.kernels.environment import VARIABLE, is_interpreted
from foredraft.kernels.vector_add import Launch, add_block, bytes_moved, reference, vector_add
from foredraft.repro.claims import Claim
from foredraft.repro.live import steps
from foredraft.repro.params import VectorAdd
from foredraft.sampling import Sampler
from foredraft.types import Float, Int, Tensor

LAUNCH = 5e-6
"""Seconds that a launch takes of the host, by rule of thumb; not measured here."""

VIEWS = ("contiguous", "every second", "transposed", "reversed ranks", "expanded")
"""What the two operands may be views of."""


def instances(n: int, block: int) -> pd.DataFrame:
    """Say for every element which program instance has it and where, and for the mask's rest too.

    Columns: element, program, lane (place within the block), within (False: masked off).
    """
    programs = -(-n // block)
    element = np.arange(programs * block)
    return pd.DataFrame(
        {
            "element": element,
            "program": element // block,
            "lane": element % block,
            "within": element < n,
        }
    )


def correctness(params: VectorAdd) -> pd.DataFrame:
    """Compare the kernel with torch on every size, type and view.

    Columns: n, dtype, view, equal (elements that agree to the last bit), wrong.
    """
    generator = torch.Generator().manual_seed(params.seed)
    launch = Launch(params.block, params.warps)
    rows = []
    for n, name, view in product(params.sizes, params.dtypes, VIEWS):
        x, y = operands(n, DTYPES[name], view, generator=generator)
        agree = int((vector_add(x, y, launch=launch) == reference(x, y)).sum())
        row = {"n": n, "dtype": name, "view": view, "equal": agree, "wrong": x.numel() - agree}
        rows.append(row)
    return pd.DataFrame(rows)


def operands(
    n: int, dtype: torch.dtype, view: str, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Make two operands of about n elements that are views of a kind."""

    def drawn(*shape: int) -> Tensor:
        return (100 * torch.randn(shape, generator=generator)).to(dtype)

    if view == "every second":
        return drawn(2 * n)[::2], drawn(2 * n + 1)[1::2]
    if view == "transposed":
        return drawn(3, -(-n // 3)).t(), drawn(-(-n // 3), 3)
    if view == "reversed ranks":
        return drawn(2, -(-n // 6), 3).permute(2, 1, 0), drawn(3, -(-n // 6), 2)
    if view == "expanded":
        return drawn(1, n).expand(2, n), drawn(2, n)
    return drawn(n), drawn(n)


def how_it_ran() -> str:
    """Say how the kernels of this process run."""
    way = f"interpreted ({VARIABLE}=1)" if is_interpreted(add_block) else "compiled"
    device = "a CUDA device" if torch.cuda.is_available() else "no CUDA device"
    return f"{way}; {device}"


def floors(params: VectorAdd) -> pd.DataFrame:
    """Foretell what an addition takes at least: launching, and moving its bytes.

    Columns: card, dtype, n, bytes, floor_us, launch_us, adding_us (the additions alone).
    """
    rows = []
    for (name, card), dtype in product(CARDS.items(), params.dtypes):
        for exponent in range(10, 31):
            n = 2**exponent
            moved = bytes_moved(n, DTYPES[dtype])
            row = {"card": name, "dtype": dtype, "n": n, "bytes": moved}
            row |= {"floor_us": 1e6 * moved / card.bandwidth, "launch_us": 1e6 * LAUNCH}
            rows.append(row | {"adding_us": 1e6 * n / card.additions})
    return pd.DataFrame(rows)


def roofline(params: VectorAdd) -> pd.DataFrame:
    """Set each operation's additions a byte beside what cards could do with so many.

    Columns: card, operation, intensity (operations a byte), attainable (of the card's peak).
    """
    dtype = DTYPES[params.dtype]
    hidden = params.hidden
    wide = torch.bfloat16
    operations = {
        f"vector add, {params.dtype}": 1 / bytes_moved(1, dtype),
        "add + RMSNorm, bfloat16": 5 * hidden / rms_norm.bytes_moved(1, hidden, wide),
        "matrix, 1 row, bfloat16": 1 / wide.itemsize,
        "matrix, 32 rows, bfloat16": 32 / wide.itemsize,
    }
    rows = [
        {
            "card": name,
            "operation": operation,
            "intensity": intensity,
            "attainable": min(1.0, intensity * card.bandwidth / card.additions),
        }
        for name, card in CARDS.items()
        for operation, intensity in operations.items()
    ]
    return pd.DataFrame(rows)


def worth(params: VectorAdd, counted: pd.DataFrame) -> pd.DataFrame:
    """Set what fusion saves beside what a layer takes, by bytes and by launches, on each card.

    A layer's weights are 12 hidden² (four of attention, eight of the MLP) in bfloat16, read once a
    pass; with many rows its products take longer than its bytes. Columns: card, form, rows,
    bytes_us and launches_us (saved, of two norms a layer), layer_us, share_bytes, share_launches.
    """
    rows = []
    passes = [(form, n) for form in rms_norm.FORMS for n in params.rows]
    for (name, card), (form, n) in product(CARDS.items(), passes):
        apart, fused = (_moved(counted, form, n, way) for way in ("one by one", "fused"))
        n_saved = sum(moved > 0 for moved in apart) - 1
        saved = sum(apart) - sum(fused)
        weights = 12 * params.hidden**2
        layer = max(2 * weights / card.bandwidth, weights * n / (8 * card.additions))
        by_bytes, by_launches = 2 * saved / card.bandwidth, 2 * n_saved * LAUNCH
        rows.append(
            {
                "card": name,
                "form": form,
                "rows": n,
                "bytes_us": 1e6 * by_bytes,
                "launches_us": 1e6 * by_launches,
                "layer_us": 1e6 * layer,
                "share_bytes": by_bytes / (layer + by_bytes),
                "share_launches": by_launches / (layer + by_launches),
            }
        )
    return pd.DataFrame(rows)


def _moved(counted: pd.DataFrame, form: str, rows: int, way: str) -> list[int]:
    """Give the bytes of each operation of one way to add and normalise."""
    chosen = {"form": form, "rows": rows, "way": way}
    records = counted.to_dict("records")
    return [row["bytes"] for row in records if all(row[name] == chosen[name] for name in chosen)]


def sampled_law(params: VectorAdd) -> pd.DataFrame:
    """Draw tokens at evenly spread shares and count them beside the law they must follow.

    At n such shares each token comes up n p times, to within one. Columns: filters, token,
    expected, found (shares of all), n.
    """
    generator = torch.Generator().manual_seed(params.seed)
    logits = torch.randn((1, params.vocab), generator=generator)
    shares = _evenly(params.draws)[None]
    rows = []
    tried = {
        "temperature": sample_tokens.Filters(0.7),
        "top-k": sample_tokens.Filters(1.0, top_k=3),
        "top-p": sample_tokens.Filters(1.0, top_p=0.8),
        "all": sample_tokens.Filters(0.9, top_k=6, top_p=0.95, min_p=0.05),
    }
    for name, filters in steps(tried.items(), "filters"):
        expected = _law(logits[0], filters)
        tokens = sample_tokens.pick_tokens(logits, filters, shares)[0]
        found = tokens.bincount(minlength=params.vocab) / params.draws
        rows.append(_beside(name, expected, found, params.draws))
    return pd.concat(rows, ignore_index=True)


def verified_law(params: VectorAdd) -> pd.DataFrame:
    """Put the law of one drafted and verified token together from what the kernel decides.

    How often it keeps each token is counted over evenly spread coins, what it draws instead over
    evenly spread shares; the rest is arithmetic: q(x) a(x) + Σ q (1 − a) r(x) must be the target's
    p(x), to within the fineness of the two. Columns as `sampled_law`.
    """
    generator = torch.Generator().manual_seed(params.seed)
    q, p = torch.randn((2, params.vocab), generator=generator).softmax(-1)
    coins = _evenly(params.coins)
    drafted = torch.arange(params.vocab).repeat_interleave(len(coins))
    kept = _settled(drafted, q, p, coins.repeat(params.vocab), torch.zeros(len(drafted)))
    accepted = kept.n_accepted.view(params.vocab, -1).double().mean(-1)
    shares = _evenly(params.draws)
    surplus = (q - p).argmax().expand(len(shares))  # a coin of almost 1 turns it down
    recovered = _settled(surplus, q, p, torch.full_like(shares, 1 - 1e-9), shares).token
    instead = recovered.bincount(minlength=params.vocab) / len(shares)
    wide = q.double()
    emitted = wide * accepted + (wide * (1 - accepted)).sum() * instead
    n = len(drafted) + len(shares)
    laws = {"drafted": wide, "drafted, then verified": emitted}
    return pd.concat(
        [_beside(name, p.double(), found, n) for name, found in laws.items()], ignore_index=True
    )


def _settled(
    drafted: Int[Tensor, " n"],
    q: Float[Tensor, " vocab"],
    p: Float[Tensor, " vocab"],
    coins: Float[Tensor, " n"],
    shares: Float[Tensor, " n"],
) -> verify_drafts.Verified:
    n = len(drafted)
    laws = q.expand(n, 1, -1), p.expand(n, 2, -1)
    one = torch.ones(n, dtype=torch.int64)
    return verify_drafts.settle_drafts(
        drafted[:, None], *laws, one, coins[:, None], shares.double()
    )


def _evenly(n: int) -> Float[Tensor, " n"]:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def _law(
    logits: Float[Tensor, " vocab"], filters: sample_tokens.Filters
) -> Float[Tensor, " vocab"]:
    """Give the law of the sampler itself, which the kernel knows nothing of."""
    sampler = Sampler(filters.temperature, filters.top_k, filters.top_p, filters.min_p)
    return sampler.probs(logits).double()


def _beside(
    name: str, expected: Float[Tensor, " vocab"], found: Float[Tensor, " vocab"], n: int
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "filters": name,
            "token": range(len(expected)),
            "expected": expected.tolist(),
            "found": found.tolist(),
            "n": n,
        }
    )


def findings(
    checked: pd.DataFrame,
    made: Compilations,
    counted: pd.DataFrame,
    laws: pd.DataFrame,
    recorded: pd.DataFrame | None,
) -> tuple[dict[str, Any], list[Claim]]:
    """Give the values that can be cited, and the claims."""
    wrong, n = int(checked.wrong.sum()), int(checked.equal.sum() + checked.wrong.sum())
    most = max(counted["rows"].tolist())
    ratios = {
        form: sum(_moved(counted, form, most, "one by one"))
        / sum(_moved(counted, form, most, "fused"))
        for form in rms_norm.FORMS
    }
    drawn = laws[laws.filters != "drafted"]
    worst = float((drawn.expected - drawn.found).abs().max())
    aligned, unaligned = made.aligned, made.unaligned
    values: dict[str, Any] = {
        "correctness": {"compared": n, "wrong": wrong},
        "ptx": {
            "load_bytes_aligned": max(aligned.loads),
            "load_bytes_unaligned": max(unaligned.loads),
            "loads_aligned": sum(aligned.loads.values()),
            "loads_unaligned": sum(unaligned.loads.values()),
        },
        "compiled": {
            "kernels": len(made.kernels),
            "spilled": int(made.kernels.spilled.sum()),
            "most_registers": int(made.kernels.registers.max()),
        },
        "fusion": ratios,
        "law": {"largest_distance": worst, "draws": int(drawn.n.min())},
        "times": {"recorded": recorded is not None},
    }
    claims = [
        Claim("wrong", "sums that differ from torch's, of all compared", "correctness.wrong", n=n),
        Claim(
            "vector",
            "bytes a load of the addition moves for a thread, aligned (sm_90)",
            "ptx.load_bytes_aligned",
        ),
        Claim(
            "scalar",
            "the same without the hint of alignment",
            "ptx.load_bytes_unaligned",
        ),
        Claim(
            "spills",
            "bytes that any kernel spills, on all cards compiled for",
            "compiled.spilled",
            n=len(made.kernels),
        ),
        Claim(
            "fusion",
            f"bytes of add + RMSNorm one by one over fused (Llama, {most} rows)",
            "fusion.llama",
        ),
        Claim(
            "law",
            "largest distance of a drawn or verified token's share from its law",
            "law.largest_distance",
            n=int(drawn.n.min()),
            drift=0.002,  # a score that rounds otherwise moves a draw to the token beside
        ),
    ]
    if recorded is not None:
        claims += _by_the_clock(recorded, values)
    return values, claims


def _by_the_clock(recorded: pd.DataFrame, values: dict[str, Any]) -> list[Claim]:
    """Add what was timed: the largest addition's share of the copy's bandwidth."""
    rows = recorded.to_dict("records")
    own = [row for row in rows if row["kernel"] == "vector_add" and row["way"] == "kernel"]
    largest = max(own, key=lambda row: (row["bytes"], row["launched"] == "graph"))
    values["times"]["share_of_copy"] = float(largest["share_median"])
    return [
        Claim(
            "bandwidth",
            f"the addition's share of the copy's bandwidth ({largest['bytes'] / 1e6:.0f} MB)",
            "times.share_of_copy",
            n=int(largest["n"]),
        )
    ]
