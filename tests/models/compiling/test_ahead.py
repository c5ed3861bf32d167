"""Steps compiled ahead of time give the eager tokens, are made once, and kept whole or not at all.

They are compiled in a process of its own, for types are checked as functions of the others run;
without the trials of which kernel is faster, which change no result beyond rounding; and the code
that calls the kernels is compiled as it stands, which takes half as long.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

import foredraft as fd
from foredraft import paths
from foredraft.decoding import verify
from foredraft.models.compiling import ahead
from foredraft.models.compiling.ahead import AheadSteps, Kind
from tests.models.compiling.test_graphs import MODES, PLANS, PROMPTS, VOCAB, made, random_decoder

EXIT = fd.SkipPlan.early_exit(1, 3)


def compiled(family: str) -> fd.Decoder:
    """The same decoder as the eager one, its steps compiled, those of an exit among them."""
    return random_decoder(family).compile_steps([EXIT])


def ways() -> dict[str, tuple[str, list[list[int]], object]]:
    """Family, prompts and drafter: of each kind of step at least one."""
    return {
        "llama, rows of different lengths": ("llama", PROMPTS, None),
        "gemma2, an exit": ("gemma2", PROMPTS[:1], fd.SelfDrafter(EXIT)),
    }


def main() -> None:
    """Say, as JSON, whether tokens are the same, what was compiled, and how far logits differ."""
    paths.CACHE = Path(sys.argv[1])
    ahead.SETTINGS = {"freezing": True}
    found: dict[str, object] = {}
    told = {}
    for name, (family, prompts, drafter) in ways().items():
        eager, steps = (
            made(decoder, prompts, drafter, MODES["greedy"]).tokens
            for decoder in (random_decoder(family), compiled(family))
        )
        found[name] = eager == steps
        told[name] = eager
    found["files"] = len(list(paths.CACHE.glob("steps/*/*.pt2")))
    with nothing_compiled():
        for name, (family, prompts, drafter) in ways().items():
            again = made(compiled(family), prompts, drafter, MODES["greedy"]).tokens
            found[f"{name}, from files"] = again == told[name]
    found["difference"] = difference()
    found["rounding"] = {name: case.rounding() for name, case in CASES.items()}
    with nothing_compiled():  # all these kinds of step are there by now
        found["differences"] = differences()
        found["search"] = searched()
    print(json.dumps(found))  # noqa: T201


def nothing_compiled() -> AbstractContextManager[object]:
    """Fail where a step would be compiled."""
    return patch.object(ahead, "_compile", lambda *_: pytest.fail("compiled again"))


def difference() -> float:
    """The largest difference of a step's logits, behind a text of which the cache holds more."""
    tokens = torch.tensor(PROMPTS[:1] * 3)
    logits = []
    for decoder in (random_decoder("llama"), compiled("llama")):
        cache = decoder.new_cache(3, 300)
        decoder(tokens, cache)
        cache.commit(tokens.shape[1])
        logits.append(decoder(tokens[:, :1], cache))
    return (logits[0] - logits[1]).abs().max().item()


class Enough(Exception):
    """Ends a text."""


def decided(
    decoder: fd.Decoder, prompts: list[list[int]], drafter: object, sampler: fd.Sampler
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Texts of sixty tokens; all logits, of drafts too, and the draws and verdicts between them.

    They end where not even two rows of several may draft, for other kinds of step would follow.
    """
    texts, met = [[] for _ in prompts], []

    def noted(function: Callable[..., torch.Tensor], *, logits: bool = False) -> Callable:
        def call(*given, **options):
            outcome = function(*given, **options)
            met.append(given[1] if logits else outcome)
            return outcome

        return call

    def look(each) -> None:
        for row in each.rows:
            texts[row.row] += row.tokens
        if sum(len(text) < 59 for text in texts) < min(2, len(prompts)):
            raise Enough

    laws = patch.object(fd.Sampler, "probs", noted(fd.Sampler.probs, logits=True))
    draws = patch.object(fd.Sampler, "draw", noted(fd.Sampler.draw))
    verdicts = patch.object(verify, "accepts", noted(verify.accepts))
    with laws, draws, verdicts, suppress(Enough):
        fd.generate(
            decoder,
            prompts,
            sampler=sampler,
            max_new_tokens=60,
            drafter=drafter,
            generator=torch.Generator().manual_seed(1),
            eos_token_id=[],
            on_round=look,
        )
    return texts, met


def apart(eager: list[torch.Tensor], steps: list[torch.Tensor]) -> float:
    """How far logits differ, in the largest of them, up to the first draw that fell otherwise.

    There the texts part, and with good reason if logits did not: the random number, or a tie, lay
    where rounding decides.
    """
    found = []
    for mine, its in zip(eager, steps, strict=False):
        if mine.is_floating_point():
            found.append((mine - its).abs().max() / mine.abs().max())
        elif not torch.equal(mine, its):
            break
    return torch.stack(found).max().item()


def differences() -> dict[str, float]:
    """How far logits are apart in each of the ways, and where several rows are drafted for."""
    drafters = {
        "a plan": fd.SelfDrafter(PLANS[0]),
        "a model": fd.ModelDrafter(random_decoder("llama")),
    }
    rows = {f"gemma2, rows and {name}": ("gemma2", PROMPTS, d) for name, d in drafters.items()}
    samplers = {"greedy": MODES["greedy"], "sampled": fd.Sampler(temperature=1.0)}
    return {
        f"{name}, {mode}": apart(
            decided(random_decoder(family), prompts, drafter, sampler)[1],
            decided(compiled(family), prompts, drafter, sampler)[1],
        )
        for name, (family, prompts, drafter) in (ways() | rows).items()
        for mode, sampler in samplers.items()
    }


def searched() -> dict[str, object]:
    """What becomes of texts, and what is made, while twenty plans are tried, one after another."""
    eager, steps = random_decoder("gemma2"), compiled("gemma2")
    before = set(paths.CACHE.rglob("*"))
    counters.clear()
    wanted, told = (
        [decided(decoder, PROMPTS, fd.SelfDrafter(plan), MODES["greedy"]) for plan in PLANS]
        for decoder in (eager, steps)
    )
    return {
        "same": all(
            token == its
            for (texts, _), (others, _) in zip(wanted, told, strict=True)
            for text, other in zip(texts, others, strict=True)
            for token, its in zip(text, other, strict=False)
        ),
        "apart": max(apart(mine, its) for (_, mine), (_, its) in zip(wanted, told, strict=True)),
        "rounds": sum(each.dtype is torch.bool for _, met in told for each in met),
        "graphs": len(steps.steps._graphs),
        "files": len(set(paths.CACHE.rglob("*")) - before),
        "counted": sum(map(len, counters.values())),
    }


@dataclass(frozen=True)
class Case:
    """A step behind texts of these lengths; `spare` slots of the cache lie behind it."""

    family: str
    lengths: tuple[int, ...]
    n_new: int
    spare: int
    dtype: torch.dtype = torch.float32

    def rounding(self) -> float:
        """How far the compiled step is from one in float64, in distances of the eager one."""
        exact = self.stream(random_decoder(self.family).double())
        eager = random_decoder(self.family).to(self.dtype)
        steps = random_decoder(self.family).to(self.dtype).compile_steps()
        far, near = ((self.stream(decoder) - exact).norm() for decoder in (steps, eager))
        return (far / near).item()

    def stream(self, decoder: fd.Decoder) -> torch.Tensor:
        """The residual stream after the step."""
        tokens = torch.tensor(PROMPTS[0][: max(self.lengths)]).expand(len(self.lengths), -1)
        cache = decoder.new_cache(len(self.lengths), tokens.shape[1] + self.n_new + self.spare)
        decoder.hidden(tokens, cache)
        cache.commit(self.lengths)
        return decoder.hidden(tokens[:, : self.n_new], cache).double()


CASES = {
    "a cache with much behind the text": Case("llama", (105,) * 3, 1, spare=190),
    "ragged drafts to the last slot": Case("gemma2", (105, 80, 97), 3, spare=0),
    "bfloat16, short of the window's reach": Case("gemma2", (9,), 1, 40, torch.bfloat16),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What `main` says."""
    command = [sys.executable, "-m", "tests.models.compiling.test_ahead"]
    command.append(str(tmp_path_factory.mktemp("cache")))
    environment = os.environ | {"AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=paths.ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_steps_give_the_eager_tokens(found):
    assert [name for name in ways() if not found[name]] == []
    assert found["difference"] < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_no_step_is_much_further_from_float64_than_the_eager_one(found, name):
    assert found["rounding"][name] < 2


def test_rows_that_are_drafted_for_and_drawn_texts_have_the_eager_logits(found):
    assert len(found["differences"]) == 2 * (len(ways()) + 2)
    assert {name: far for name, far in found["differences"].items() if not far < 1e-5} == {}


def test_twenty_plans_and_two_hundred_rounds_compile_nothing_anew(found):
    search = found["search"]
    assert len(set(PLANS)) == 20
    assert search["rounds"] >= 200
    assert search["graphs"] == 2  # a step and a head
    assert (search["files"], search["counted"]) == (0, 0)
    assert search["same"]
    assert search["apart"] < 1e-5


def test_a_later_process_compiles_nothing(found):
    rows, exit_ = 2, 4  # each with a head; the exit: draft, verify, heads of both
    assert found["files"] == rows + exit_
    assert [name for name in ways() if not found[f"{name}, from files"]] == []


@pytest.fixture
def decoder() -> fd.Decoder:
    return compiled("llama")


def test_only_named_plans_are_compiled(decoder):
    cache = decoder.new_cache(1, 50)
    cache.commit(5)
    tokens, hidden = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 32)
    takes = decoder.steps.takes
    assert takes(tokens, cache, fd.SkipPlan(), None)
    assert takes(tokens, cache, EXIT, None)
    assert takes(tokens, cache, fd.SkipPlan.early_exit(0, 3) - EXIT, hidden)
    assert not takes(tokens, cache, fd.SkipPlan(attn=[0]), None)
    assert not takes(tokens, cache, fd.SkipPlan(attn=[0]), hidden)


def test_prefill_and_caches_made_elsewhere_are_left_to_the_eager_path(decoder):
    takes, tokens = decoder.steps.takes, torch.zeros(1, 17, dtype=torch.int64)
    cache = decoder.new_cache(1, 50)
    assert not takes(tokens[:, :1], cache, fd.SkipPlan(), None)
    cache.commit(5)
    assert not takes(tokens, cache, fd.SkipPlan(), None)
    other = random_decoder("llama").new_cache(1, 50)
    other.commit(5)
    assert not takes(tokens[:, :1], other, fd.SkipPlan(), None)


def test_a_step_looks_as_far_as_its_text_goes_and_no_further(decoder, monkeypatch):
    given = []

    def told(*tensors):
        given.append(tensors)
        return torch.zeros(2, 3, 32)

    monkeypatch.setattr(AheadSteps, "_graph", lambda *_: told)
    cache = decoder.new_cache(2, 300)
    cache.commit([200, 150])
    decoder.hidden(torch.zeros(2, 3, dtype=torch.int64), cache)
    _, positions, _, _, seen, *stored = given[0]
    assert positions.tolist() == [[200, 201, 202], [150, 151, 152]]
    assert seen.tolist() == list(range(203))
    assert all(mine is its for mine, its in zip(stored, cache.keys + cache.values, strict=True))


def test_a_cache_holds_what_was_asked_for_and_no_more(decoder):
    cache = decoder.new_cache(1, 50, spare=3)
    cache.commit(50)
    assert cache.positions(3).shape == (1, 3)
    with pytest.raises(ValueError, match="exceed the cache's 53"):
        cache.positions(4)


def test_no_new_tokens_are_no_step(decoder):
    cache = decoder.new_cache(1, 50)
    cache.commit(5)
    assert not decoder.steps.takes(torch.zeros(1, 0, dtype=torch.int64), cache, EXIT, None)
    assert decoder.logits(torch.zeros(1, 0, 32)).shape == (1, 0, VOCAB)


def test_a_compiled_model_stays_as_it_was(decoder):
    with pytest.raises(ValueError, match="a compiled model cannot be moved or converted"):
        decoder.double()


def test_a_missing_compiler_is_told_before_anything_is_written(tmp_path):
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(ValueError, match="install g\\+\\+, or name one in CXX"):
        ahead._compile(pytest.fail, tmp_path / "steps" / "a.pt2")
    assert not (tmp_path / "steps").exists()


def test_a_batch_that_is_not_the_caches_is_refused(decoder):
    cache = decoder.new_cache(2, 100)
    cache.commit(3)
    with pytest.raises(ValueError, match="3 rows of tokens for a cache of 2 rows"):
        decoder(torch.zeros(3, 1, dtype=torch.int64), cache)


def test_a_file_is_whole_or_not_there(decoder, tmp_path, monkeypatch):
    def killed(*_, package_path, **__):
        Path(package_path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", killed)
    with pytest.raises(KeyboardInterrupt):
        ahead._compile(lambda: None, tmp_path / "steps" / "a.pt2")
    assert list((tmp_path / "steps").iterdir()) == []


@pytest.mark.parametrize("change", ["weights", "threads", "settings", "nothing"])
def test_files_are_named_by_what_they_depend_on(decoder, monkeypatch, change):
    before = ahead._fingerprint(decoder)
    if change == "weights":
        decoder.norm.weight.data[0] += 1
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    if change == "settings":
        monkeypatch.setattr(ahead, "SETTINGS", {})
    assert (ahead._fingerprint(decoder) == before) == (change == "nothing")


def test_kinds_are_told_apart_by_all_that_a_graph_is_made_for():
    kinds = [
        Kind(row, token, reached, plan, begun)
        for row in (False, True)
        for token in (False, True)
        for reached in ((), (20,))
        for plan in (fd.SkipPlan(), EXIT)
        for begun in (False, True)
    ]
    assert len({repr(kind) for kind in kinds}) == len(kinds)


def test_steps_are_chosen_by_device(decoder):
    assert isinstance(decoder.steps, AheadSteps)
    assert decoder.steps.plans == {fd.SkipPlan(), EXIT}


if __name__ == "__main__":
    main()
