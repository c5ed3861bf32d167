"""The example in docs/adding_an_article.md, followed to the letter in a copy of the repository."""

import json
import re
import shutil
import subprocess
import tomllib

import nbformat
import pytest
import yaml

from foredraft import paths
from tests.checkout import Checkout

PAGE = (paths.ROOT / "docs" / "adding_an_article.md").read_text(encoding="utf-8")
STEP = re.compile(
    r"`([\w./]+)`(?:, (above|below) `([^`]+)`)?(?:; [^:]+)?:\n\n```\w+\n(.*?)```", re.DOTALL
)
"""A file and its content; or what goes into one, above or below a line that is so or begins so."""

COPIED = ("src/foredraft", "kernels", "notebooks", "data/results", "README.md", "dvc.yaml")
COPIED += ("params.yaml", "CITATION.cff", "requirements.lock", "jupytext.toml", ".dvc/config")
COPIED += ("docs", "pyproject.toml")
FOLDER = "src/foredraft/articles/rounds"
ARTICLE = ("notebooks/09_rounds.py",)
ARTICLE += tuple(f"{FOLDER}/{name}.py" for name in ("__init__", "experiment", "plots"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        source, target = paths.ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    with Checkout(root) as made:
        yield made


@pytest.fixture(scope="module")
def followed(copy):
    """The copy, with every file written and every command given."""
    code, out, err = copy.run("foredraft", "digests")
    assert code == 0, out + err
    digests = copy.root / "data" / "digests"
    shutil.copytree(digests, copy.root / "digests_before")
    for name, where, line, text in STEP.findall(PAGE):
        file = copy.root / name
        assert file.exists() == bool(where), f"{name} is new, or its lines have a place"
        file.parent.mkdir(exist_ok=True)
        file.write_text(placed(file.read_text(), where, line, text) if where else text)
    ((commands),) = re.findall(r"\nThen\n\n```\n(.*?)```", PAGE, re.DOTALL)
    code, out, err = copy.run("bash", "-euc", commands)
    assert code == 0, out + err
    return copy


def placed(file: str, where: str, line: str, text: str) -> str:
    lines = file.splitlines(keepends=True)
    equal = [i for i, each in enumerate(lines) if each.strip() == line]
    (at,) = equal or [i for i, each in enumerate(lines) if each.strip().startswith(line)]
    return "".join([*lines[: at + (where == "below")], text, *lines[at + (where == "below") :]])


def test_the_notebook_is_executed_with_its_figure_and_results(followed):
    executed = nbformat.read(followed.root / "figures" / "executed" / "09_rounds.ipynb", 4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    drawn = {path.name for path in (followed.root / "figures" / "rounds").iterdir()}
    assert drawn == {"tokens.png"}
    files = {"rounds.csv", "rounds.figures.json", "rounds.json", "rounds.stamp.json"}
    for folder in (followed.root, followed.root / "runs" / "rounds"):
        assert {path.name for path in (folder / "data" / "results").glob("rounds.*")} == files


def test_its_figure_is_drawn_again_as_vectors_and_traced(followed):
    code, out, err = followed.run("foredraft", "figures", "rounds")
    assert code == 0, out + err
    for ending in ("pdf", "svg"):
        drawn = followed.root / "build" / "figures" / "rounds" / f"tokens.{ending}"
        code, out, err = followed.run("foredraft", "trace", str(drawn))
        assert code == 0, err
        assert out.startswith("made as    rounds (09 What a round yields)")
        assert "inputs     0 of 1 are not the same here" in out


def test_the_page_of_results_has_its_row_and_those_of_the_others(followed):
    page = (followed.root / "RESULTS.md").read_text(encoding="utf-8")
    before = (paths.ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert page.startswith(before)
    (row,) = page.removeprefix(before).splitlines()
    assert row.startswith("| Simulated tokens per round, standard errors from expected |")
    assert float(row.split("|")[3]) < 4, "standard errors; of five more than four: below 1 in 3000"


def test_the_stage_is_valid_and_depends_on_the_digest_of_what_its_notebook_reaches(followed):
    stage = yaml.safe_load((followed.root / "dvc.yaml").read_text())["stages"]["rounds"]
    assert stage["deps"] == ["data/digests/rounds.txt", "requirements.lock"]
    locked = yaml.safe_load((followed.root / "dvc.lock").read_text())["stages"]
    assert [dep["path"] for dep in locked["rounds"]["deps"]] == sorted(stage["deps"])
    assert locked["rounds"]["params"]["params.yaml"]["rounds"]["n_rounds"] == 10000
    code, out, err = followed.run("dvc", "status", "rounds")
    assert code == 0, err
    assert "up to date" in out
    digest = (followed.root / "data" / "digests" / "rounds.txt").read_text().strip()
    record = json.loads((followed.root / "data/results/rounds.stamp.json").read_text())
    assert record["code"] == {"notebooks/09_rounds.py": digest}


def test_the_other_articles_are_as_they_were(followed):
    before = {path.name: path.read_text() for path in (followed.root / "digests_before").iterdir()}
    after = {path.name: path.read_text() for path in (followed.root / "data/digests").iterdir()}
    assert set(after) - set(before) == {"rounds.txt"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"results.txt"}, "the page of results has one article more"


def test_an_edit_of_what_it_computes_makes_it_and_nothing_else_stale(followed):
    file = followed.root / FOLDER / "experiment.py"
    digests = followed.root / "data" / "digests"
    text, before = file.read_text(), {path: path.read_text() for path in digests.iterdir()}
    file.write_text(text.replace("tokens.std(ddof=1)", "tokens.std(ddof=0)"))
    try:
        code, out, err = followed.run("foredraft", "digests")
        assert code == 0, out + err
        changed = {path.name for path in before if path.read_text() != before[path]}
        assert changed == {"rounds.txt"}
    finally:
        file.write_text(text)
        (digests / "rounds.txt").write_text(before[digests / "rounds.txt"])


def test_the_page_of_files_has_its_modules_and_the_package_map_its_folder(followed):
    tree = (followed.root / "docs" / "tree.md").read_text(encoding="utf-8")
    assert re.search(r"rounds/ +Article 09: what a round yields\n +experiment\.py", tree)
    project = tomllib.loads((followed.root / "pyproject.toml").read_text())
    assert "foredraft.articles.rounds" in project["tool"]["setuptools"]["packages"]


def test_its_value_can_be_cited(followed):
    code, out, err = followed.run("foredraft", "cite", "data/results/rounds.json#largest_z")
    assert code == 0, err
    assert "stage rounds" in out


def test_its_code_is_as_the_linters_want_it(followed):
    files = [*ARTICLE, "src/foredraft/registry.py", "src/foredraft/repro/params.py"]
    for words in (("check",), ("format", "--check")):
        code, out, err = followed.run("ruff", *words, *files)
        assert code == 0, out + err
