"""The Python that README.md and docs show: it runs, and does what the words beside it say."""

import re
from typing import Any

import pytest
import torch

import foredraft as fd
from foredraft import paths
from tests.decoding.conftest import tiny

VOCAB = 23
GREEDY = fd.Sampler(temperature=0)
PAGES = ("README.md", "docs/usage.md", "docs/how_it_fits.md")


def blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    text = (paths.ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def phrase_drafter() -> Any:
    """The drafter that docs/how_it_fits.md defines."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(blocks("docs/how_it_fits.md")[0], names)
    return names["PhraseDrafter"]


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, capsys):
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks(page):
        exec(block, names)
    made = names["made"]
    assert made.trace.accepted > 0
    assert names["tokenizer"].decode(made.tokens[0]) in capsys.readouterr().out


def test_phrases_are_proposed_and_the_text_is_that_of_plain_decoding(phrase_drafter):
    model = tiny("llama", VOCAB, 0, torch.float64)
    prompts = [[1, 2, 3], [4], [5, 6]]
    plain = fd.generate(model, prompts, sampler=GREEDY, max_new_tokens=20)
    right = [tokens[:8] for tokens in plain.tokens]
    wrong = [[*tokens[2:4], (tokens[4] + 1) % VOCAB] for tokens in plain.tokens]
    for phrases, some_accepted, some_rejected in ((right, True, False), (wrong, False, True)):
        drafter = phrase_drafter(phrases)
        made = fd.generate(model, prompts, sampler=GREEDY, max_new_tokens=20, drafter=drafter)
        assert made.tokens == plain.tokens
        assert made.trace.drafted
        assert made.trace.accepted or not some_accepted
        assert made.trace.accepted < made.trace.drafted or not some_rejected


def test_a_phrase_is_continued_from_its_longest_beginning(phrase_drafter):
    drafter = phrase_drafter(((1, 2, 3, 4), (3, 9, 9), (2, 3, 7)), start=2)
    assert drafter.rest([0, 1, 2]) == [3, 4]
    assert drafter.rest([1, 2, 3]) == [4], "three tokens of the first, two of the third"
    assert drafter.rest([3]) == []
    assert drafter.rest([1, 2, 3, 4]) == []
