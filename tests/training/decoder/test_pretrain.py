"""Training: stacked depth, one line to zero, exact resume, teaching, several processes."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig

from foredraft import paths
from foredraft.training.checkpoint import Checkpoint, Progress
from foredraft.training.corpus import Corpus, Split
from foredraft.training.decoder.pretrain import (
    distillation_loss,
    initialised,
    learning_rate,
    pretrain,
    reshaped,
    windows,
)
from foredraft.training.decoder.recipes import RECIPES, Recipe, Stage

RECIPE = Recipe(
    name="tiny",
    architecture=LlamaConfig,
    sizes={
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    stages=(Stage(1, 16, 640), Stage(2, 16, 640), Stage(2, 32, 640)),
    peak_learning_rate=3e-3,
    batch_tokens=64,
    warmup_steps=4,
)


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    pattern = np.tile(np.arange(40, dtype=np.uint16), 60)
    noisy = np.where(rng.random(len(pattern)) < 0.1, rng.integers(0, 40, len(pattern)), pattern)
    split = Split(noisy.astype(np.uint16), 5000)
    return Corpus(train=split, held_out_files=split, held_out_package=split)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    return tmp_path


def test_training_lowers_the_loss_and_reaches_the_full_depth(corpus):
    steps = []
    decoder, progress = pretrain(RECIPE, corpus, compile=False, report=steps.append)
    assert decoder.config.n_layers == 2
    assert progress.tokens == RECIPE.tokens == steps[-1].tokens
    assert steps[-1].loss < steps[0].loss - 0.5


def test_an_interrupted_run_resumes_bit_for_bit(corpus, monkeypatch):
    monkeypatch.setattr("foredraft.training.decoder.pretrain.CHECKPOINT_EVERY", 3)
    whole, _ = pretrain(RECIPE, corpus, compile=False)
    Checkpoint(RECIPE.name).path.unlink()

    class Interrupted(Exception):
        pass

    for stop_at in (7, 16, 21):  # within each stage

        def stop(step, stop_at=stop_at):
            if step.tokens == stop_at * RECIPE.batch_tokens:
                raise Interrupted

        with pytest.raises(Interrupted):
            pretrain(RECIPE, corpus, compile=False, report=stop)
    resumed, progress = pretrain(RECIPE, corpus, compile=False)
    assert progress.tokens == RECIPE.tokens
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_kill_while_saving_leaves_the_checkpoint_before(corpus, monkeypatch):
    pretrain(replace(RECIPE, stages=RECIPE.stages[:1]), corpus, compile=False)
    before = Checkpoint(RECIPE.name).path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("foredraft.training.checkpoint.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(RECIPE, corpus, compile=False)
    assert Checkpoint(RECIPE.name).path.read_bytes() == before


def test_stacking_repeats_the_layers_in_order_and_keeps_the_rest():
    shallow = initialised(RECIPE, Stage(2, 16, 640))
    deep = reshaped(shallow, RECIPE, Stage(6, 16, 640))
    assert deep.config.n_layers == 6
    for layer in range(6):
        ours, theirs = deep.layers[layer].state_dict(), shallow.layers[layer % 2].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(deep.embedding.weight, shallow.embedding.weight)
    assert torch.equal(deep.norm.weight, shallow.norm.weight)


def test_wider_mlps_leave_the_function_as_it_was_and_learn_in_every_feature():
    narrow = initialised(RECIPE, Stage(2, 16, 640, intermediate_size=8))
    wide = reshaped(narrow, RECIPE, Stage(2, 16, 640))
    assert (narrow.config.intermediate_size, wide.config.intermediate_size) == (8, 24)
    tokens = torch.randint(512, (3, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide(tokens), narrow(tokens), atol=1e-6, rtol=0)
    wide(tokens).logsumexp(-1).sum().backward()
    for layer in wide.layers:
        down = layer.mlp.operation.down.weight.grad
        assert (down.abs().sum(0) > 0).all()


def test_narrower_mlps_lose_the_features_that_weigh_least_and_no_others():
    narrow = initialised(RECIPE, Stage(2, 16, 640))
    wide = reshaped(narrow, RECIPE, Stage(2, 16, 640, intermediate_size=40))
    added = slice(24, 40)
    for layer in wide.layers:
        layer.mlp.operation.down.weight.data[:, added] = 1e-9
    # hidden where no feature's place tells what it weighs
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for layer in wide.layers:
        mlp = layer.mlp.operation
        mlp.gate_up.weight.data = torch.cat([half[order] for half in mlp.gate_up.weight.chunk(2)])
        mlp.down.weight.data = mlp.down.weight[:, order]
    again = reshaped(wide, RECIPE, Stage(2, 16, 640))
    assert again.config == narrow.config
    tokens = torch.randint(512, (3, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(tokens), narrow(tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("widths", [(8, 24), (40, 24)], ids=["wider", "narrower"])
def test_a_run_interrupted_where_its_width_changes_resumes_bit_for_bit(corpus, widths):
    narrow, wide = Stage(1, 16, 320, intermediate_size=widths[0]), Stage(2, 16, 320)
    recipe = replace(RECIPE, stages=(narrow, wide))
    whole, _ = pretrain(recipe, corpus, compile=False)
    Checkpoint(RECIPE.name).path.unlink()

    def stop(step):
        if step.tokens == narrow.tokens + recipe.batch_tokens:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pretrain(recipe, corpus, compile=False, report=stop)
    resumed, _ = pretrain(recipe, corpus, compile=False)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_depth_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="no multiple"):
        reshaped(initialised(RECIPE, Stage(2, 16, 640)), RECIPE, Stage(3, 16, 640))


def test_the_learning_rate_falls_in_one_line_to_zero_and_warms_up_in_each_stage():
    peak, whole = RECIPE.peak_learning_rate, RECIPE.tokens
    assert learning_rate(RECIPE, Progress(step=0)) == pytest.approx(peak / 4)
    halfway = Progress(stage=1, step=10, tokens=whole // 2)
    assert learning_rate(RECIPE, halfway) == pytest.approx(peak / 2)
    entered = Progress(stage=2, step=1, tokens=whole // 2)
    assert learning_rate(RECIPE, entered) == pytest.approx(peak / 4)
    assert learning_rate(RECIPE, Progress(stage=2, step=10, tokens=whole)) == 0


def test_a_batch_s_targets_are_its_inputs_shifted_by_one(corpus):
    batch = windows(corpus.train, [3, 100], 8)
    assert batch.shape == (2, 9)
    assert batch[1].tolist() == corpus.train.tokens[100:109].tolist()


def test_distillation_loss_vanishes_at_the_teacher_s_law_only():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(logits, logits.softmax(-1)).item() == pytest.approx(0, abs=1e-6)
    other = torch.randn(5, 11, generator=torch.Generator().manual_seed(1)).softmax(-1)
    divergence = F.kl_div(logits.log_softmax(-1), other, reduction="batchmean")
    overlap = torch.minimum(logits.softmax(-1), other).sum(-1).mean()
    wanted = divergence + 1 - overlap
    torch.testing.assert_close(distillation_loss(logits, other), wanted)


def test_a_stage_with_a_teacher_needs_one(corpus):
    taught = replace(RECIPE, stages=(Stage(1, 16, 64, teacher="pocket-llama"),))
    with pytest.raises(ValueError, match="teacher"):
        pretrain(taught, corpus, compile=False)


def test_a_student_comes_closer_to_its_teacher(corpus):
    teacher = initialised(RECIPE, RECIPE.stages[-1]).eval().requires_grad_(False)
    taught = replace(RECIPE, stages=(Stage(1, 16, 1280, teacher="tiny"),), seed=1)
    losses = []
    pretrain(taught, corpus, teacher=teacher, compile=False, report=lambda s: losses.append(s.loss))
    assert losses[-1] < losses[0]


def test_two_processes_learn_what_one_learns_from_the_same_batches(corpus, cache):
    """Each process takes every other row; gradients are averaged in bf16 arithmetic order."""
    alone, _ = pretrain(RECIPE, corpus, compile=False)
    Checkpoint(RECIPE.name).path.unlink()
    script = cache / "two.py"
    np.save(cache / "tokens.npy", corpus.train.tokens)
    script.write_text(TWO_PROCESSES.format(cache=str(cache), tests=__file__))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    shared = torch.load(cache / "shared.pt", weights_only=True)
    facts = json.loads((cache / "facts.json").read_text())
    assert facts == {"processes": 2}
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(shared[name], tensor, atol=2e-2, rtol=0)


TWO_PROCESSES = """
import json, pathlib, runpy, sys
import numpy as np, torch
from accelerate import PartialState
from foredraft import paths
from foredraft.training.corpus import Corpus, Split
from foredraft.training.decoder.pretrain import pretrain
sys.argv = ["x"]
recipe = runpy.run_path({tests!r})["RECIPE"]
cache = pathlib.Path({cache!r})
paths.CACHE = cache
split = Split(np.load(cache / "tokens.npy"), 5000)
decoder, _ = pretrain(recipe, Corpus(split, split, split), compile=False)
state = PartialState()
if state.is_main_process:
    torch.save(decoder.state_dict(), cache / "shared.pt")
    (cache / "facts.json").write_text(json.dumps({{"processes": state.num_processes}}))
state.destroy_process_group()
"""


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_recipe_s_depths_can_be_stacked_and_batches_divide(recipe):
    depths = [stage.n_layers for stage in recipe.stages]
    assert all(deep % shallow == 0 for shallow, deep in pairwise(depths))
    assert all(recipe.batch_tokens % stage.sequence == 0 for stage in recipe.stages)
