"""Tables with their images and the Markdown that they show, made from a seed, level by level.

A table with its image is a function of level, seed, index and image size alone. Seeds from
HELD_OUT_SEED on make held-out tables, those below make training tables. A table, by its Markdown,
and a composed word belong to one of these two sides by their own digest (`is_held_out`), so that no
two seeds can make them meet. Words of the LEXICON, which level 1 is made of, are on both sides.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from foredraft.errors import unknown
from foredraft.training.llava.pipe_table import Alignment, Table, parse
from foredraft.training.llava.table_images import (
    SIZE,
    Drawing,
    Glyph,
    Header,
    Rules,
    Style,
    draw,
    edges,
    fits,
    font,
    text_widths,
    trace,
    width,
    write,
)

__all__ = [
    "HELD_OUT_SEED",
    "LEVELS",
    "LEXICON",
    "SIZE",
    "Drawing",
    "Example",
    "Glyph",
    "Level",
    "Style",
    "Table",
    "draw",
    "example",
    "examples",
    "font",
    "is_held_out",
    "level_of",
    "number",
    "parse",
    "trace",
    "width",
    "word",
    "write",
]

HELD_OUT_SEED = 1_000_000
"""The first seed of held-out tables."""
MINIMAL_SLACK = 6
"""Pixels by which a column's cells differ in width where an alignment is to be seen."""
ALIGNMENTS: tuple[Alignment, ...] = ("none", "centre", "right")
"""Where a column may be set; to the left is what Markdown does without a mark."""
ATTEMPTS = 2000
"""How often contents and style are drawn again before a table is said not to fit."""
_NOUNS = (
    "apple arm bag ball bank bed bell bird boat body book box boy bread bus cake car cat chair "
    "city clock cloud coat cow cup day desk dog door dress duck ear egg eye farm fire fish floor "
    "fork frog game girl glass gold hand hat hill home horse house ice jar key king knife lake "
    "lamp leaf leg map milk moon mouth nose ocean oil park pen pig plane queen rain ring road "
    "room rose sand sea ship shoe sky snow song star stone sun table tax tree truck van wall "
    "watch water wheel wind window wood wolf year zoo"
)
LEXICON = tuple(_NOUNS.split())
"""The words of level 1."""


@dataclass(frozen=True, slots=True)
class Level:
    """What tables of one difficulty may look like; pairs are inclusive bounds, sizes in pixels.

    `rows` counts the header. `letters` None: words of the LEXICON, else composed words of so many
    letters. `rotation` in degrees either way; `noise` a standard deviation in grey levels of 255.
    """

    number: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    letters: tuple[int, int] | None
    digits: tuple[int, int]
    fonts: tuple[str, ...]
    text_sizes: tuple[int, int]
    rules: tuple[Rules, ...]
    headers: tuple[Header, ...]
    alignments: tuple[Alignment, ...]
    padding: tuple[int, int]
    largest_shift: int
    rotation: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    is_coloured: bool = False


_SEVERAL = {
    "rows": (2, 5),
    "columns": (2, 4),
    "letters": (3, 6),
    "digits": (1, 4),
    "fonts": ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Bold"),
    "text_sizes": (9, 11),
    "rules": ("grid", "horizontal", "header", "none"),
    "headers": ("plain", "bold", "shaded", "underlined"),
    "padding": (2, 4),
    "largest_shift": SIZE,
}
LEVELS = {
    1: Level(
        number=1,
        rows=(2, 3),
        columns=(2, 3),
        letters=None,
        digits=(1, 4),
        fonts=("DejaVuSans",),
        text_sizes=(10, 10),
        rules=("grid",),
        headers=("plain",),
        alignments=("none",),
        padding=(3, 3),
        largest_shift=8,
    ),
    2: Level(number=2, **_SEVERAL, alignments=("none",)),
    3: Level(
        number=3,
        **_SEVERAL,
        alignments=ALIGNMENTS,
        rotation=3.0,
        blur=0.6,
        noise=12.0,
        is_coloured=True,
    ),
}


def level_of(number: int) -> Level:
    """Give the level of a number; ValueError names those there are."""
    if number not in LEVELS:
        raise unknown("level", str(number), map(str, LEVELS))
    return LEVELS[number]


@dataclass(frozen=True, slots=True)
class Example:
    """A table, the style and the size of its image."""

    table: Table
    style: Style
    size: int = SIZE

    @property
    def image(self) -> Image.Image:
        """The image, RGB, size × size pixels, drawn anew at each call."""
        return draw(self.table, self.style, self.size)


def example(level: Level, seed: int, index: int, *, size: int = SIZE) -> Example:
    """Make one table, which level, seed, index and size determine.

    Its number of rows and columns is drawn first and kept; contents and style are drawn again while
    the table is on the other side, does not fit, or hides an alignment. ValueError if that never
    ends, as in images that are too small for the level.
    """
    random = Random(f"{level.number}/{seed}/{index}")
    shape = random.randint(*level.rows), random.randint(*level.columns)
    for _ in range(ATTEMPTS):
        table = _contents(level, shape, random, held_out=seed >= HELD_OUT_SEED)
        if is_held_out(table.markdown()) != (seed >= HELD_OUT_SEED):
            continue
        style = _placed(_style(level, random), table, level.largest_shift, random, size)
        if _shows_alignments(table, style) and fits(table, style, size):
            return Example(table, style, size)
    raise ValueError(
        f"no table of {shape[0]} rows and {shape[1]} columns of level {level.number} fits into "
        f"{size} pixels a side in {ATTEMPTS} attempts: give a larger size"
    )


def examples(
    level: Level, n: int, seed: int, *, start: int = 0, size: int = SIZE
) -> Iterator[Example]:
    """Make the tables of the indices from `start` on, `n` of them."""
    return (example(level, seed, index, size=size) for index in range(start, start + n))


def is_held_out(text: str) -> bool:
    """Whether training must not see this word or Markdown: one in four, by its digest."""
    return hashlib.sha256(text.encode()).digest()[0] % 4 == 0


def word(random: Random, letters: tuple[int, int], *, held_out: bool) -> str:
    """Compose a pronounceable word of so many letters, on one side by `is_held_out`."""
    n_letters = random.randint(*letters)
    while True:
        composed, has_vowel_next = "", random.random() < 0.2
        while len(composed) < n_letters:
            clusters = _VOWELS if has_vowel_next else random.choice((_CONSONANTS, _CLUSTERS))
            composed += random.choice(clusters)
            has_vowel_next = not has_vowel_next
        is_new = len(composed) == n_letters and composed not in LEXICON
        if is_new and is_held_out(composed) == held_out:
            return composed


_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
_CLUSTERS = ("br", "ch", "cl", "dr", "fl", "gr", "pl", "pr", "sh", "sl", "sp", "st", "th", "tr")


def number(random: Random, digits: tuple[int, int]) -> str:
    """Draw a whole number, its number of digits first."""
    n_digits = random.randint(*digits)
    return str(random.randint(10 ** (n_digits - 1) * (n_digits > 1), 10**n_digits - 1))


def _contents(level: Level, shape: tuple[int, int], random: Random, *, held_out: bool) -> Table:
    """Fill a table: a word heads each column, words or numbers, as often, stand in it."""

    def text() -> str:
        if level.letters is None:
            return random.choice(LEXICON)
        return word(random, level.letters, held_out=held_out)

    n_rows, n_columns = shape
    columns = []
    for _ in range(n_columns):
        has_numbers = random.random() < 0.5
        body = (number(random, level.digits) if has_numbers else text() for _ in range(n_rows - 1))
        columns.append([text(), *body])
    return Table(
        tuple(zip(*columns, strict=True)),
        tuple(random.choice(level.alignments) for _ in range(n_columns)),
    )


def _style(level: Level, random: Random) -> Style:
    """Draw all of a style but the place of the table."""
    ink, paper = (0, 0, 0), (255, 255, 255)
    if level.is_coloured:
        dark = tuple(random.randint(0, 80) for _ in range(3))
        light = tuple(random.randint(190, 255) for _ in range(3))
        ink, paper = (dark, light) if random.random() < 0.5 else (light, dark)
    return Style(
        font=random.choice(level.fonts),
        text_size=random.randint(*level.text_sizes),
        rules=random.choice(level.rules),
        header=random.choice(level.headers),
        padding=random.randint(*level.padding),
        ink=ink,  # pyright: ignore[reportArgumentType]
        paper=paper,  # pyright: ignore[reportArgumentType]
        rotation=random.uniform(-level.rotation, level.rotation),
        blur=random.uniform(0, level.blur),
        noise=random.uniform(0, level.noise),
        noise_seed=random.getrandbits(32),
    )


def _shows_alignments(table: Table, style: Style) -> bool:
    """Whether each column that has an alignment has cells of clearly different widths."""
    columns = zip(*text_widths(table, style), strict=True)
    return all(
        alignment == "none" or max(widths) - min(widths) >= MINIMAL_SLACK
        for widths, alignment in zip(columns, table.alignments, strict=True)
    )


def _placed(style: Style, table: Table, largest_shift: int, random: Random, size: int) -> Style:
    """Shift the table to anywhere in the room that it leaves, if it leaves any."""
    columns, rows = edges(table, replace(style, shift=(0, 0)))
    x, y = (
        random.randint(0, max(0, min(largest_shift, size - 1 - extent)))
        for extent in (columns[-1], rows[-1])
    )
    return replace(style, shift=(x, y))
