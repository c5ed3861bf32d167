"""Fine-tuning a LLaVA: what carries loss, exact resume, the best model, two processes, answers."""

import json
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from foredraft.training.llava import answer_labels, checkpoint_folder, llava15, lora, sft
from foredraft.training.llava.answer_labels import LLAVA15_TEMPLATE, collator, training_template
from foredraft.training.llava.answering import answer
from foredraft.training.llava.batch_order import batch_order, padding_share
from foredraft.training.llava.folder import image_tokens, load_llava, load_processor
from foredraft.training.llava.sft import fine_tune
from foredraft.training.llava.tuning import FineTuning
from tests.articles.conftest import cached, only

SIDE, PATCH = 28, 14
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
PUBLISHED_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}"
    "{% endgeneration %}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As LLaVA-1.5's: no beginning, no end, and a space after an answer."""
TUNING = FineTuning(steps=6, batch_size=4, learning_rate=3e-3, evaluate_every=2)


def publish(folder: Path, template: str = LLAVA15_TEMPLATE) -> None:
    """Save a tiny random LLaVA."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        **dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=False)),
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
    )
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=tower,
                text_config=text,
                image_token_index=4,
                image_seq_length=(SIDE // PATCH) ** 2,
            )
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def conversations(n: int, seed: int, *, ask: str = "Colour?") -> Dataset:
    """Squares of a colour, and the name of it, once or several times."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in rng.choice([*COLOURS], n):
        text = " ".join([str(name)] * int(rng.integers(1, 5)))
        asked = [
            {"index": None, "text": ask, "type": "text"},
            {"index": 0, "text": None, "type": "image"},
        ]
        told = [{"index": None, "text": text, "type": "text"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        rows.append({"messages": turns, "images": [Image.new("RGB", (SIDE, SIDE), COLOURS[name])]})
    part = {"index": Value("int64"), "text": Value("string"), "type": Value("string")}
    turn = {"content": List(part), "role": Value("string")}
    return Dataset.from_list(
        rows, features=Features({"messages": List(turn), "images": List(ImageFeature())})
    )


TRAIN, HELD_OUT = conversations(13, 0), conversations(5, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "base"
    publish(folder)
    return folder


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """A run of each method, never interrupted: settings, folder, what came of it."""
    done = {}
    for method in ("full", "lora"):
        tuning, run = replace(TUNING, method=method), tmp_path_factory.mktemp(method)
        done[method] = (tuning, run, fine_tune(base, TRAIN, HELD_OUT, tuning, run))
    return done


@pytest.fixture(params=["full", "lora"])
def whole(request, runs):
    return runs[request.param]


def interrupted(base: Path, tuning: FineTuning, run: Path, *, after: int) -> None:
    """Train until a step is done, then fail."""

    def stop(step):
        if step.step == after and step.eval_loss is None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fine_tune(base, TRAIN, HELD_OUT, tuning, run, report=stop)


def labelled(processor: LlavaProcessor, rows: Dataset) -> list[str]:
    labels = collator(processor)(list(rows))["labels"]
    return [processor.tokenizer.decode(row[row != -100]) for row in labels]


def answers(rows: Dataset) -> list[str]:
    return [row["messages"][1]["content"][0]["text"] for row in rows]


@pytest.mark.parametrize("template", [LLAVA15_TEMPLATE, PUBLISHED_TEMPLATE], ids=["ours", "theirs"])
def test_exactly_the_answers_and_their_ends_carry_loss(base, template):
    processor = load_processor(base)
    processor.chat_template = template
    assert labelled(processor, HELD_OUT) == [f" {text}</s>" for text in answers(HELD_OUT)]
    batch = collator(processor)(list(HELD_OUT))
    assert (batch["input_ids"] == 4).sum(-1).tolist() == [4] * len(HELD_OUT)
    assert (batch["input_ids"] == 1).sum(-1).tolist() == [1] * len(HELD_OUT)


def test_a_template_that_asks_in_other_words_and_teaches_no_end_is_refused(base):
    processor = load_processor(base)
    processor.chat_template = PUBLISHED_TEMPLATE.replace("ASSISTANT:", "BOT:")
    with pytest.raises(ValueError, match=r"asks 'USER: <image>\\nWhat\? BOT:'.*eos_token"):
        training_template(processor)


def test_lengths_counted_without_images_are_those_of_the_batches(base):
    processor = load_processor(base)
    lengths = answer_labels.token_lengths(processor, HELD_OUT["messages"], image_tokens(base))
    assert lengths == collator(processor)(list(HELD_OUT))["attention_mask"].sum(-1).tolist()


def test_training_lowers_the_loss_and_tells_of_it(whole):
    _, _, tuned = whole
    log = tuned.log
    assert log["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert log["eval_loss"].notna().tolist() == [False, True] * 3
    assert log["eval_loss"].iloc[-1] < log["eval_loss"].iloc[1] < log["loss"].iloc[0] + 0.1
    assert log["tokens"].is_monotonic_increasing
    assert log["padding"].between(0, 0.5).all()
    assert (tuned.best_step, tuned.resumed_at) == (6, 0)


def test_the_folder_is_a_plain_llava_of_the_last_evaluation_s_loss(whole):
    _, _, tuned = whole
    model, processor = load_llava(tuned.folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert held_out_loss(model, processor) == pytest.approx(
        tuned.log["eval_loss"].iloc[-1], abs=1e-5
    )


@torch.no_grad()
def held_out_loss(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> float:
    """The Trainer's: a mean over rows of the mean over a batch's tokens."""
    lengths = answer_labels.token_lengths(processor, HELD_OUT["messages"], 4)
    rows = HELD_OUT.select(np.argsort(lengths, kind="stable"))
    total = 0.0
    for first in range(0, len(rows), TUNING.batch_size):
        part = list(rows.select(range(first, min(first + TUNING.batch_size, len(rows)))))
        total += len(part) * model(**collator(processor)(part)).loss.item()
    return total / len(rows)


def test_frozen_and_only_frozen_parts_stay_as_they_were(base, whole):
    _, _, tuned = whole
    before, after = (load_llava(folder)[0].state_dict() for folder in (base, tuned.folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision_tower" in name for name in moved)
    linear = {n for n in before if n.endswith("weight") and ("_proj" in n or "linear_" in n)}
    assert {name for name in linear if "vision_tower" not in name} <= moved
    if "lora" in tuned.folder.parent.name:
        assert moved <= linear


def test_a_resumed_run_loses_exactly_what_an_uninterrupted_one_does(base, whole, tmp_path):
    tuning, _, tuned = whole
    interrupted(base, tuning, tmp_path, after=5)
    resumed = fine_tune(base, TRAIN, HELD_OUT, tuning, tmp_path)
    assert resumed.resumed_at == 4
    assert resumed.log.equals(tuned.log)
    again = fine_tune(base, TRAIN, HELD_OUT, tuning, tmp_path)
    assert again.resumed_at == 6
    assert again.log.equals(tuned.log)


def test_the_trainer_alone_resumes_a_llava_from_its_first_weights(base, tmp_path, monkeypatch):
    """The negative control: were this to fail, ours would no longer need its own way."""
    tuning = TUNING
    whole = fine_tune(base, TRAIN, HELD_OUT, tuning, tmp_path / "whole")
    interrupted(base, tuning, tmp_path / "cut", after=5)
    ours = sft.start
    monkeypatch.setattr(sft, "start", lambda folder, tuning: ours(base, tuning))
    naive = fine_tune(base, TRAIN, HELD_OUT, tuning, tmp_path / "cut").log
    assert naive["loss"][:4].equals(whole.log["loss"][:4])
    assert naive["loss"][4] > whole.log["loss"][4] + 0.05


@pytest.mark.parametrize("harm", ["unsealed", "truncated", "missing"])
def test_a_half_written_checkpoint_is_passed_over(base, tmp_path, harm):
    interrupted(base, TUNING, tmp_path, after=5)
    broken = tmp_path / "checkpoint-4"
    if harm == "unsealed":
        (broken / checkpoint_folder.SEAL).unlink()
    elif harm == "truncated":
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (broken / "optimizer.pt").unlink()
    assert checkpoint_folder.newest(tmp_path) == tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=r"checkpoint-4 cannot be used: .*Delete it"):
        checkpoint_folder.require_whole(broken)


def test_what_is_handed_on_is_the_best_and_not_the_last(base, tmp_path):
    """Answers contradict those held out, so that every step makes it worse."""
    rows = [{**row, "messages": contradicted(row["messages"])} for row in HELD_OUT]
    against = Dataset.from_list(rows, features=HELD_OUT.features)
    tuning = replace(TUNING, learning_rate=0.03)
    tuned = fine_tune(base, against, HELD_OUT, tuning, tmp_path)
    evaluated = tuned.log["eval_loss"]
    assert tuned.best_step == int(evaluated.idxmin()) + 1 < 6
    assert held_out_loss(*load_llava(tuned.folder)) == pytest.approx(evaluated.min(), abs=1e-5)


def contradicted(turns: list[dict]) -> list[dict]:
    other = {"role": "assistant", "content": [{"index": None, "text": "~" * 40, "type": "text"}]}
    return [turns[0], other]


def test_a_run_of_other_settings_is_not_gone_on_with(base, whole):
    tuning, run, _ = whole
    with pytest.raises(ValueError, match=r"learning_rate=0\.003, not 0\.1: choose another folder"):
        fine_tune(base, TRAIN, HELD_OUT, replace(tuning, learning_rate=0.1), run)
    with pytest.raises(ValueError, match="rows"):
        fine_tune(base, conversations(13, 7), HELD_OUT, tuning, run)


def test_chance_elsewhere_is_not_seeded(base, tmp_path):
    """Whoever draws afterwards draws what it would have drawn, not what the run's seed gives."""
    tuning, drawn = replace(TUNING, steps=1, seed=5, method="lora"), []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        fine_tune(base, TRAIN, HELD_OUT, tuning, tmp_path)
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    for first, second in zip(*drawn, strict=True):
        assert first != second


def test_two_processes_learn_what_one_learns_with_the_whole_batch(base, runs, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    TRAIN.save_to_disk(tmp_path / "train")
    HELD_OUT.save_to_disk(tmp_path / "held_out")
    settings = {method: asdict(tuning) for method, (tuning, _, _) in runs.items()}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, str(base), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for method, (_, _, tuned) in runs.items():
        facts = json.loads((tmp_path / f"{method}.json").read_text())
        assert facts["processes"] == 2
        assert facts["losses"] == pytest.approx(tuned.log["loss"].tolist(), abs=1e-4)
        one, two = (
            load_llava(folder)[0].state_dict() for folder in (tuned.folder, facts["folder"])
        )
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-3, rtol=0)


TWO_PROCESSES = """
import json, pathlib, sys
from accelerate import PartialState
from datasets import load_from_disk
from foredraft.training.llava.sft import fine_tune
from foredraft.training.llava.tuning import FineTuning
base, here = map(pathlib.Path, sys.argv[1:])
train, held_out = (load_from_disk(here / name) for name in ("train", "held_out"))
for method, fields in json.loads((here / "settings.json").read_text()).items():
    tuning = FineTuning(**fields | {"freeze": tuple(fields["freeze"])})
    tuned = fine_tune(base, train, held_out, tuning, here / method)
    state = PartialState()
    if state.is_main_process:
        facts = {"processes": state.num_processes, "losses": tuned.log["loss"].tolist()}
        (here / f"{method}.json").write_text(json.dumps(facts | {"folder": str(tuned.folder)}))
    state.wait_for_everyone()
state.destroy_process_group()
"""


def test_every_row_is_used_once_before_any_is_used_again_and_like_lengths_meet():
    lengths = np.random.default_rng(0).integers(10, 200, 128).tolist()

    def order(*, by_length: bool) -> list[list[int]]:
        chance = torch.Generator().manual_seed(0)
        return batch_order(lengths, steps=32, batch_size=8, by_length=by_length, generator=chance)

    def waste(batches: list[list[int]]) -> float:
        return float(np.mean([padding_share([lengths[i] for i in rows], 8) for rows in batches]))

    grouped, drawn = order(by_length=True), order(by_length=False)
    for batches in (grouped, drawn):
        assert sorted(row for rows in batches for row in rows) == sorted([*range(128)] * 2)
    assert order(by_length=True) == grouped
    assert waste(grouped) < waste(drawn) / 5
    assert padding_share([4, 2, 1, 1], 2) == pytest.approx(2 / 10)


def test_answers_in_batches_are_those_given_one_by_one_and_in_order(base):
    model, processor = load_llava(base)
    images = [row["images"][0] for row in conversations(5, 3)]
    prompts = ["Colour?", "Which colour is this, please?", "C", "Colour?", "What is it?"]
    together = answer(model, processor, images, prompts, max_new_tokens=8, batch_size=3)
    alone = [
        answer(model, processor, [image], prompt, max_new_tokens=8)[0]
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert together == alone
    assert len({*together}) > 1


def test_an_answer_ends_where_the_model_says_so(base, tmp_path):
    rows = conversations(1, 0)
    tuning = replace(TUNING, steps=60, batch_size=1, learning_rate=1e-2, evaluate_every=60)
    model, processor = load_llava(fine_tune(base, rows, rows, tuning, tmp_path).folder)
    images = [rows[0]["images"][0]] * 2
    assert answer(model, processor, images, "Colour?", max_new_tokens=60) == answers(rows) * 2


def test_prompts_and_images_must_match(base):
    with pytest.raises(ValueError, match="2 prompts for 1 images: give one prompt"):
        answer(*load_llava(base), [Image.new("RGB", (4, 4))], ["a", "b"], max_new_tokens=1)


def test_the_published_profile_trains_offline_from_the_hub_s_cache(tmp_path, monkeypatch):
    publish(tmp_path / "made", PUBLISHED_TEMPLATE)
    cached(tmp_path / "hub", llava15.NAME, tmp_path / "made")
    only(monkeypatch, tmp_path / "hub")
    tuning = FineTuning(
        **{"steps": 2, "batch_size": 4, "accumulation": 2, "learning_rate": 1e-2, "rank": 2},
        **{"method": "lora", "in_bfloat16": True, "activation_checkpointing": True},
    )
    tuned = fine_tune(llava15.NAME, TRAIN, HELD_OUT, tuning, tmp_path / "run")
    model, processor = load_llava(tuned.folder, dtype=torch.bfloat16)
    assert processor.chat_template == LLAVA15_TEMPLATE
    assert tuned.log["loss"].iloc[1] < tuned.log["loss"].iloc[0]
    assert len(answer(model, processor, [HELD_OUT[0]["images"][0]], "Colour?", max_new_tokens=2))


def test_weights_that_cannot_be_had_are_told(tmp_path, monkeypatch):
    only(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=f"'{llava15.NAME}' are not on this machine"):
        load_llava(llava15.NAME)


@pytest.mark.parametrize("harm", ["truncated", "absent", "kind"])
def test_a_damaged_folder_is_refused_by_name(base, tmp_path, harm):
    folder = tmp_path / "harmed"
    shutil.copytree(base, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif harm == "absent":
        weights.unlink()
    else:
        config.write_text(config.read_text().replace('"llava"', '"llama"'))
    with pytest.raises(ValueError, match=r"harmed.*(cannot be read|'llama' model)"):
        load_llava(folder)


def test_four_bits_are_refused_with_the_remedy_where_they_cannot_be(base, tmp_path, monkeypatch):
    tuning = replace(TUNING, method="lora", four_bit=True)
    with pytest.raises(ValueError, match="four_bit needs a CUDA device"):
        fine_tune(base, TRAIN, HELD_OUT, tuning, tmp_path)
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        lora.four_bit()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be above 0"),
        ({"four_bit": True}, "choose method='lora'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        replace(TUNING, **changes)


def test_parts_and_shares_that_do_not_exist_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="'tower'; a LLaVA's parts are vision_tower, "):
        fine_tune(base, TRAIN, HELD_OUT, replace(TUNING, freeze=("tower",)), tmp_path / "a")
    with pytest.raises(ValueError, match="choose a multiple of 3"):
        fine_tune(base, TRAIN, HELD_OUT, replace(TUNING, accumulation=3), tmp_path / "b")


def test_the_published_shape_has_the_published_parameters():
    model = llava15.shaped(llava15.architecture())
    assert sum(p.numel() for p in model.parameters()) == llava15.PARAMETERS
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_predicted_memory_is_the_sum_of_what_is_held():
    profile = FineTuning(
        **{"steps": 1, "batch_size": 16, "accumulation": 4, "learning_rate": 1e-4, "rank": 16},
        **{"method": "lora", "in_bfloat16": True, "activation_checkpointing": True},
    )
    told = llava15.predict(llava15.architecture(), profile, tokens=1024, flops_per_second=3e14)
    per_layer = 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert told.trained == 32 * per_layer + 16 * ((1024 + 4096) + (4096 + 4096))
    assert told.weight_bytes == 2 * llava15.PARAMETERS + 4 * told.trained
    assert told.optimizer_bytes == 2 * told.gradient_bytes == 8 * told.trained
    assert 15 < told.gigabytes < 24
    full = replace(profile, method="full")
    both = llava15.predict(llava15.architecture(), full, tokens=1024, flops_per_second=3e14)
    assert both.gigabytes > 2 * told.gigabytes
    assert both.flops_per_step == pytest.approx(told.flops_per_step * 4 / 3, rel=0.02)
    assert told.seconds_per_step == told.flops_per_step / 3e14
