"""The pocket LLaVA: pages and their labels, what carries loss, exact resume, what is shipped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from foredraft import paths
from foredraft.training.llava import ship
from foredraft.training.llava.answer_labels import collator
from foredraft.training.llava.conversations import PROMPT
from foredraft.training.llava.folder import load_llava
from foredraft.training.llava.model import (
    CONVERT,
    READ,
    Sizes,
    processor,
    save,
    tokenizer,
    untrained,
    waves,
)
from foredraft.training.llava.pretrain import (
    POCKET_LLAVA,
    Recipe,
    Stage,
    pretrain_llava,
    rate_share,
)
from foredraft.training.llava.reading import BINS, CHARACTERS, IGNORED, page, pages, patch_labels
from foredraft.training.llava.reading_batches import Batches
from foredraft.training.llava.ship import rendered, scores
from foredraft.training.llava.tables import HELD_OUT_SEED, LEXICON, is_held_out

SIZES = Sizes(
    patch=32, tower_width=32, tower_layers=2, width=32, layers=1, heads=2, intermediate=32
)
RECIPE = Recipe(
    name="tiny-llava",
    sizes=SIZES,
    stages=(
        Stage(("dense",), steps=5, rows=2, tower_rate=3e-3),
        Stage(("grid", "loose"), steps=5, rows=2, tower_rate=1e-3, rate=3e-3),
    ),
    warmup_steps=2,
)
KINDS = ("dense", "loose", "grid")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch):
    monkeypatch.setattr("foredraft.training.llava.pretrain.HELD_OUT_ROWS", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_a_function_of_kind_seed_and_index(kind):
    one, same, other = page(kind, 3, 5), page(kind, 3, 5), page(kind, 3, 6)
    assert one.lines == same.lines
    assert np.array_equal(one.image, same.image)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("kind", KINDS)
def test_training_never_shows_a_composed_word_that_is_held_out(kind):
    words = {w for one in pages(kind, 8, 0) for w in one.text.split() if w.isalpha()}
    assert not {w for w in words if is_held_out(w)} - set(LEXICON)
    held_out = {w for one in pages(kind, 8, HELD_OUT_SEED) for w in one.text.split()}
    assert all(is_held_out(w) for w in held_out if w.isalpha())


@pytest.mark.parametrize("kind", KINDS)
def test_pages_say_no_markdown(kind):
    assert set("".join(one.text for one in pages(kind, 8, 0))) <= {*CHARACTERS, " ", "\n"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [8, 10])
def test_the_patches_labels_spell_the_page(kind, patch):
    """Read row by row, part by part, the labels give every glyph at the place of its box."""
    for one in pages(kind, 4, 1):
        marks = patch_labels(one, patch)
        side = one.image.width // patch
        grid = marks.characters.reshape(side, side * BINS)
        for line in one.lines:
            for glyphs in line:
                middle = (min(g.top for g in glyphs) + max(g.bottom for g in glyphs)) / 2
                for glyph in glyphs:
                    centre = (glyph.left + glyph.right) / 2
                    found = grid[int(middle / patch), int(centre * BINS / patch)]
                    assert CHARACTERS[found - 1] == glyph.character
        assert (marks.characters > 0).sum() == sum(len(w) for line in one.lines for w in line)


def test_a_patch_names_the_line_the_word_and_the_character_that_it_begins_with():
    one = page("grid", 1, 4)
    marks = patch_labels(one, 10)
    texts = [line.split(" ") for line in one.text.split("\n")]
    marked = marks.places[:, 0] != IGNORED
    assert marked.any()
    assert (marked == (marks.characters > 0).any(axis=1)).all()
    for (line, word, order), shown in zip(
        marks.places[marked], marks.characters[marked], strict=True
    ):
        first = shown[shown > 0][0]
        assert CHARACTERS[first - 1] == texts[line][word][order]


@pytest.mark.parametrize(
    "text",
    ["| a | bc |\n| --- | :---: |\n| 12 |  |", "USER: Größe 7\t… ASSISTANT:", "a b\nc", " | x"],
)
def test_any_text_encodes_and_decodes_back(text):
    words = tokenizer()
    assert words.decode(words.encode(text, add_special_tokens=False)) == text


def test_what_fine_tuning_asks_is_one_token():
    assert CONVERT == PROMPT
    assert len(tokenizer().encode(PROMPT, add_special_tokens=False)) == 1


def test_a_word_is_spelled_and_markdown_is_short():
    words = tokenizer()
    assert len(words.encode("zebra", add_special_tokens=False)) == 5
    table = "| a | b |\n| --- | ---: |\n| c | d |"
    assert words.convert_ids_to_tokens(words.encode(table, add_special_tokens=False)) == [
        *("| ", "a", " | ", "b", " |\n| "),
        *("---", " | ", "---:", " |\n| "),
        *("c", " | ", "d", " |"),
    ]


def test_the_batches_are_what_processor_and_collator_make():
    """Pixels, tokens and labels, which here are made without a template, are those of the road."""
    batch = Batches(SIZES, ("loose", "grid"), rows=3, seed=0)[0]
    made = collator(processor(SIZES))(
        [
            {
                "images": [shown.image],
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": READ}],
                    },
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": shown.text}],
                    },
                ],
            }
            for shown in (page("loose", 0, 0), page("grid", 0, 1), page("loose", 0, 2))
        ]
    )
    assert torch.equal(batch.tokens, made["input_ids"])
    assert torch.equal(batch.labels, made["labels"][:, batch.answer :])
    assert (made["labels"][:, : batch.answer] == IGNORED).all()
    torch.testing.assert_close(batch.pixels, made["pixel_values"])


def test_loss_lies_on_the_answer_and_its_end_alone():
    words = tokenizer()
    batch = Batches(SIZES, ("loose",), rows=4, seed=0)[2]
    for index, row in enumerate(batch.labels):
        ids = row[row != IGNORED].tolist()
        assert ids[-1] == words.eos_token_id
        assert words.decode(ids[:-1]) == f" {page('loose', 0, 8 + index).text}"
    question = batch.tokens[0, : batch.answer].tolist()
    assert question.count(words.convert_tokens_to_ids("<image>")) == SIZES.image_tokens
    assert (batch.tokens[0, batch.image] == words.convert_tokens_to_ids("<image>")).all()


def test_an_interrupted_run_resumes_bit_for_bit(monkeypatch, cache):
    monkeypatch.setattr("foredraft.training.llava.pretrain.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("foredraft.training.llava.pretrain.EVALUATE_EVERY", 3)
    whole, told = pretrain_llava(RECIPE, workers=0)
    (cache / "training" / RECIPE.name / "checkpoint.safetensors").unlink()

    class Interrupted(Exception):
        pass

    for stop_at in (3, 5, 8):

        def stop(step, stop_at=stop_at):
            if step.number == stop_at:
                raise Interrupted

        with pytest.raises(Interrupted):
            pretrain_llava(RECIPE, workers=0, report=stop)
    resumed, progress = pretrain_llava(RECIPE, workers=0)
    assert progress.curve == told.curve
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_first_stage_moves_the_tower_alone_and_the_second_everything_that_is_read():
    start = untrained(SIZES, seed=0).state_dict()
    first, _ = pretrain_llava(replace(RECIPE, stages=RECIPE.stages[:1]), workers=0)
    moved = {k for k, v in first.state_dict().items() if not torch.equal(v, start[k])}
    assert moved
    assert all(".vision_tower." in name for name in moved)
    both, _ = pretrain_llava(RECIPE, workers=0)
    still = {k for k, v in both.state_dict().items() if torch.equal(v, start[k])}
    unread = {k for k in still if f"layers.{SIZES.tower_layers}." in k or "post_layernorm" in k}
    assert {k for k in still if "position_ids" not in k} <= unread | {
        k for k in start if k.endswith(".bias") or "layernorm" in k
    }


def test_the_rate_warms_up_stays_and_falls_to_nothing():
    recipe, stage = replace(RECIPE, warmup_steps=10), replace(RECIPE.stages[0], steps=100)
    shares = [rate_share(recipe, stage, step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9:60] == [1.0] * 51
    assert shares[99] == pytest.approx(0.025)


def test_the_first_heads_look_at_the_patch_beside():
    """At the start, a head of the first layer attends most, on average, to the patch it should."""
    sizes = Sizes()
    model = untrained(sizes, seed=0)
    tower = model.model.vision_tower
    side = sizes.image // sizes.patch
    attention = next(m for n, m in tower.named_modules() if n.endswith("self_attn"))
    code = torch.nn.functional.layer_norm(waves(sizes), (sizes.tower_width,))
    query, key = (
        p(code)[:, : sizes.tower_width // sizes.tower_heads]
        for p in (attention.q_proj, attention.k_proj)
    )
    looks_at = (query @ key.T).argmax(-1).view(side, side)
    beside = torch.arange(side * side).view(side, side) - 1
    assert (looks_at == beside)[:, 1:].float().mean() > 0.9


def test_saving_and_loading_keep_the_answer(tmp_path):
    model = untrained(SIZES, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(model, SIZES, tmp_path / "model")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    loaded, read_back = load_llava(tmp_path / "model")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name].bfloat16().float()), name
    assert read_back.tokenizer.get_vocab() == tokenizer().get_vocab()
    assert read_back.chat_template == processor(SIZES).chat_template


def test_scores_count_characters_words_and_pages():
    found = scores(["ab cd", "ef", ""], ["ab cd", "eg", "h"])
    assert found["characters"] == round(1 - 2 / 8, 4)
    assert found["words"] == 0.5
    assert found["pages"] == round(1 / 3, 4)


def test_the_shipped_folder_is_small_and_reads_what_its_card_states():
    """The pages are among those that the card was measured on, so luck has no part in it."""
    folder = paths.model(POCKET_LLAVA.name)
    size = (folder / "model.safetensors").stat().st_size
    assert size <= 15_000_000
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["bytes"] == size
    assert (folder / "README.md").read_text(encoding="utf-8") == rendered(card)
    model, words = load_llava(folder)
    shown = list(pages("grid", 24, HELD_OUT_SEED))
    said = ship.read(model, words, [one.image for one in shown])
    found = scores(said, [one.text for one in shown])
    assert found["characters"] > card["reads"]["grid"]["characters"] - 0.02
    assert all(value["markdown_exact"] < 0.05 for k, value in card["reads"].items() if "level" in k)


def test_an_image_of_any_size_gives_as_many_tokens_as_the_tower_has_patches():
    image = Image.new("RGB", (300, 200), (255, 255, 255))
    words = processor(SIZES)
    made = words(images=image, text="<image>", return_tensors="pt")
    assert (made["input_ids"] == words.image_token_id).sum() == SIZES.image_tokens
    assert made["pixel_values"].shape[-2:] == (SIZES.image, SIZES.image)
