"""The prompts are what they are said to be: enough of each kind, found where they point, ours."""

import json
import re
from collections import Counter
from dataclasses import replace
from importlib import metadata

import pytest
from tokenizers import Tokenizer

from foredraft import paths
from foredraft.prompts import (
    CHAT_KINDS,
    CODE_KINDS,
    OwnPrompt,
    chat_prompts,
    code_prompts,
    own_prompts,
)
from foredraft.training import corpus

CODE = code_prompts()
FILES = {document.path: document.text for document in corpus.documents(corpus.HELD_OUT_PACKAGE)}
CODE_KEYS = ["id", "kind", "package", "version", "file", "first_line", "last_line", "sha256"]

every_code_prompt = pytest.mark.parametrize("prompt", CODE, ids=lambda prompt: prompt.id)
both_sets = pytest.mark.parametrize(
    ("prompts", "kinds"), [(code_prompts, CODE_KINDS), (chat_prompts, CHAT_KINDS)]
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(paths.model("pocket-llama") / "tokenizer.json"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that takes the place of our files of prompts."""
    monkeypatch.setattr(paths, "PROMPTS", tmp_path)
    return tmp_path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package, `spoken` 2.0, whose one file has three lines."""
    (tmp_path / "spoken-2.0.dist-info").mkdir()
    header = "Metadata-Version: 2.1\nName: spoken\nVersion: 2.0\n"
    (tmp_path / "spoken-2.0.dist-info" / "METADATA").write_text(header, encoding="utf-8")
    (tmp_path / "spoken").mkdir()
    (tmp_path / "spoken" / "words.py").write_bytes(b"one = 1\r\ntwo = 2\r\nthree = 3\r\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = "a8c991e1b8968140"
    place = {"package": "spoken", "version": "2.0", "file": "spoken/words.py"}
    return replace(CODE[0], **place, first_line=2, last_line=3, sha256=digest)


def lines(name):
    return paths.prompts(name).read_text(encoding="utf-8").splitlines()


FIRST = {name: json.loads(lines(name)[0]) for name in ("pocket", "chat")}


def record(name, **changed):
    return json.dumps(FIRST[name] | changed) + "\n"


@both_sets
def test_there_are_sixty_prompts_and_ten_of_each_kind(prompts, kinds):
    counts = Counter(prompt.kind for prompt in prompts())
    assert set(counts) == set(kinds)
    assert min(counts.values()) >= 10
    assert counts.total() >= 60


def test_no_two_prompts_share_an_id_or_a_text():
    ids = [prompt.id for prompt in (*CODE, *chat_prompts())]
    texts = [*(prompt.text() for prompt in CODE), *(prompt.turns for prompt in chat_prompts())]
    assert len(set(ids)) == len(ids)
    assert len(set(texts)) == len(texts)


@every_code_prompt
def test_a_code_prompt_is_read_from_its_lines(prompt):
    chosen = FILES[prompt.file].split("\n")[prompt.first_line - 1 : prompt.last_line]
    assert prompt.text() == "".join(f"{line}\n" for line in chosen)


@every_code_prompt
def test_a_code_prompt_is_short_and_has_a_continuation(prompt, tokenizer):
    rest = FILES[prompt.file].split("\n", prompt.last_line)[prompt.last_line]
    assert 48 <= len(tokenizer.encode(prompt.text()).ids) <= 160
    assert len(tokenizer.encode(rest).ids) >= 128


def test_code_prompts_come_from_files_that_no_model_was_trained_on():
    trained = {
        file.as_posix() for each in corpus.TRAIN_PACKAGES for file in metadata.files(each) or []
    }
    assert {prompt.package for prompt in CODE} == {corpus.HELD_OUT_PACKAGE}
    assert not trained & {prompt.file for prompt in CODE}


def test_code_prompts_are_from_the_version_that_the_corpus_names():
    versions = {row["package"]: row["version"] for row in json.loads(paths.CORPUS.read_bytes())}
    assert all(prompt.version == versions[prompt.package] for prompt in CODE)


def test_no_foreign_text_is_shipped():
    for line in lines("pocket"):
        row = json.loads(line)
        assert list(row) == CODE_KEYS
        assert re.fullmatch(r"[0-9a-f]{16}", row["sha256"])
        assert all(isinstance(row[key], int) for key in ("first_line", "last_line"))
        assert not any(re.search(r"\s", row[key]) for key in ("id", "package", "version", "file"))


def test_only_a_conversation_has_a_second_turn():
    for prompt in chat_prompts():
        assert len(prompt.turns) == (2 if prompt.kind == "conversation" else 1)
        assert all(turn == turn.strip() != "" for turn in prompt.turns)


@both_sets
def test_a_selection_has_as_many_of_each_kind_as_far_as_it_goes(prompts, kinds):
    for n in (1, 5, 6, 7, 13, 36, 59, 60):
        chosen = prompts(n=n)
        counts = Counter(prompt.kind for prompt in chosen)
        assert len({prompt.id for prompt in chosen}) == n
        assert max(counts.values()) - min(counts[kind] for kind in kinds) <= 1


def test_a_selection_is_spread_over_its_kind_and_always_the_same():
    chosen = code_prompts(["table"], n=4)
    assert [prompt.id for prompt in chosen] == ["table-01", "table-04", "table-07", "table-10"]
    assert chosen == code_prompts(["table"], n=4)


def test_kinds_come_in_the_order_asked_for():
    kinds = [prompt.kind for prompt in chat_prompts(["retrieval", "question"], n=3)]
    assert kinds == ["retrieval", "retrieval", "question"]


def test_a_kind_that_runs_out_leaves_its_places_to_the_others(folder):
    kinds = ["question", *["retrieval"] * 4]
    rows = [record("chat", id=str(place), kind=kind) for place, kind in enumerate(kinds)]
    (folder / "chat.jsonl").write_text("".join(rows), encoding="utf-8")
    assert [prompt.id for prompt in chat_prompts(n=4)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("n", [0, -1, 13])
def test_more_prompts_than_there_are_and_none_are_refused(n):
    with pytest.raises(ValueError, match=f"n is {n}: ask for 1 to 12"):
        code_prompts(["table"], n=n)


@both_sets
def test_an_unknown_kind_is_refused_with_the_known_ones(prompts, kinds):
    with pytest.raises(ValueError, match=f"unknown kind of prompt 'sonnet'.*{kinds[0]}"):
        prompts([kinds[0], "sonnet"])


def test_line_ends_of_an_installation_do_not_matter(package):
    assert package.text() == "two = 2\nthree = 3\n"


def test_another_version_is_refused_with_both_versions(package):
    with pytest.raises(ValueError, match=r"spoken 1\.0.*spoken 2\.0 is installed.*make setup"):
        replace(package, version="1.0").text()


def test_a_package_that_is_not_installed_is_refused(package):
    with pytest.raises(ValueError, match=r"no-such-package is not installed.*make setup"):
        replace(package, package="no-such-package").text()


def test_a_file_that_is_missing_is_refused(package):
    with pytest.raises(ValueError, match=r"spoken/verbs\.py.*missing.*make setup"):
        replace(package, file="spoken/verbs.py").text()


@pytest.mark.parametrize("changed", [{"first_line": 1}, {"last_line": 9}, {"sha256": "0" * 16}])
def test_text_that_has_changed_is_refused(package, changed):
    with pytest.raises(ValueError, match=r"spoken 2\.0.*have changed.*make setup"):
        replace(package, **changed).text()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("\n", "the line: Invalid JSON"),
        ("[]\n", "the line"),
        (record("pocket", kind="sonnet"), "kind: Input should be 'function'"),
        (record("pocket", first_line="3"), "first_line: Input should be a valid integer"),
        (record("pocket", text="for i in"), "text: Unexpected keyword argument"),
        (record("pocket").replace('"file"', '"path"'), "file: Field required"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(folder, line, told):
    (folder / "pocket.jsonl").write_text(record("pocket") + line, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"pocket\.jsonl, line 2: {told}"):
        code_prompts()


def test_a_turn_that_is_no_text_is_refused(folder):
    (folder / "chat.jsonl").write_text(record("chat", turns=["?", 1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"chat\.jsonl, line 1: turns\.1: .* valid string"):
        chat_prompts()


def test_own_prompts_are_all_lines_of_a_file_wherever_it_lies(tmp_path, monkeypatch):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "a"}\n{"text": "why?", "kind": "question", "chat": true}\n')
    expected = [OwnPrompt("a"), OwnPrompt("why?", "question", True)]
    assert own_prompts(str(file)) == expected
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert own_prompts("mine.jsonl") == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"no file of prompts .*mine\.jsonl, which would hold one JSON object a line"),
        ("", "is empty: write one JSON object a line"),
        ('{"text": ""}\n', r"line 1: text: .*at least 1 character"),
        ('{"text": "a"}\n{"turns": ["a"]}\n', "line 2: "),
        ("def fib(n):\n", "line 1: the line: "),
    ],
)
def test_a_file_of_own_prompts_that_is_none_is_refused(tmp_path, content, told):
    file = tmp_path / "mine.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=told):
        own_prompts(str(file))
