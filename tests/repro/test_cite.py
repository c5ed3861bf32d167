"""Citing what is committed, and tracing what was downloaded."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.cli import app
from foredraft.files import digest
from foredraft.repro import claims as results
from foredraft.repro import pipeline, provenance, values
from foredraft.repro.cite import cite
from foredraft.repro.claims import Claim
from foredraft.repro.origin import find, trace
from foredraft.repro.pipeline import Outdated, md5
from foredraft.repro.provenance import Mark, Stamp
from foredraft.viz import figures
from tests.viz.test_figures import TABLE, curves

VALUES = {"entropy": {"cold": 0.123456789, "hot": 2}, "kind": "50% | more_or_less"}
CLAIMS = [Claim("cold", "cold is sharp", "entropy.cold", article=0.1, n=5, spread=0.01)]
RESULT = "data/results/sampling.json"
RECORD = "data/results/sampling.stamp.json"
PAGE = "RESULTS.md"
RECORDING = "data/recorded/sampling.cpu.json"
PICTURE, COMPUTED = "figures/sampling/one.png", "figures/sampling/two.png"
"""A figure of the recording, and one of what was computed."""


def live_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the repository be the one at this folder, and its committer a reader."""
    places = {"LOCK": "dvc.lock", "CITATION": "CITATION.cff", "PARAMS": "params.yaml"}
    places |= {"ROOT": "", "RECORDED": "data/recorded", "NOTEBOOKS": "notebooks"}
    for name, place in places.items():
        patch.setattr(paths, name, root / place)
    patch.delenv(paths.OUTPUT_VARIABLE, raising=False)
    patch.chdir(root)
    for name in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{name}_NAME", "a reader")
        patch.setenv(f"GIT_{name}_EMAIL", "reader@example.org")
        patch.setenv(f"GIT_{name}_DATE", "2026-11-27T12:00:00Z")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A repository with one article's results and figure, locked and committed."""
    root = tmp_path_factory.mktemp("template") / "repository"
    root.mkdir()
    for file in (paths.CITATION, paths.PARAMS):
        shutil.copy(file, root)
    with pytest.MonkeyPatch.context() as patch:
        live_in(root, patch)
        for file in (root / "source.txt", root / "timed.txt", paths.notebook("sampling")):
            file.parent.mkdir(exist_ok=True)
            file.write_text("1\n")
        record(root)
        write()
        git(root, "init", "-q")
        commit(root)
    return root


@pytest.fixture
def repository(template, tmp_path, monkeypatch):
    """A copy of it, to be changed at will."""
    root = shutil.copytree(template, tmp_path / "repository")
    live_in(root, monkeypatch)
    return root


def record(root: Path) -> None:
    """Keep a recording that was made with `timed.txt`."""
    stamp = provenance.stamp("sampling", {"seed": 3}, [root / "timed.txt"])
    machine = {"device": "cpu", "name": "A Processor", "driver": "", "cores": 2}
    kept = {"machine": machine, "date": "2026-11-25", "columns": ["n"], "rows": [{"n": 3}]}
    provenance.write_json(root / RECORDING, kept, stamp)


def write(found=VALUES, table=TABLE, **params) -> None:
    """Results and two figures, one of a recording, and the lock."""
    root = paths.ROOT
    given = {"seed": 3, "samples": 4, **params}
    made = Outputs("sampling", given, [root / "source.txt", root / RECORDING])
    made.save(curves(table), "one", recorded=root / RECORDING)
    made.save(curves(table.assign(rate=table["rate"] + 1)), "two")
    made.finish(table, found, CLAIMS, recorded={"entropy": root / RECORDING})
    outs = ["data/results/sampling.csv", "data/results/sampling.figures.json", RESULT, RECORD]
    inputs = ["source.txt", RECORDING]
    stage = {
        "cmd": "foredraft run sampling",
        "deps": [{"path": name, "md5": md5(root / name)} for name in inputs],
        "params": {"params.yaml": {"sampling": {"seed": 3}}},
        "outs": [{"path": name, "md5": md5(root / name)} for name in (*outs, "figures/sampling")],
    }
    (root / PAGE).write_text("all claims")
    page = {
        "cmd": "foredraft results",
        "deps": [{"path": RESULT, "md5": md5(root / RESULT)}],
        "outs": [{"path": PAGE, "md5": md5(root / PAGE)}],
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"sampling": stage, "results": page}}))


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "results")
    return git(root, "rev-parse", "HEAD")


def git(root: Path, *words: str) -> str:
    stated = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return stated.stdout.strip()


def fields(bibtex: str) -> dict[str, str]:
    """The fields of an entry whose braces are balanced."""
    assert bibtex.startswith("@misc{")
    plain = re.sub(r"\\[{}]", "", bibtex)
    assert plain.count("{") == plain.count("}")
    return dict(re.findall(r"^  (\w+) = \{(.*)\},$", bibtex, re.MULTILINE))


def test_a_figure_is_cited_with_all_that_made_it(repository):
    found = cite(PICTURE)
    commit = git(repository, "rev-parse", "HEAD")
    assert found.text() == (
        "The foredraft developers (2026). foredraft: speculative decoding, measured, version "
        f"0.1.0. figures/sampling/one.png, stage sampling, commit {commit[:7]}."
    )
    stated = fields(found.bibtex())
    assert stated["author"] == "{The foredraft developers}"
    assert stated["title"] == "{foredraft: speculative decoding, measured}"
    assert (stated["year"], stated["version"]) == ("2026", "0.1.0")
    assert commit[:7] in stated["howpublished"]
    document = json.loads(json.dumps(found.document()))
    assert document["commit"] == {"digest": commit, "date": "2026-11-27", "is_changed": False}
    assert document["stage"] == "sampling"
    assert document["command"] == "foredraft run sampling"
    assert document["parameters"] == {"sampling": {"seed": 3}}
    assert document["inputs"]["source.txt"] == md5(repository / "source.txt")
    assert document["measured"] == [
        {
            "file": "data/recorded/sampling.cpu.json",
            "machine": "A Processor, 2 cores",
            "date": "2026-11-25",
            "changed": [],
        }
    ]
    assert document["record"]["params"] == {"seed": 3, "samples": 4}
    facts = found.provenance()
    for part in (
        *(commit, "A Processor", "sampling: {'seed': 3}", document["inputs"]["source.txt"]),
        *(RECORD, document["record"]["processor"]["name"], "notebooks/01_sampling.py"),
    ):
        assert part in facts


def test_a_value_is_cited_with_its_claim_and_spread(repository):
    found = cite(f"{RESULT}#entropy.cold")
    assert f"{RESULT}#entropy.cold: 0.1235 ± 0.01 (n = 5), stage" in found.text()
    note = fields(found.bibtex())["note"]
    assert note == rf"{RESULT}\#entropy.cold: 0.1235 $\pm$ 0.01 (n = 5)"
    assert found.document()["value"] == {
        "key": "entropy.cold",
        "value": 0.123457,
        "claim": "cold is sharp",
        "spread": 0.01,
        "n": 5,
    }
    assert "#kind: 50% | more_or_less, stage" in cite(f"{RESULT}#kind").text()
    assert r"50\% | more\_or\_less" in cite(f"{RESULT}#kind").bibtex()


@pytest.mark.parametrize(
    ("target", "measured"),
    [
        (f"{RESULT}#entropy.cold", True),
        (f"{RESULT}#kind", False),
        (PICTURE, True),
        (COMPUTED, False),
        (RESULT, True),
        ("data/results/sampling.csv", True),
        (PAGE, True),
    ],
)
def test_the_recordings_behind_a_number_are_named_and_no_others(repository, target, measured):
    """Behind a whole file of results are all of its stage, behind the page of claims all of all."""
    found = cite(target)
    assert [each.file for each in found.measured] == [RECORDING] * measured
    assert ("measured   on A Processor, 2 cores, 2026-11-25" in found.provenance()) == measured
    assert found.outdated == ()
    (repository / "timed.txt").write_text("2")
    changed = cite(target)
    assert [each.changed for each in changed.outdated] == [("timed.txt",)] * measured
    assert ("made by older sources: 1 changed since" in changed.provenance()) == measured


def test_a_recording_stands_behind_its_keys_and_not_behind_those_that_begin_alike(repository):
    write({**VALUES, "entropy_of_text": 1.5})
    assert cite(f"{RESULT}#entropy_of_text").measured == ()
    assert len(cite(f"{RESULT}#entropy.hot").measured) == 1


def test_a_url_of_the_software_is_cited_once_it_has_one(repository):
    assert "url" not in fields(cite(RESULT).bibtex())
    with paths.CITATION.open("a") as file:
        file.write("url: https://example.org/foredraft\n")
    assert fields(cite(RESULT).bibtex())["url"] == "https://example.org/foredraft"
    assert " https://example.org/foredraft. " in cite(RESULT).text()


def test_people_are_cited_by_family_name(repository):
    stated = yaml.safe_load(paths.CITATION.read_text())
    stated["authors"] = [{"family-names": "Lovelace", "given-names": "Ada"}, {"name": "Others"}]
    paths.CITATION.write_text(yaml.safe_dump(stated))
    assert fields(cite(RESULT).bibtex())["author"] == "Lovelace, Ada and {Others}"


@pytest.mark.parametrize(
    ("change", "target", "stated"),
    [
        ("data/results/sampling.json", f"{RESULT}#entropy.cold", "it has the MD5"),
        (PICTURE, PICTURE, "it has the MD5"),
        (COMPUTED, PICTURE, "it has the MD5"),
        ("figures/sampling/three.png", PICTURE, "it has the MD5"),
    ],
)
def test_what_is_not_what_its_stage_made_is_not_cited(repository, change, target, stated):
    with (repository / change).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(Outdated, match=stated) as raised:
        cite(target)
    output = "figures/sampling" if "figures" in target else RESULT
    assert f"`git restore {output}`" in str(raised.value)
    assert "`dvc repro sampling` makes it anew" in str(raised.value)


@pytest.mark.parametrize(
    ("target", "stated"),
    [
        (f"{RESULT}#entropy.cool", "did you mean 'entropy.cold'"),
        ("figures/sampling/on.png", "unknown file of figures/sampling 'on.png': did you mean 'one"),
        ("data/results/samplin.json", f"unknown output of a stage .* did you mean '{RESULT}'"),
        (f"{PICTURE}#entropy.cold", "unknown file of results, which have values to cite"),
        ("params.yaml", "unknown output of a stage 'params.yaml'"),
    ],
)
def test_what_cannot_be_cited_says_what_can(repository, target, stated):
    with pytest.raises(ValueError, match=stated):
        cite(target)


def test_without_git_all_but_the_commit_is_cited(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = cite(RESULT)
    assert found.commit is None
    assert found.text().endswith(f"version 0.1.0. {RESULT}, stage sampling.")
    assert "year" not in fields(found.bibtex())


def test_a_file_that_is_not_committed_as_it_is_says_so(repository):
    write()
    (repository / "data/results/sampling.csv").touch()
    assert cite(RESULT).commit.is_changed is False, "the same bytes"
    write({**VALUES, "kind": "another"})
    found = cite(RESULT)
    assert found.commit.is_changed
    assert "changed since" in found.provenance()


def downloaded(tmp_path: Path, content: bytes, name: str = "picture") -> Path:
    """A file with this content, elsewhere."""
    file = tmp_path / "downloads" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return file


def vector(ending: str, folder: Path) -> Path:
    """The first figure once more, in another format."""
    figure = curves(TABLE)
    mark = Mark("sampling", "one", values.digest(figure.arguments))
    (path,) = figures.save(figure, folder, mark, [ending])
    return path


@pytest.mark.parametrize("ending", figures.FORMATS)
def test_a_downloaded_figure_is_traced_whatever_its_name(repository, tmp_path, ending):
    path = repository / PICTURE if ending == "png" else vector(ending, tmp_path)
    elsewhere = downloaded(tmp_path, path.read_bytes())
    found = trace(elsewhere)
    assert found.article is not None
    assert found.article.slug == "sampling"
    assert (found.record, found.commit) == (RECORD, None)
    assert found.processor == str(cite(RESULT).record.processor)
    assert found.twin == (PICTURE if ending == "png" else None)
    files = ("notebooks/01_sampling.py", RECORDING, "source.txt")
    assert found.inputs == dict.fromkeys(files, "same")
    assert found.differing == {"seed": 0}, "what params.yaml has"
    (repository / "source.txt").write_text("two")
    assert trace(elsewhere).inputs["source.txt"] == "changed"
    (repository / "source.txt").unlink()
    assert trace(elsewhere).inputs["source.txt"] == "missing"
    elsewhere.write_bytes(elsewhere.read_bytes() + b"\n")
    assert trace(elsewhere).twin is None


@pytest.mark.parametrize("file", [RESULT, RECORD, "data/results/sampling.figures.json"])
def test_results_records_and_tables_are_traced_too(repository, file):
    for name in (file, "data/results/sampling.csv"):
        found = trace(repository / name)
        assert found.twin == name
        assert Path(found.record).name == Path(RECORD).name
        text = found.text()
        assert "01 From logits to a token" in text
        assert "seed: 3 (params.yaml: 0)" in text
        assert re.search(r"input +\w{16} source.txt: same", text)


def test_a_recording_is_traced_by_its_own_stamp(repository):
    found = trace(repository / RECORDING)
    assert (found.twin, found.record) == (RECORDING, "sampling.cpu.json")
    assert found.inputs == {"timed.txt": "same"}
    assert found.stamp.seed == 3


def test_a_table_is_traced_by_its_content_where_nothing_is_beside_it(repository, tmp_path):
    content = (repository / "data/results/sampling.csv").read_bytes()
    for name in ("sampling (1).csv", "any.csv"):
        found = trace(downloaded(tmp_path, content, name))
        assert found.record == RECORD


def test_what_a_run_left_elsewhere_is_traced_to_the_record_beside_it(
    repository, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(out))
    made = Outputs("sampling", {"seed": 9})
    made.save(curves(TABLE.head(9)), "one")
    made.finish(TABLE.head(9), {**VALUES, "kind": "another"}, CLAIMS)
    monkeypatch.delenv(paths.OUTPUT_VARIABLE)
    for file in (PICTURE, RESULT, "data/results/sampling.csv"):
        found = trace(out / file)
        assert found.stamp.seed == 9
        assert found.record.endswith("/sampling.stamp.json")
        assert found.twin is None


@pytest.mark.parametrize("file", [PICTURE, RESULT, "data/results/sampling.csv"])
def test_a_file_of_an_earlier_commit_is_traced_to_that_commit(repository, tmp_path, file):
    old = downloaded(tmp_path, (repository / file).read_bytes(), f"old{Path(file).suffix}")
    first = git(repository, "rev-parse", "HEAD")
    table = TABLE.assign(rate=TABLE["rate"] * 2)
    write({**VALUES, "kind": "another"}, table, seed=4)
    second = commit(repository)
    assert first != second
    found = trace(old)
    assert (found.record, found.commit) == (RECORD, first)
    assert found.stamp.seed == 3
    assert found.twin is None
    assert f"{RECORD} of commit {first}" in found.text()
    assert (trace(repository / file).commit, trace(repository / file).stamp.seed) == (None, 4)


def test_without_history_a_file_of_an_earlier_commit_is_not_known(
    repository, tmp_path, monkeypatch
):
    old = downloaded(tmp_path, (repository / PICTURE).read_bytes())
    write(table=TABLE.head(9))
    commit(repository)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="which no record has, neither in this checkout nor"):
        trace(old)


def saved_as_before(folder: Path, stamp: Stamp) -> list[Path]:
    """A figure in every format, and a table, with the whole stamp in each file."""
    text, written = stamp.to_json(), []
    about = {"png": {"Provenance": text}, "svg": {"Description": text}, "pdf": {"Keywords": text}}
    figure = curves(TABLE.head(9))
    for ending, metadata in about.items():
        written.append(folder / f"before.{ending}")
        figure.savefig(written[-1], metadata=metadata)
    figures.plt.close(figure)
    provenance.write_table(folder / "before.csv", TABLE, stamp)
    return [*written, folder / "before.csv", folder / "before.json"]


def test_files_of_former_versions_are_traced_by_the_stamp_inside(repository, tmp_path):
    stamp = Stamp(
        what="sampling",
        params={"seed": 3},
        inputs={"source.txt": digest(repository / "source.txt"), "src/gone.py": "0" * 16},
        versions={"torch": "2"},
        seed=3,
    )
    for path in saved_as_before(tmp_path, stamp):
        found = trace(path)
        assert found.stamp == stamp
        assert found.inputs == {"source.txt": "same", "src/gone.py": "missing"}
        holder = path.with_suffix(".json") if path.suffix == ".csv" else path
        assert found.record == holder.name
        assert (found.commit, found.processor) == (None, None)


@pytest.mark.parametrize("text", ["γ, (a) \\ ) and ( of 7'", "a\nb\tc", "\u0a28\u280a )("])
def test_whatever_a_former_stamp_says_comes_back_from_every_format(tmp_path, text):
    """Brackets, bytes that mean a line end, and more than ASCII."""
    stamp = Stamp(what="sampling", params={"text": text}, inputs={}, versions={})
    for path in saved_as_before(tmp_path, stamp):
        assert find(path).stamp == stamp


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file"),
        (b"", "carries no stamp"),
        (b"hello", "carries no stamp"),
        (b"%PDF-1.4 nothing", "carries no stamp"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "carries no stamp"),
        (b"<svg", "is not a whole SVG file"),
        (b'{"a": 1}', "has no stamp"),
        (b'{"a": 1', "is not a whole JSON file"),
        (b"\x89PNG\r\n\x1a\n", "is not a whole PNG file"),
    ],
)
def test_what_has_no_stamp_says_so(tmp_path, content, message):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find(file)


def test_a_picture_that_was_saved_again_carries_no_stamp(repository, tmp_path):
    again = tmp_path / "one.png"
    with figures.Image.open(repository / PICTURE) as image:
        image.convert("RGB").save(again)
    with pytest.raises(ValueError, match=r"one\.png carries no stamp: .* saves them again"):
        trace(again)


def test_a_figure_among_those_of_another_article_is_refused(repository):
    there = repository / "figures" / "bert" / "one.png"
    there.parent.mkdir()
    shutil.copy(repository / PICTURE, there)
    message = "carries the stamp of the article sampling, but lies among the files of bert"
    with pytest.raises(ValueError, match=message):
        trace(there)


@pytest.mark.parametrize(
    ("article", "message"),
    [
        ("sampling", f"one.png has the digest {'f' * 16}, which no record has"),
        ("gone", "one.png carries the stamp of an article 'gone', which this checkout does not"),
    ],
)
def test_a_mark_that_leads_nowhere_is_refused(repository, tmp_path, article, message):
    (path,) = figures.save(curves(TABLE.head(9)), tmp_path, Mark(article, "one", "f" * 16))
    with pytest.raises(ValueError, match=message):
        trace(path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (RESULT, "sampling.json was edited after it was written"),
        ("data/results/sampling.figures.json", "sampling.figures.json was edited"),
        ("data/results/sampling.csv", "sampling.csv is not the table of sampling.json"),
    ],
)
def test_a_file_that_was_edited_by_hand_is_named(repository, file, message):
    path = repository / file
    text = path.read_text()
    at = re.search(r"\d(?=\D*$)", text).start()
    path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
    with pytest.raises(ValueError, match=message):
        trace(path)


def test_a_table_edited_elsewhere_is_of_no_record(repository, tmp_path):
    content = (repository / "data/results/sampling.csv").read_bytes()
    with pytest.raises(ValueError, match=r"sampling\.csv has the digest \w{16}, which no record"):
        trace(downloaded(tmp_path, content.replace(b"1", b"2", 1), "sampling.csv"))


@pytest.mark.parametrize("file", [PICTURE, RESULT, RECORD, "data/results/sampling.figures.json"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_a_file_that_was_cut_short_is_named(repository, file, kept):
    path = repository / file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)} is not a whole "):
        trace(path)


def test_a_record_that_was_cut_short_is_named_for_what_leads_to_it(repository):
    (repository / RECORD).write_text("{")
    for file in (PICTURE, RESULT):
        with pytest.raises(ValueError, match=r"sampling\.stamp\.json is not a whole record"):
            trace(repository / file)


def test_a_table_of_somebody_else_is_no_sweep(repository, tmp_path):
    elsewhere = downloaded(tmp_path, (repository / PICTURE).read_bytes())
    (elsewhere.parent / "table.json").write_text('{"a": 1}')
    (tmp_path / "table.json").write_text("{")
    write(table=TABLE.head(9))
    assert trace(elsewhere).commit == git(repository, "rev-parse", "HEAD")


@pytest.fixture
def foredraft(monkeypatch, capsys):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foredraft", *words])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_the_command_cites_in_every_format(foredraft, repository):
    found = cite(RESULT)
    assert foredraft("cite", RESULT, "--format", "text")[:2] == (0, f"{found.text()}\n")
    assert foredraft("cite", RESULT, "--format", "bibtex")[:2] == (0, f"{found.bibtex()}\n")
    for words in (("--format", "json"), ("--json",)):
        code, out, _ = foredraft("cite", RESULT, *words)
        assert (code, json.loads(out)) == (0, json.loads(json.dumps(found.document())))
    whole = "\n\n".join((found.text(), found.bibtex(), found.provenance()))
    assert foredraft("cite", RESULT)[:2] == (0, f"{whole}\n")
    code, _, err = foredraft("cite", RESULT, "--format", "bibtx")
    assert code == 2
    assert "did you mean 'bibtex'" in err


def test_the_command_ends_with_1_for_what_is_outdated(foredraft, repository):
    (repository / RESULT).unlink()
    code, out, err = foredraft("cite", RESULT)
    assert (code, out) == (1, "")
    assert "error: data/results/sampling.json is not what the stage sampling made" in err
    assert "dvc repro sampling" in err


@pytest.mark.parametrize("form", [(), ("--format", "text"), ("--json",)])
def test_the_command_ends_with_1_for_a_number_of_an_older_recording(foredraft, repository, form):
    """It cites all the same; what was computed has no recording behind it."""
    (repository / "timed.txt").write_text("2")
    for target in (f"{RESULT}#entropy.cold", PICTURE, PAGE):
        code, out, err = foredraft("cite", target, *form)
        assert code == 1
        assert target in out
        assert f"error: {RECORDING} of 2026-11-25 was measured with older sources" in err
        assert "1 have changed since, timed.txt among them" in err
        assert "`foredraft record sampling` measures it with those of today" in err
    for target in (f"{RESULT}#kind", COMPUTED):
        code, out, err = foredraft("cite", target, *form)
        assert (code, err) == (0, "")
        assert target in out


def test_the_command_traces_for_people_and_machines(foredraft, repository):
    code, out, _ = foredraft("trace", PICTURE)
    assert code == 0
    assert out.startswith("made as    sampling (01 From logits to a token)")
    assert f"\nrecord     {RECORD}\nprocessor  " in out
    code, out, _ = foredraft("trace", PICTURE, "--json")
    stated = json.loads(out)
    assert (code, stated["inputs"]["source.txt"], stated["record"]) == (0, "same", RECORD)
    code, out, err = foredraft("trace", "nowhere.png")
    assert (code, out) == (2, "")
    assert "nowhere.png is no file" in err


def test_dvc_takes_the_digest_of_folders_and_files_as_we_do():
    """Against what DVC itself wrote into dvc.lock, for all that is committed."""
    made = list(pipeline._outputs())
    assert any(each.md5.endswith(".dir") for each in made)
    for each in made:
        path = paths.ROOT / each.path
        assert md5(path) == each.md5, each.path


def test_every_committed_figure_leads_to_the_record_of_its_article():
    pictures = [*(paths.ROOT / "figures").glob("*/*.png")]
    assert pictures
    for path in pictures:
        slug = path.parent.name
        found = find(path)
        assert (found.stamp.what, found.commit) == (slug, None)
        assert found.record == f"data/results/{slug}.stamp.json"


ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (paths.ROOT / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\|.*\]\(data/results/", line)
]
"""The table of RESULTS.md: claim, article, ours, n, command, value."""


def test_every_number_in_the_page_of_results_is_found_at_its_file_and_key():
    assert len(ROWS) > 10
    for _, article, ours, n, command, value in ROWS:
        file, key = re.match(r"\[`(.+)#(.+)`\]\(\1\)", value).groups()
        document = json.loads((paths.ROOT / file).read_text(encoding="utf-8"))
        number, _, spread = ours.partition(" ± ")
        found = results.flattened(document["values"])[key]
        assert results.shown(found) == number.replace("\\|", "|")
        claims = [claim for claim in document["claims"] if claim["key"] == key]
        beside = [
            (results.shown(claim["article"]), str(claim["n"]), results.shown(claim["spread"]))
            for claim in claims
        ]
        assert (article, n, spread or "–") in beside
        assert command == f"`dvc repro -f {Path(file).stem}`"


UNESCAPED = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    **{f"\\{special}": special for special in "#$%&_{}"},
}


def plain(tex: str) -> str:
    """What TeX would set; a special character that is not escaped is an error."""
    pattern = "|".join(map(re.escape, UNESCAPED))
    assert not re.search(r"[\\#$%&_{}^~]", re.sub(pattern, "", tex)), tex
    return re.sub(pattern, lambda found: UNESCAPED[found[0]], tex)


def macros(text: str) -> dict[str, str]:
    """The definitions in results.tex, parsed line by line; each name is defined once."""
    lines = [line for line in text.splitlines() if line.startswith(r"\expandafter")]
    form = r"\\expandafter\\def\\csname res@([^\\{}]+)\\endcsname\{(.*)\}"
    pairs = [re.fullmatch(form, line).groups() for line in lines]
    assert len(dict(pairs)) == len(pairs)
    return {name: plain(value) for name, value in pairs}


def test_there_is_a_macro_for_every_number_and_it_reads_as_that_number():
    """Parsed, not compiled: Debian's TeX is too heavy for a test."""
    found = results.findings()
    defined = macros(results.macros(found))
    expected = {}
    for each in found:
        expected |= {f"{each.article.slug}/{key}": value for key, value in each.values.items()}
        for claim in each.claims:
            beside = {"spread": claim.spread, "n": claim.n, "article": claim.article}
            stem = f"{each.article.slug}/{claim.key}@"
            expected |= {
                stem + name: stated for name, stated in beside.items() if stated is not None
            }
    assert set(defined) == set(expected)
    for name, value in expected.items():
        if isinstance(value, float):
            assert float(defined[name]) == pytest.approx(value, rel=5e-6)
        else:
            assert defined[name] == str(value)


def test_every_special_character_is_escaped_for_tex():
    odd = "a\\b{c}#$%&_^~"
    assert plain(results.tex(odd)) == odd


def test_a_claims_numbers_have_macros_of_their_own(outputs):
    Outputs("sampling", {}).finish(TABLE, VALUES, CLAIMS)
    defined = macros(results.macros(results.findings()))
    assert defined["sampling/entropy.cold@spread"] == "0.01"
    assert defined["sampling/entropy.cold@n"] == "5"
    assert defined["sampling/entropy.cold@article"] == "0.1"
    assert "sampling/kind@n" not in defined


def test_results_that_are_called_like_another_article_s_are_refused(repository, tmp_path):
    other = tmp_path / "bert.json"
    shutil.copy(repository / RESULT, other)
    with pytest.raises(ValueError, match="sampling, but lies among the files of bert"):
        trace(other)


def test_a_picture_with_a_text_of_somebody_else_s_carries_no_stamp(tmp_path):
    about = PngInfo()
    about.add_text("Provenance", "painted by hand")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=about)
    with pytest.raises(ValueError, match="carries no stamp"):
        trace(tmp_path / "a.png")
