"""Rows of conversations keep their columns, and what cannot become one is refused by name."""

import numpy as np
import pytest
from datasets import Dataset, Features, Value, load_dataset
from PIL import Image

from foredraft.training.llava.conversations import (
    PROMPT,
    conversation,
    features,
    folder_conversations,
    question,
    table_conversations,
    visual_instructions,
)
from foredraft.training.llava.tables import LEVELS, example

ANSWER = "| a |\n| --- |\n| 1 |"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def published(tmp_path, cache):
    """A folder in the layout of the published data set, with five rows in each split."""
    for split in ("train", "test"):
        file = tmp_path / "published" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table_conversations(1, 5, 3).to_parquet(file)
    return str(tmp_path / "published")


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, suffix in (("b", "png"), ("a", "JPG")):
        Image.new("L", (9, 7), 200).save(folder / f"{name}.{suffix}")
        (folder / f"{name}.md").write_text(f"{ANSWER}{name}\n", encoding="utf-8")
    return folder


def test_a_generated_row_asks_about_the_image_and_answers_with_its_markdown():
    rows = table_conversations(2, 3, 5, start=4)
    assert rows.features == features()
    for index, row in enumerate(rows, start=4):
        made, asked = example(LEVELS[2], 5, index), question(row)
        assert asked.answer == made.table.markdown()
        assert [m["role"] for m in asked.messages] == ["user"]
        text, image = asked.messages[0]["content"]
        assert text == {"index": None, "text": PROMPT, "type": "text"}
        assert image == {"index": 0, "text": None, "type": "image"}
        assert [np.asarray(i).tobytes() for i in asked.images] == [made.image.tobytes()]


def test_parquet_keeps_the_columns_and_every_pixel(tmp_path, cache):
    rows = table_conversations(3, 2, 0)
    rows.to_parquet(tmp_path / "rows.parquet")
    again = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    assert again.features == features()
    for a, b in zip(rows, again, strict=True):
        assert a["messages"] == b["messages"]
        assert a["images"][0].tobytes() == b["images"][0].tobytes()


@pytest.mark.parametrize(("n", "rows"), [(None, 5), (2, 2), (9, 5)])
def test_the_published_layout_is_read_as_far_as_asked(published, n, rows):
    read = visual_instructions("test", n, source=published)
    assert read.features == features()
    assert len(read) == rows
    assert question(read[0]).answer == example(LEVELS[1], 3, 0).table.markdown()
    assert read[0]["images"][0].size == (160, 160)


@pytest.mark.parametrize("n", [None, 3])
def test_a_data_set_that_cannot_be_had_is_named_with_what_to_run_instead(cache, n):
    with pytest.raises(ValueError, match=r"'train'.*llava-instruct-mix-vsft.*data=tables"):
        visual_instructions("train", n)


def test_other_columns_and_no_rows_are_refused(tmp_path, cache):
    folder = tmp_path / "other"
    folder.mkdir()
    Dataset.from_list([{"a": 1}], features=Features({"a": Value("int64")})).to_parquet(
        folder / "train.parquet"
    )
    with pytest.raises(ValueError, match=r"columns a: give one with images, messages"):
        visual_instructions("train", source=str(folder))
    with pytest.raises(ValueError, match="n=0"):
        visual_instructions("train", 0)


def test_a_folder_of_pairs_is_read_in_the_order_of_names(pairs):
    rows = folder_conversations(pairs)
    assert [question(row).answer for row in rows] == [f"{ANSWER}a", f"{ANSWER}b"]
    assert [row["images"][0].mode for row in rows] == ["RGB", "RGB"]
    assert rows.features == features()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.md", b"| x |", r"c\.md has no image"),
        ("c.png", b"", r"c\.png has no c\.md"),
        ("b.jpeg", b"", "one of several images"),
        ("b.png", b"no image", r"b\.png cannot be read"),
        ("b.md", b" \n", r"b\.md is empty"),
        ("b.md", b"\xff\xfe", r"b\.md is not UTF-8"),
    ],
)
def test_a_file_that_makes_no_pair_is_refused_by_name(pairs, name, content, told):
    (pairs / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        folder_conversations(pairs)


def test_an_image_cut_short_is_refused_by_name(pairs):
    whole = example(LEVELS[1], 0, 0).image
    whole.save(pairs / "b.png")
    data = (pairs / "b.png").read_bytes()
    (pairs / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"b\.png cannot be read"):
        folder_conversations(pairs)


def test_a_folder_without_images_or_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        folder_conversations(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        folder_conversations(tmp_path / "nowhere")


def test_a_long_conversation_is_split_before_its_last_answer():
    row = conversation(Image.new("RGB", (4, 4)), "first")
    row["messages"] += conversation(Image.new("RGB", (4, 4)), "second", "And?")["messages"]
    asked = question(row)
    assert asked.answer == "second"
    assert [message["role"] for message in asked.messages] == ["user", "assistant", "user"]


def test_a_conversation_that_no_answer_ends_is_refused():
    row = conversation(Image.new("RGB", (4, 4)), "first")
    with pytest.raises(ValueError, match="'user'"):
        question(row | {"messages": row["messages"][:1]})
