"""The corpus: Python sources of the pinned dependencies, as train and held-out token streams.

Whoever has installed the environment has this text, byte for byte, so it is named and digested in a
manifest and never redistributed. One package is held out whole, and one file in a hundred of the
others; the two answer different questions (a new project, a new file of a known project).
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from foredraft import paths
from foredraft.files import write_bytes, write_text

TRAIN_PACKAGES = ("matplotlib", "numpy", "pandas", "scikit-learn", "scipy", "sympy")
HELD_OUT_PACKAGE = "networkx"
END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
# Written when a wheel is built: they differ from one platform to the next.
BUILD_FILES = frozenset({"__config__.py", "version.py", "_version.py", "_distributor_init.py"})


@dataclass(frozen=True, slots=True)
class Source:
    """What the corpus takes from one package: enough to see that two machines have the same."""

    package: str
    version: str
    files: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Document:
    """One source file: its package, its path inside the installation, its text."""

    package: str
    path: str
    text: str

    @property
    def is_held_out(self) -> bool:
        """Whether training must not see it: one file in a hundred, chosen by its path's digest."""
        return int(hashlib.sha256(self.path.encode()).hexdigest()[:8], 16) % 100 == 0


def documents(package: str) -> Iterator[Document]:
    """Read a package's Python files in the order of their paths; ValueError if not installed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"{package} is not installed; run `make setup`") from error
    chosen = {
        file.as_posix(): file
        for file in files
        if file.suffix == ".py" and file.name not in BUILD_FILES
    }
    for path in sorted(chosen):
        text = Path(str(chosen[path].locate())).read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield Document(package, path, text.replace("\r\n", "\n"))


def source(package: str) -> Source:
    """Count and digest a package's documents."""
    digest, files, size = hashlib.sha256(), 0, 0
    for document in documents(package):
        content = document.text.encode()
        digest.update(document.path.encode() + b"\0" + content + b"\0")
        files, size = files + 1, size + len(content)
    return Source(package, metadata.version(package), files, size, digest.hexdigest())


def manifest() -> list[Source]:
    """Describe the whole corpus as installed here, training packages first."""
    return [source(package) for package in (*TRAIN_PACKAGES, HELD_OUT_PACKAGE)]


def write_manifest() -> None:
    """Record the manifest beside the models that were trained on it."""
    rows = [asdict(row) for row in manifest()]
    write_text(paths.CORPUS, json.dumps(rows, indent=1) + "\n")


def differences(recorded: list[Source], installed: list[Source]) -> list[str]:
    """Say in words where an installation's corpus is not the recorded one; empty if it is."""
    here = {row.package: row for row in installed}
    return [
        f"{row.package}: recorded {row.version} ({row.files} files, {row.sha256[:12]}), "
        f"installed {here[row.package].version} ({here[row.package].files} files, "
        f"{here[row.package].sha256[:12]})"
        for row in recorded
        if here[row.package] != row
    ]


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Train the byte-level BPE that all pocket models share (any text encodes and decodes back)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def training_texts() -> Iterator[str]:
    """Give the text of every document that training may see."""
    for package in TRAIN_PACKAGES:
        yield from (doc.text for doc in documents(package) if not doc.is_held_out)


@dataclass(frozen=True, slots=True)
class Split:
    """A token stream, documents separated by the end-of-text token, and the bytes it stands for."""

    tokens: np.ndarray
    bytes: int

    @property
    def bits_per_nat(self) -> float:
        """Factor from nats a token to bits a byte."""
        return len(self.tokens) / self.bytes / np.log(2)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The three streams: training, held-out files of known packages, the held-out package."""

    train: Split
    held_out_files: Split
    held_out_package: Split


def load_corpus(tokenizer: Tokenizer) -> Corpus:
    """Encode the corpus, or read the streams encoded before with the same text and tokenizer."""
    key = hashlib.sha256(tokenizer.to_str().encode())
    for row in manifest():
        key.update(row.sha256.encode())
    folder = paths.token_streams(key.hexdigest()[:16])
    known = [doc for package in TRAIN_PACKAGES for doc in documents(package)]
    return Corpus(
        train=_split(folder, "train", (d for d in known if not d.is_held_out), tokenizer),
        held_out_files=_split(folder, "files", (d for d in known if d.is_held_out), tokenizer),
        held_out_package=_split(folder, "package", documents(HELD_OUT_PACKAGE), tokenizer),
    )


def _split(folder: Path, name: str, docs: Iterator[Document], tokenizer: Tokenizer) -> Split:
    texts = [doc.text for doc in docs]
    file = folder / f"{name}.npy"
    if not file.exists():
        stream = io.BytesIO()
        np.save(stream, _encode(texts, tokenizer))
        write_bytes(file, stream.getvalue())
    return Split(np.load(file, mmap_mode="r"), sum(len(text.encode()) for text in texts))


def _encode(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    end = tokenizer.token_to_id(END_OF_TEXT)
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    streams = [np.array([end, *encoding.ids], dtype=np.uint16) for encoding in encodings]
    return np.concatenate([np.empty(0, dtype=np.uint16), *streams])
