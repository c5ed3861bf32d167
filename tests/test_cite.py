"""Citing what is committed, and tracing what was downloaded."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foredraft import cli, figures, lock, origin, paths, provenance, results
from foredraft.citation import cite
from foredraft.lock import Outdated, md5
from foredraft.origin import read_stamp, trace
from foredraft.provenance import Stamp
from foredraft.results import Claim
from tests.test_figures import TABLE

VALUES = {"entropy": {"cold": 0.123456789, "hot": 2}, "kind": "50% | more_or_less"}
CLAIMS = [Claim("cold", "cold is sharp", "entropy.cold", article=0.1, n=5, spread=0.01)]
RESULT = "data/results/sampling.json"
PICTURE = "figures/sampling/one"


def live_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the repository be the one at this folder, and its committer a reader."""
    places = {"LOCK": "dvc.lock", "CITATION": "CITATION.cff", "PARAMS": "params.yaml"}
    for name, place in {**places, "ROOT": "", "RECORDED": "data/recorded"}.items():
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
        write(root)
        git(root, "init", "-q")
        git(root, "add", "-A")
        git(root, "commit", "-qm", "results")
    return root


@pytest.fixture
def repository(template, tmp_path, monkeypatch):
    """A copy of it, to be changed at will."""
    root = shutil.copytree(template, tmp_path / "repository")
    live_in(root, monkeypatch)
    return root


def write(root: Path) -> None:
    """Results and a figure, a recording that they draw on, and the lock."""
    source = root / "source.txt"
    source.write_text("one")
    stamp = provenance.stamp("sampling", {"seed": 3, "samples": 4}, [source])
    results.write("sampling", TABLE, VALUES, CLAIMS, stamp)
    figure = figures.panels()
    figures.lines(figure.axes[0], TABLE, x="length", y="rate", hue="strategy")
    figures.save(figure, "sampling", "one", stamp)
    machine = {"device": "cpu", "name": "A Processor", "driver": "", "cores": 2}
    kept = {"machine": machine, "date": "2026-11-25", "columns": ["n"], "rows": [{"n": 3}]}
    provenance.write_json(paths.RECORDED / "sampling.cpu.json", kept, stamp)
    made = ["data/results/sampling.csv", RESULT, "figures/sampling"]
    inputs = ["source.txt", "data/recorded/sampling.cpu.json"]
    stage = {
        "cmd": "foredraft run sampling",
        "deps": [{"path": name, "md5": md5(root / name)} for name in inputs],
        "params": {"params.yaml": {"sampling": {"seed": 3}}},
        "outs": [{"path": name, "md5": md5(root / name)} for name in made],
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"sampling": stage}}))


def git(root: Path, *words: str) -> str:
    told = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def fields(bibtex: str) -> dict[str, str]:
    """The fields of an entry whose braces are balanced."""
    assert bibtex.startswith("@misc{")
    plain = re.sub(r"\\[{}]", "", bibtex)
    assert plain.count("{") == plain.count("}")
    return dict(re.findall(r"^  (\w+) = \{(.*)\},$", bibtex, re.MULTILINE))


def test_a_figure_is_cited_with_all_that_made_it(repository):
    found = cite(f"{PICTURE}.png")
    commit = git(repository, "rev-parse", "HEAD")
    assert found.text() == (
        "The foredraft developers (2026). foredraft: speculative decoding, measured, version "
        f"0.1.0. figures/sampling/one.png, stage sampling, commit {commit[:7]}."
    )
    told = fields(found.bibtex())
    assert told["author"] == "{The foredraft developers}"
    assert told["title"] == "{foredraft: speculative decoding, measured}"
    assert (told["year"], told["version"]) == ("2026", "0.1.0")
    assert commit[:7] in told["howpublished"]
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
        }
    ]
    provenance_told = found.provenance()
    for part in (commit, "A Processor", "sampling: {'seed': 3}", document["inputs"]["source.txt"]):
        assert part in provenance_told


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


def test_a_url_of_the_software_is_cited_once_it_has_one(repository):
    assert "url" not in fields(cite(RESULT).bibtex())
    with paths.CITATION.open("a") as file:
        file.write("url: https://example.org/foredraft\n")
    assert fields(cite(RESULT).bibtex())["url"] == "https://example.org/foredraft"
    assert " https://example.org/foredraft. " in cite(RESULT).text()


def test_people_are_cited_by_family_name(repository):
    told = yaml.safe_load(paths.CITATION.read_text())
    told["authors"] = [{"family-names": "Lovelace", "given-names": "Ada"}, {"name": "Others"}]
    paths.CITATION.write_text(yaml.safe_dump(told))
    assert fields(cite(RESULT).bibtex())["author"] == "Lovelace, Ada and {Others}"


@pytest.mark.parametrize(
    ("change", "target", "told"),
    [
        ("data/results/sampling.json", f"{RESULT}#entropy.cold", "it has the MD5"),
        ("figures/sampling/one.png", f"{PICTURE}.png", "it has the MD5"),
        ("figures/sampling/two.png", f"{PICTURE}.png", "it has the MD5"),
    ],
)
def test_what_is_not_what_its_stage_made_is_not_cited(repository, change, target, told):
    with (repository / change).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(Outdated, match=told) as raised:
        cite(target)
    output = "figures/sampling" if "figures" in target else RESULT
    assert f"`git restore {output}`" in str(raised.value)
    assert "`dvc repro sampling` makes it anew" in str(raised.value)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (f"{RESULT}#entropy.cool", "did you mean 'entropy.cold'"),
        ("figures/sampling/on.png", "unknown file of figures/sampling 'on.png': did you mean 'one"),
        ("data/results/samplin.json", f"unknown output of a stage .* did you mean '{RESULT}'"),
        (f"{PICTURE}.png#entropy.cold", "unknown file of results, which have values to cite"),
        ("params.yaml", "unknown output of a stage 'params.yaml'"),
    ],
)
def test_what_cannot_be_cited_says_what_can(repository, target, told):
    with pytest.raises(ValueError, match=told):
        cite(target)


def test_without_git_all_but_the_commit_is_told(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = cite(RESULT)
    assert found.commit is None
    assert found.text().endswith(f"version 0.1.0. {RESULT}, stage sampling.")
    assert "year" not in fields(found.bibtex())


def test_a_file_that_is_not_committed_as_it_is_says_so(repository):
    write(repository)
    (repository / "data/results/sampling.csv").touch()
    assert cite(RESULT).commit.is_changed is False, "the same bytes"
    stamp = provenance.stamp("sampling", {"seed": 4}, [repository / "source.txt"])
    results.write("sampling", TABLE, VALUES, CLAIMS, stamp)
    told = yaml.safe_load(paths.LOCK.read_text())
    for out in told["stages"]["sampling"]["outs"]:
        out["md5"] = md5(repository / out["path"])
    paths.LOCK.write_text(yaml.safe_dump(told))
    found = cite(RESULT)
    assert found.commit.is_changed
    assert "changed since" in found.provenance()


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_downloaded_figure_is_traced_whatever_its_name(repository, tmp_path, ending):
    elsewhere = tmp_path / "downloads" / "picture"
    elsewhere.parent.mkdir()
    shutil.copy(repository / f"{PICTURE}.{ending}", elsewhere)
    found = trace(elsewhere)
    assert found.article is not None
    assert found.article.slug == "sampling"
    assert found.twin == f"{PICTURE}.{ending}"
    assert found.inputs == {"source.txt": "same"}
    assert found.differing["seed"] == 0, "what params.yaml has"
    (repository / "source.txt").write_text("two")
    assert trace(elsewhere).inputs == {"source.txt": "changed"}
    (repository / "source.txt").unlink()
    assert trace(elsewhere).inputs == {"source.txt": "missing"}
    elsewhere.write_bytes(elsewhere.read_bytes() + b"\n")
    assert trace(elsewhere).twin is None


def test_results_tables_and_recordings_are_traced_too(repository):
    for file in (RESULT, "data/results/sampling.csv", "data/recorded/sampling.cpu.json"):
        found = trace(repository / file)
        assert found.twin == file
        assert found.stamp.seed == 3
        told = found.text()
        assert "01 From logits to a token" in told
        assert "seed: 3 (params.yaml: 0)" in told
        assert re.search(r"input +\w{16} source.txt: same", told)


@pytest.mark.parametrize("text", ["γ, (a) \\ ) and ( of 7'", "a\nb\tc", "\u0a28\u280a )("])
def test_whatever_a_stamp_says_comes_back_from_every_format(repository, text):
    """Brackets, bytes that mean a line end, and more than ASCII."""
    stamp = Stamp(what="sampling", params={"text": text}, inputs={}, versions={})
    figures.save(figures.panels(), "sampling", "odd", stamp)
    for ending in ("png", "svg", "pdf"):
        assert read_stamp(paths.figures("sampling") / f"odd.{ending}") == stamp


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is no file"),
        (b"hello", "carries no stamp"),
        (b"%PDF-1.4 nothing", "carries no stamp"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "carries no stamp"),
        (b"<svg", "is no whole SVG file"),
        (b'{"a": 1}', "has no stamp"),
    ],
)
def test_what_has_no_stamp_is_told(tmp_path, content, told):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_stamp(file)


@pytest.fixture
def foredraft(monkeypatch, capsys):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foredraft", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_the_command_cites_in_every_format(foredraft, repository):
    found = cite(RESULT)
    assert foredraft("cite", RESULT, "--format", "text")[:2] == (0, f"{found.text()}\n")
    assert foredraft("cite", RESULT, "--format", "bibtex")[:2] == (0, f"{found.bibtex()}\n")
    for words in (("--format", "json"), ("--json",)):
        code, out, _ = foredraft("cite", RESULT, *words)
        assert (code, json.loads(out)) == (0, found.document())
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


def test_the_command_traces_for_people_and_machines(foredraft, repository):
    code, out, _ = foredraft("trace", str(repository / f"{PICTURE}.svg"))
    assert code == 0
    assert out.startswith("made as    sampling (01 From logits to a token)")
    code, out, _ = foredraft("trace", str(repository / f"{PICTURE}.svg"), "--json")
    assert (code, json.loads(out)["inputs"]) == (0, {"source.txt": "same"})
    assert foredraft("trace", "nowhere.png")[0] == 2


def test_dvc_takes_the_digest_of_folders_and_files_as_we_do():
    """Against what DVC itself wrote into dvc.lock, for all that is committed."""
    made = list(lock._outputs())
    assert any(each.md5.endswith(".dir") for each in made)
    for each in made:
        path = paths.ROOT / each.path
        assert md5(path) == each.md5, each.path


def test_every_committed_figure_carries_the_stamp_of_its_article():
    pictures = [*(paths.ROOT / "figures").glob("*/*.png")]
    assert pictures
    for path in pictures:
        found = origin.read_stamp(path)
        assert found.what == path.parent.name
        assert read_stamp(path.with_suffix(".svg")) == read_stamp(path.with_suffix(".pdf")) == found


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
            expected |= {stem + name: told for name, told in beside.items() if told is not None}
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
    stamp = Stamp(what="sampling", params={}, inputs={}, versions={})
    results.write("sampling", TABLE, VALUES, CLAIMS, stamp)
    defined = macros(results.macros(results.findings()))
    assert defined["sampling/entropy.cold@spread"] == "0.01"
    assert defined["sampling/entropy.cold@n"] == "5"
    assert defined["sampling/entropy.cold@article"] == "0.1"
    assert "sampling/kind@n" not in defined
