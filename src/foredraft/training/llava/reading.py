"""Pages to read: words and numbers in images, what they say, and which character stands where.

A page is a function of (kind, seed, index) alone. Its text has a space between words and a line end
between lines, and never a pipe: what a table is, only fine-tuning teaches. Seeds from
HELD_OUT_SEED on make pages of words that training never shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from string import ascii_lowercase, digits
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from foredraft.training.llava.pipe_table import Alignment, Table
from foredraft.training.llava.table_images import (
    BOLD,
    SIZE,
    Colour,
    Font,
    Glyph,
    Style,
    edges,
    fits,
    font,
    trace,
    width,
    write,
)
from foredraft.training.llava.tables import (
    ALIGNMENTS,
    HELD_OUT_SEED,
    LEVELS,
    LEXICON,
    is_held_out,
    number,
    word,
)
from foredraft.types import Int

Kind = Literal["dense", "loose", "grid"]
"""Full of words for the glyphs' sake; a few lines of words; rows and columns of words."""

CHARACTERS = ascii_lowercase + digits
BINS = 5
"""Parts of a patch's width, each of which holds the centre of at most one character."""
BOUNDS = (16, 12, 12)
"""Lines of a page, words of a line, characters of a word told apart; what is beyond is the last."""
IGNORED = -100
EASY_SHARE = 0.35
"""Share of pages set as level 1 sets its tables."""
FACES = (*LEVELS[2].fonts, *BOLD.values())
MOST_ROWS, MOST_COLUMNS = LEVELS[2].rows[1], LEVELS[2].columns[1]


@dataclass(frozen=True, slots=True)
class Page:
    """An RGB image and the glyphs of its words, line by line."""

    image: Image.Image
    lines: tuple[tuple[tuple[Glyph, ...], ...], ...]

    @property
    def text(self) -> str:
        """What it says, in reading order."""
        return "\n".join(" ".join(map(_spelled, line)) for line in self.lines)


@dataclass(frozen=True, slots=True)
class PatchLabels:
    """What each patch of a page shows, patches row by row.

    `characters`: for each of BINS parts of its width, 0 or one more than the place in CHARACTERS of
    the character whose centre lies there. `places`: the line, the word in it and the character in
    that of the first character there, below BOUNDS; IGNORED where there is none.
    """

    characters: Int[np.ndarray, "patches bins"]
    places: Int[np.ndarray, "patches 3"]


def page(kind: Kind, seed: int, index: int) -> Page:
    """Make one page."""
    random = Random(f"{kind}/{seed}/{index}")
    makers = {"dense": _dense, "loose": _loose, "grid": _grid}
    return makers[kind](random, seed >= HELD_OUT_SEED)


def pages(kind: Kind, n: int, seed: int) -> Iterator[Page]:
    """Make the first `n` pages of a seed."""
    return (page(kind, seed, index) for index in range(n))


def patch_labels(page: Page, patch: int) -> PatchLabels:
    """Say for patches of so many pixels a side which characters are centred in them, and where.

    A character is centred where its ink is from left to right, and where its line is from top to
    bottom, so that a line's characters lie in one row of patches, unless it is rotated.
    """
    side = page.image.width // patch
    characters = np.zeros((side, side, BINS), dtype=np.int64)
    places = np.full((side, side, len(BOUNDS)), IGNORED, dtype=np.int64)
    for line_number, line in enumerate(page.lines):
        for word_number, glyphs in enumerate(line):
            middle = (min(g.top for g in glyphs) + max(g.bottom for g in glyphs)) / 2
            row = _within(middle / patch, side)
            for order, glyph in enumerate(glyphs):
                centre = (glyph.left + glyph.right) / 2
                column, bin_ = divmod(_within(centre * BINS / patch, side * BINS), BINS)
                characters[row, column, bin_] = 1 + CHARACTERS.index(glyph.character)
                if places[row, column, 0] == IGNORED:
                    place = (line_number, word_number, order)
                    places[row, column] = [
                        min(p, b - 1) for p, b in zip(place, BOUNDS, strict=True)
                    ]
    return PatchLabels(characters.reshape(-1, BINS), places.reshape(-1, len(BOUNDS)))


def _dense(random: Random, held_out: bool) -> Page:
    """Fill an image with lines, their faces changing, some rules across."""
    ink, paper = _colours(random)
    image = Image.new("RGB", (SIZE, SIZE), paper)
    pen = ImageDraw.Draw(image)
    _draw_rules(random, pen, ink, paper)
    lines, y, face = [], random.randint(0, 8), _face(random)
    while True:
        if random.random() < 0.3:
            face = _face(random)
        height = sum(face.getmetrics())
        if y + height > SIZE:
            return Page(image, tuple(lines))
        line, x = [], random.randint(0, 12)
        while x + width(text := _text(random, held_out), face) <= SIZE:
            line.append(write(pen, (x, y), text, face, ink))
            x += width(text, face) + random.randint(4, 14)
        if line:
            lines.append(tuple(line))
        y += height + random.choice((-1, 0, 0, 1, 2, 4))


def _loose(random: Random, held_out: bool) -> Page:
    """Write up to twenty words in lines, no two pages spaced alike."""
    ink, paper = _colours(random)
    image = Image.new("RGB", (SIZE, SIZE), paper)
    pen = ImageDraw.Draw(image)
    face, left = _face(random), random.randint(1, 20)
    lines, y, height = [], random.randint(0, 20), sum(face.getmetrics())
    while left and y + height <= SIZE:
        line, x = [], random.randint(0, 40)
        for _ in range(random.randint(1, min(6, left))):
            text = _text(random, held_out)
            if x + width(text, face) > SIZE:
                break
            line.append(write(pen, (x, y), text, face, ink))
            x += width(text, face) + random.randint(4, 20)
        if line:
            lines.append(tuple(line))
        left -= len(line)
        y += height + int(random.expovariate(0.2))
    return Page(image, tuple(lines))


def _grid(random: Random, held_out: bool) -> Page:
    """Set words in rows and columns, mostly without rules between them."""
    while True:
        n_rows, n_columns = random.randint(1, MOST_ROWS), random.randint(1, MOST_COLUMNS)
        cells = [[_text(random, held_out) for _ in range(n_columns)] for _ in range(n_rows)]
        alignments: list[Alignment] = [random.choice(ALIGNMENTS) for _ in range(n_columns)]
        table, style = Table(tuple(map(tuple, cells)), tuple(alignments)), _style(random)
        columns, rows = edges(table, style)
        room = [SIZE - 1 - columns[-1], SIZE - 1 - rows[-1]]
        if min(room) < 0:
            continue
        reach = random.choice((8, SIZE))
        x, y = (random.randint(0, min(reach, space)) for space in room)
        style = replace(style, shift=(x, y))
        if fits(table, style, SIZE):
            drawn = trace(table, style, SIZE)
            return Page(drawn.image, drawn.glyphs)


def _style(random: Random) -> Style:
    """Draw a style; one page in five is spoilt as level 3 spoils its tables."""
    ink, paper = _colours(random)
    name, size = _name_and_size(random)
    spoilt = LEVELS[3] if random.random() < 0.2 else LEVELS[2]
    return Style(
        font=name,
        text_size=size,
        rules="none" if random.random() < 0.6 else random.choice(LEVELS[2].rules),
        header=random.choice(LEVELS[2].headers),
        padding=random.randint(*LEVELS[2].padding),
        shift=(0, 0),
        ink=ink,
        paper=paper,
        rotation=random.uniform(-spoilt.rotation, spoilt.rotation),
        blur=random.uniform(0, spoilt.blur),
        noise=random.uniform(0, spoilt.noise),
        noise_seed=random.getrandbits(32),
    )


def _text(random: Random, held_out: bool) -> str:
    """Draw a number, a word of the lexicon, a composed word, or letters; all from one side."""
    chance = random.random()
    if chance < 0.35:
        return number(random, (1, 5))
    if chance < 0.5 and not held_out:
        return random.choice(LEXICON)
    if chance < 0.7:
        return word(random, (2, 7), held_out=held_out)
    while True:
        letters = "".join(random.choices(ascii_lowercase, k=random.randint(1, 7)))
        if is_held_out(letters) == held_out:
            return letters


def _colours(random: Random) -> tuple[Colour, Colour]:
    """Draw ink and paper: mostly black on white, else dark on light or light on dark."""
    chance = random.random()
    if chance < 0.7:
        return (0, 0, 0), (255, 255, 255)
    red, green, blue = (random.randint(0, 90) for _ in range(3))
    dark = red, green, blue
    red, green, blue = (random.randint(190, 255) for _ in range(3))
    light = red, green, blue
    return (dark, light) if chance < 0.88 else (light, dark)


def _name_and_size(random: Random) -> tuple[str, int]:
    if random.random() < EASY_SHARE:
        return LEVELS[1].fonts[0], LEVELS[1].text_sizes[0]
    return random.choice(FACES), random.randint(*LEVELS[2].text_sizes)


def _face(random: Random) -> Font:
    return font(*_name_and_size(random))


def _draw_rules(random: Random, pen: ImageDraw.ImageDraw, ink: Colour, paper: Colour) -> None:
    """Draw up to six rules across half of the pages, anywhere."""
    for _ in range(random.randint(1, 6) if random.random() < 0.5 else 0):
        share, place = random.uniform(0.2, 1), random.randint(0, SIZE)
        red, green, blue = (round(p + share * (i - p)) for p, i in zip(paper, ink, strict=True))
        ends = (0, place, SIZE, place) if random.random() < 0.5 else (place, 0, place, SIZE)
        pen.line(ends, fill=(red, green, blue))


def _spelled(glyphs: tuple[Glyph, ...]) -> str:
    return "".join(glyph.character for glyph in glyphs)


def _within(value: float, bound: int) -> int:
    return min(max(int(value), 0), bound - 1)
