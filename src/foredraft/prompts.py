"""Prompts: code that pocket models continue, chats that published models answer, and your own.

The code is that of a package which training held out. Only the place and the digest of a span are
kept here; its text is read from the installed package, so that no foreign text is shipped.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, final, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from foredraft import paths
from foredraft.errors import unknown

CodeKind = Literal["function", "docstring", "tests", "table", "imports", "class"]
ChatKind = Literal[
    "conversation", "translation", "summarisation", "question", "mathematics", "retrieval"
]
CODE_KINDS: tuple[str, ...] = get_args(CodeKind)
CHAT_KINDS: tuple[str, ...] = get_args(ChatKind)
STRICT = ConfigDict(extra="forbid", strict=True)
FORM = 'one JSON object a line, such as {"text": "def fib(n):"}'
"""How a file of own prompts is written."""


@dataclass(frozen=True, slots=True)
class CodePrompt:
    """Lines `first_line` to `last_line` of a package's file, both included, counted from 1."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: str
    kind: CodeKind
    package: str
    version: str
    file: str
    first_line: int
    last_line: int
    sha256: str
    """The first 16 hexadecimal digits of the text's digest."""

    def text(self) -> str:
        """Read the lines from the installed package; ValueError if they are not those chosen."""
        lines = self._installed().replace("\r\n", "\n").split("\n")
        text = "\n".join(lines[self.first_line - 1 : self.last_line]) + "\n"
        if hashlib.sha256(text.encode()).hexdigest()[:16] != self.sha256:
            raise self._refusal(f"lines {self.first_line} to {self.last_line} have changed")
        return text

    def _installed(self) -> str:
        try:
            package = metadata.distribution(self.package)
        except metadata.PackageNotFoundError as error:
            raise self._refusal(f"{self.package} is not installed") from error
        if package.version != self.version:
            raise self._refusal(f"{self.package} {package.version} is installed")
        path = Path(str(package.locate_file(self.file)))
        if not path.is_file():
            raise self._refusal("the file is missing")
        return path.read_text(encoding="utf-8", errors="replace")

    def _refusal(self, reason: str) -> ValueError:
        chosen = f"prompt {self.id!r} is a piece of {self.package} {self.version}, {self.file}"
        return ValueError(f"{chosen}, but {reason}; run `make setup`")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What a user says, turn by turn; the model answers each turn before the next is put."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: str
    kind: ChatKind
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnPrompt:
    """A reader's own text; `chat` puts it into the model's chat template, `kind` groups it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    text: Annotated[str, Field(min_length=1)]
    kind: str = "own"
    chat: bool = False


AnyPrompt = TypeVar("AnyPrompt", CodePrompt, ChatPrompt, OwnPrompt)
Chosen = TypeVar("Chosen", CodePrompt, ChatPrompt)


def code_prompts(kinds: Iterable[str] | None = None, n: int | None = None) -> list[CodePrompt]:
    """Give the prompts of these kinds, kind by kind: all of them, or `n` spread evenly.

    Evenly: as many of one kind as of another, as far as it goes, at equal distances in the file.
    """
    return _select(_read(paths.prompts("pocket"), CodePrompt), kinds, n)


def chat_prompts(kinds: Iterable[str] | None = None, n: int | None = None) -> list[ChatPrompt]:
    """Give the prompts of these kinds as `code_prompts` does."""
    return _select(_read(paths.prompts("chat"), ChatPrompt), kinds, n)


def own_file(name: str) -> Path:
    """A file of a reader's own prompts; a relative name counts from the repository's root.

    ValueError if there is no such file.
    """
    path = paths.ROOT / Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {path}, which would hold {FORM}")
    return path


def own_prompts(name: str) -> list[OwnPrompt]:
    """Give all prompts of a reader's own file, one JSON object a line.

    ValueError if there is no such file, if it has no line, or for a line of another form.
    """
    path = own_file(name)
    found = _read(path, OwnPrompt)
    if not found:
        raise ValueError(f"the file of prompts {path} is empty: write {FORM}")
    return found


def _read(path: Path, kind: type[AnyPrompt]) -> list[AnyPrompt]:
    adapter, prompts = TypeAdapter(kind), []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                prompts.append(adapter.validate_json(line))
            except ValidationError as error:
                wrong = error.errors()[0]
                key = ".".join(map(str, wrong["loc"])) or "the line"
                told = f"{paths.label(path)}, line {number}: {key}: {wrong['msg']}"
                raise ValueError(told) from None
    return prompts


def _select(prompts: list[Chosen], kinds: Iterable[str] | None, n: int | None) -> list[Chosen]:
    shelves: dict[str, list[Chosen]] = {}
    for prompt in prompts:
        shelves.setdefault(prompt.kind, []).append(prompt)
    chosen = dict.fromkeys(shelves if kinds is None else kinds)
    if stray := [kind for kind in chosen if kind not in shelves]:
        raise unknown("kind of prompt", stray[0], shelves)
    shares = _shares({kind: len(shelves[kind]) for kind in chosen}, n)
    return [
        shelves[kind][place * len(shelves[kind]) // share]
        for kind, share in shares.items()
        for place in range(share)
    ]


def _shares(sizes: dict[str, int], n: int | None) -> Counter[str]:
    """Deal `n` places round the kinds, one each a turn, until a kind has no more."""
    turns = [(turn, kind) for kind, size in sizes.items() for turn in range(size)]
    if n is not None and not 1 <= n <= len(turns):
        raise ValueError(f"n is {n}: ask for 1 to {len(turns)}, as many as these kinds have")
    return Counter(kind for _, kind in sorted(turns, key=itemgetter(0))[:n])


@final
@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to continue, of some kind."""

    kind: str
    ids: tuple[int, ...]


def chat_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[int, ...]:
    """Put a question into the chat template, ready for an answer.

    The template writes the special tokens itself: encoding its text would add a second BOS.
    """
    messages = [{"role": "user", "content": question}]
    ids: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return tuple(int(token) for token in ids)
