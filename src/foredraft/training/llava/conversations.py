"""Conversations about images, in the columns of HuggingFaceH4/llava-instruct-mix-vsft.

Three sources: generated tables, that data set itself, and a folder of the reader's own pairs of an
image and its Markdown. A row holds `images` and `messages`; a message's content is a list of parts,
of which a text has no index and an image no text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageColumn
from datasets.exceptions import DatasetsError
from PIL import Image, UnidentifiedImageError

from foredraft.training.llava.tables import SIZE, examples, level_of

PROMPT = "Convert this table to Markdown."
"""What is asked about every table, in training and after it."""
VISUAL_INSTRUCTIONS = "HuggingFaceH4/llava-instruct-mix-vsft"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
Row = dict[str, Any]


def features() -> Features:
    """Give the types of the columns."""
    part = {"index": Value("int64"), "text": Value("string"), "type": Value("string")}
    message = {"content": List(part), "role": Value("string")}
    return Features({"messages": List(message), "images": List(ImageColumn())})


def conversation(image: Image.Image, answer: str, prompt: str = PROMPT) -> Row:
    """Make a row of one question about one image and its answer."""
    return {
        "messages": [
            {
                "role": "user",
                "content": [_text(prompt), {"index": 0, "text": None, "type": "image"}],
            },
            {"role": "assistant", "content": [_text(answer)]},
        ],
        "images": [image],
    }


def table_conversations(
    level: int, n: int, seed: int, *, start: int = 0, size: int = SIZE
) -> Dataset:
    """Make the conversations about `n` generated tables; seeds from HELD_OUT_SEED on hold out."""
    tables = examples(level_of(level), n, seed, start=start, size=size)
    return _dataset(conversation(each.image, each.table.markdown()) for each in tables)


def visual_instructions(
    split: str, n: int | None = None, *, source: str = VISUAL_INSTRUCTIONS
) -> Dataset:
    """Read the first `n` rows (None: all) of a split, "train" or "test", of the published data set.

    Rows are streamed if `n` is given, since the whole is large. `source` may be a folder that holds
    the same as parquet files. ValueError if the data cannot be had or has other columns.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n} rows: give at least 1, or None for all")
    try:
        if n is not None:
            stream = load_dataset(source, split=split, streaming=True)
            _require_columns(source, stream.column_names)
            return _dataset(iter(stream.take(n)))
        whole = load_dataset(source, split=split)
        _require_columns(source, whole.column_names)
        return whole.cast(features())
    except (OSError, DatasetsError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"split {split!r} of the data set {source!r} is not on this machine and could not be "
            f"downloaded ({type(error).__name__}: {reason}). Generated tables need no network: "
            "table_conversations, or -p data=tables"
        ) from error


def folder_conversations(folder: Path) -> Dataset:
    """Pair each image of a folder with the .md file of the same name, in the order of the names.

    ValueError names a file without its partner, an image that cannot be read, an empty text.
    """
    return _dataset(
        conversation(_image(image), _markdown(text)) for image, text in _file_pairs(folder)
    )


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked, messages up to its turn and their images, and the true answer."""

    messages: list[Row]
    images: list[Image.Image]
    answer: str


def question(row: Row) -> Question:
    """Split a row before its last message; ValueError if that is not the assistant's."""
    *asked, last = row["messages"]
    if last["role"] != "assistant" or not asked:
        raise ValueError(
            f"the last of {len(row['messages'])} messages is of the role {last['role']!r}: "
            "give conversations in which the assistant answers last"
        )
    answer = "".join(part["text"] for part in last["content"] if part["type"] == "text")
    return Question(asked, row["images"], answer)


def _text(text: str) -> Row:
    return {"index": None, "text": text, "type": "text"}


def _dataset(rows: Iterator[Row]) -> Dataset:
    return Dataset.from_list(list(rows), features=features())


def _require_columns(source: str, columns: list[str] | None) -> None:
    if columns is not None and set(columns) != set(features()):
        raise ValueError(
            f"the data set {source!r} has the columns {', '.join(sorted(columns))}: "
            f"give one with {', '.join(sorted(features()))} and no others"
        )


def _file_pairs(folder: Path) -> list[tuple[Path, Path]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds name.png and name.md pairs")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    texts = {path.stem: path for path in files if path.suffix.lower() == ".md"}
    stems = [path.stem for path in images]
    for path in images:
        if stems.count(path.stem) > 1:
            raise ValueError(f"{path} is one of several images of that name: keep one of them")
        if path.stem not in texts:
            raise ValueError(f"{path} has no {path.stem}.md beside it: write its Markdown there")
    for stem in texts.keys() - set(stems):
        raise ValueError(f"{texts[stem]} has no image of its name: add {stem}.png or remove it")
    if not images:
        raise ValueError(f"{folder} holds no image: put name.png and name.md pairs there")
    return [(path, texts[path.stem]) for path in images]


def _image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): save it again") from error


def _markdown(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it again") from error
    if not text:
        raise ValueError(f"{path} is empty: write the image's Markdown there")
    return text
