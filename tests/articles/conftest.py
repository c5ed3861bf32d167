"""Tiny random models laid out as the hub caches the published ones."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def letters(
    marks: Sequence[str],
    chat: str,
    start: str,
    end: str,
    *,
    adds_start: bool = False,
    swapped: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and of the marks that turns have, which have the first ids."""
    words = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if swapped:
        words[-2:] = reversed(words[-2:])
    bare = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    if adds_start:
        added = [(start, marks.index(start))]
        bare.post_processor = processors.TemplateProcessing(f"{start} $A", None, added)
    special = {"bos_token": start, "eos_token": end, "additional_special_tokens": [*marks]}
    return PreTrainedTokenizerFast(tokenizer_object=bare, chat_template=chat, **special)


def edit(file: Path, *dropped: str, **fields: object) -> None:
    kept = {name: value for name, value in json.loads(file.read_text()).items()}
    for name in dropped:
        del kept[name]
    file.write_text(json.dumps(kept | fields))


def template_within(folder: Path) -> None:
    """Keep the chat template where an older transformers does, among the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    edit(folder / "tokenizer_config.json", chat_template=file.read_text())
    file.unlink()


def cached(hub: Path, name: str, folder: Path) -> None:
    """Lay a folder out as the hub caches it: blobs by digest, and links to them in a snapshot."""
    entry, revision = hub / f"models--{name.replace('/', '--')}", "0" * 40
    for part in ("blobs", "refs", f"snapshots/{revision}"):
        (entry / part).mkdir(parents=True)
    (entry / "refs" / "main").write_text(revision)
    for file in folder.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(entry / "blobs" / blob)
        (entry / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{blob}")


def only(patch: pytest.MonkeyPatch, hub: Path) -> None:
    """Let this cache be all that there is of the hub; no network."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
