"""Memory stays as it is while a text grows by ten thousand tokens, whoever drafts.

They are made in a process of its own: types, checked as functions of the others run, would take
four times as long. What is asked is how much torch and Python have in use, not how many pages are
resident: those the kernel joins and keeps as it likes, and a leak hides in what was left free.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import foredraft as fd
from foredraft import paths
from tests.decoding.conftest import WINDOW, tiny

PROMPT = [1, 2, 3]
N_TOKENS = 10_000
BEHIND = 20
"""More tokens are asked for than looked at, so that the last look too is behind a draft."""

GREEDY = fd.Sampler(temperature=0.0)
UNEVEN = fd.Sampler(temperature=0.1)
"""Draws another token than the greedy one now and then: most drafts stand, some fall."""

WAYS: dict[str, tuple[int, Callable[[], object]]] = {
    "plain": (1, lambda: None),
    "lookup": (1, fd.PromptLookupDrafter),
    "a model": (2, lambda: fd.ModelDrafter(decoder(1), UNEVEN)),
    "an exit": (2, lambda: fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2), UNEVEN)),
}
"""How many layers the model has, and who drafts for it."""


def decoder(n_layers: int) -> fd.Decoder:
    """One layer or two, of which the second adds nothing.

    Either looks back a few tokens: of a product whose size is new, MKL keeps the code it has
    written for it, up to a thousand of them.
    """
    whole = tiny("llama", 24, 0, torch.float32)
    windows, positions = (WINDOW,) * n_layers, len(PROMPT) + N_TOKENS + BEHIND
    config = replace(whole.config, n_layers=n_layers, windows=windows, max_positions=positions)
    first, second = {}, {}
    for name, tensor in whole.state_dict().items():
        if name.startswith("layers.1."):
            second[name] = torch.zeros_like(tensor)
        else:
            first[name] = tensor
    return fd.Decoder.from_tensors(config, first if n_layers == 1 else first | second)


class Heap(ctypes.Structure):
    """What glibc tells of the memory that it has given out."""

    NAMES = (
        *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
        *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
    )
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def held() -> dict[str, object]:
    """What there is: tensors and the bytes of their storages, bytes in use, Python's objects."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    told = len(tensors), sum(storage.nbytes() for storage in storages.values())
    del tensors, storages
    asked = ctypes.CDLL(None).mallinfo2
    asked.restype = Heap
    heap = asked()
    return {
        "tensors": told,
        "bytes": heap.uordblks + heap.hblkhd,
        "objects": sys.getallocatedblocks(),
    }


def soaked(n_layers: int, drafter: object) -> dict[str, object]:
    """Decode; look at what is held each time that a tenth of the tokens has come."""
    emitted, looks = 0, []

    def look(each):
        nonlocal emitted
        emitted += sum(len(row.tokens) for row in each.rows)
        if len(looks) < 10 and emitted * 10 // N_TOKENS > len(looks):
            looks.append({"rounds": each.index, **held()})

    made = fd.generate(
        decoder(n_layers),
        [PROMPT],
        sampler=GREEDY,
        max_new_tokens=N_TOKENS + BEHIND,
        drafter=drafter,
        exit_policy=fd.FixedLength(8),
        generator=torch.Generator().manual_seed(0),
        on_round=look,
    )
    return {"emitted": emitted, "fell": made.trace.drafted - made.trace.accepted, "looks": looks}


def main() -> None:
    """Say what was held, as JSON."""
    print(json.dumps({name: soaked(n, make()) for name, (n, make) in WAYS.items()}))  # noqa: T201


@pytest.fixture(scope="module")
def found() -> dict:
    """What `main` says."""
    command = [sys.executable, "-m", "tests.decoding.test_soak"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", WAYS)
def test_ten_thousand_tokens_hold_no_more_than_one_thousand(found, name):
    """Of tensors; whose drafts they were, some of them fell."""
    looks = found[name]["looks"]
    assert found[name]["emitted"] == N_TOKENS + BEHIND
    assert (found[name]["fell"] > 0) == (name != "plain")
    assert len(looks) == 10
    assert [look["tensors"] for look in looks] == [looks[0]["tensors"]] * 10


def growth(looks: list[dict], what: str) -> int:
    """From the second tenth of the tokens to the last."""
    return looks[-1][what] - looks[1][what]


@pytest.mark.parametrize("name", WAYS)
def test_a_token_keeps_less_memory_than_the_smallest_tensor(found, name):
    """Two lists grow by a pointer a round or token; the trace, by six objects of Python's own."""
    looks = found[name]["looks"]
    assert growth(looks, "bytes") < 64 * (N_TOKENS - N_TOKENS // 5)
    assert growth(looks, "objects") < 7 * growth(looks, "rounds")


def unseen(n: int) -> torch.Tensor:
    """The last of n tensors, each of which keeps the one before without Python's knowing."""
    last = torch.ones(1, requires_grad=True)
    for _ in range(n):
        last = last.exp()
    return last


def test_tensors_that_python_does_not_see_are_seen():
    unseen(1)
    before, kept, after = held(), unseen(1000), held()
    assert after["tensors"][0] - before["tensors"][0] == 2  # the first and the last
    assert after["bytes"] - before["bytes"] > 1000 * 256
    del kept
    assert held()["bytes"] - before["bytes"] < 1000 * 16


if __name__ == "__main__":
    main()
