"""Training a BERT: it learns, resumes exactly, survives a kill, and shares its batches."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from foredraft import paths
from foredraft.models.bert.config import BertConfig
from foredraft.training.bert.mlm import Masking, Rows, Vocabulary, passages
from foredraft.training.bert.pretrain import (
    POCKET_BERT,
    Recipe,
    learning_rate,
    pretrain_bert,
    started,
)
from foredraft.training.bert.wordpiece import SPECIAL
from foredraft.training.checkpoint import Checkpoint, Progress

WORDS = [*SPECIAL, *(f"w{i}" for i in range(24))]
RECIPE = Recipe(
    name="tiny",
    config=BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        n_layers=2,
        n_heads=2,
        max_positions=24,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        initializer_range=0.2,
    ),
    tokens=8_000,
    peak_learning_rate=1e-2,
    batch_tokens=192,
    warmup_steps=4,
)


def some_rows():
    """Rows of documents of one word each, so that what is left tells what is masked."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    documents = [[" ".join([f"w{number % 24}"] * 4)] * 5 for number in range(120)]
    told = passages(documents, tokenizer, length=24)
    return Rows(told, Vocabulary.of(tokenizer), Masking(), seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def rows():
    return some_rows()


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """A run that nothing interrupts: the model, its progress and its steps."""
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("whole"))
        recipe = replace(RECIPE, evaluate_every=10)
        model, progress = pretrain_bert(recipe, rows, rows, report=steps.append)
    return model, progress, steps


def test_training_lowers_the_loss_of_what_it_sees_and_of_held_out_rows(whole):
    _, progress, steps = whole
    words = [step.losses.words for step in steps]
    held_out = [step.held_out_loss for step in steps if step.held_out_loss is not None]
    assert sum(words[-5:]) < sum(words[:5]) - 3
    assert held_out[-1] < held_out[0] - 0.5
    assert progress.tokens >= RECIPE.tokens > progress.tokens - RECIPE.batch_tokens
    assert progress.stage >= 2


def test_an_interrupted_run_resumes_bit_for_bit_and_ends_once(whole, rows, monkeypatch):
    monkeypatch.setattr("foredraft.training.bert.pretrain.CHECKPOINT_EVERY", 3)
    expected, finished, steps = whole

    class Interrupted(Exception):
        pass

    for stop_at in (5, 19, 33):  # in each epoch

        def stop(step, stop_at=stop_at):
            if step.tokens == steps[stop_at].tokens:
                raise Interrupted

        with pytest.raises(Interrupted):
            pretrain_bert(RECIPE, rows, rows, report=stop)
    resumed, progress = pretrain_bert(RECIPE, rows, rows)
    assert (progress.stage, progress.tokens) == (finished.stage, finished.tokens)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    more = []
    pretrain_bert(RECIPE, rows, rows, report=more.append)
    assert not more, "a run that is over trains no more"


def test_a_kill_while_saving_leaves_the_checkpoint_before(rows, monkeypatch):
    monkeypatch.setattr("foredraft.training.bert.pretrain.CHECKPOINT_EVERY", 2)
    saved, saves = Checkpoint.save, []

    def killed(*_):
        raise KeyboardInterrupt

    def save(self, *arguments):
        saves.append(None)
        if len(saves) == 2:
            saves.append(self.path.read_bytes())
            monkeypatch.setattr("foredraft.training.checkpoint.os.replace", killed)
        saved(self, *arguments)

    monkeypatch.setattr(Checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        pretrain_bert(RECIPE, rows, rows)
    assert Checkpoint(RECIPE.name).path.read_bytes() == saves[-1]


def test_what_is_not_resumable_trains_alike_and_leaves_no_file(whole, rows, cache):
    model, progress = pretrain_bert(RECIPE, rows, rows, resumable=False)
    expected, finished, _ = whole
    assert progress.tokens == finished.tokens
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not [*cache.rglob("*.safetensors")]


def test_the_model_returned_computes_in_full_precision_and_learns_no_more(whole):
    model, _, _ = whole
    logits = model(torch.tensor([[2, 7, 8, 3]])).prediction_logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_starts_the_same_model_and_another_seed_another():
    one, two, other = (started(replace(RECIPE, seed=seed)).state_dict() for seed in (0, 0, 1))
    name = "bert.embeddings.words.weight"
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one[name], other[name])


def test_the_learning_rate_warms_up_and_falls_in_one_line_to_zero():
    peak, n = RECIPE.peak_learning_rate, RECIPE.tokens
    assert learning_rate(RECIPE, Progress(tokens=0)) == pytest.approx(peak / 4)
    assert learning_rate(RECIPE, Progress(tokens=n // 2)) == pytest.approx(peak / 2)
    assert learning_rate(RECIPE, Progress(tokens=n)) == 0


def test_two_processes_learn_what_one_learns_from_the_same_batches(whole, cache):
    """Each process takes every other row; gradients are averaged in another order."""
    script = cache / "two.py"
    script.write_text(TWO_PROCESSES.format(cache=str(cache), tests=__file__))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    told = json.loads((cache / "told.json").read_text())
    assert told["processes"] == 2
    alone = [(step.tokens, step.losses.words) for step in whole[2]][:12]
    for (n, loss), (n_shared, shared) in zip(alone, told["steps"][:12], strict=True):
        assert n_shared == n
        assert shared == pytest.approx(loss, abs=0.03)


TWO_PROCESSES = """
import json, pathlib, runpy, sys
from accelerate import PartialState
from foredraft import paths
from foredraft.training.bert.pretrain import pretrain_bert
sys.argv = ["x"]
tests = runpy.run_path({tests!r})
cache = pathlib.Path({cache!r})
paths.CACHE = cache
rows, steps = tests["some_rows"](), []
class Enough(Exception): pass
def report(step):
    steps.append((step.tokens, step.losses.words))
    if len(steps) == 12: raise Enough
try:
    pretrain_bert(tests["RECIPE"], rows, rows, report=report)
except Enough:
    pass
state = PartialState()
if state.is_main_process:
    told = {{"processes": state.num_processes, "steps": steps}}
    (cache / "told.json").write_text(json.dumps(told))
state.destroy_process_group()
"""


def test_the_recipe_has_no_dropout_whose_state_a_checkpoint_would_need():
    assert POCKET_BERT.config.hidden_dropout == POCKET_BERT.config.attention_dropout == 0
