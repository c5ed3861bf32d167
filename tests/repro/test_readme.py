"""README.md and the pages in docs against the disk.

README.md must have, in this form:

* fewer than 1,000 words

* an article table, a row per article, whose cells link to the notebook, the module and a figure:

      | # | article | notebook | module | figure | headline |
      |---|---|---|---|---|---|
      | 01 | From logits to a token | [01_sampling](notebooks/...) | [`sampling`](src/...) | ... |

* a link to every page in docs

All of the pages:

* numbers: the text of a link to `data/results/<article>.json#key` is that value, as `foredraft
  results` writes it; every row of the article table has one

* links that lead to files

* commands: every `make target` that they name is a target, and every `foredraft command` is one;
  docs/usage.md explains each command in the words of its help

* files: docs/tree.md is what `foredraft sync` writes.
"""

import inspect
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from typer.models import CommandInfo

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.cli.app import app
from foredraft.registry import ARTICLES
from foredraft.repro import claims, git, tree
from foredraft.repro.readme import filled, write

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md")))
}
USAGE = PAGES[paths.ROOT / "docs" / "usage.md"]
MAKEFILE = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = [
    command
    for group in app.registered_groups
    for command in group.typer_instance.registered_commands
]
every_page = pytest.mark.parametrize("page", PAGES, ids=paths.label)


def test_the_front_page_is_short():
    assert len(README.split()) < 1000


def test_the_front_page_leads_to_every_other():
    links = re.findall(r"\]\((docs/[^)#]+)", README)
    assert {paths.label(page) for page in PAGES} - {"README.md"} == set(links)


def test_the_page_of_files_is_current():
    assert paths.TREE.read_text(encoding="utf-8") == tree.page(), "run `foredraft sync`"


def test_the_page_of_files_names_every_module_and_everything_at_the_top():
    listed = tree.page()
    names = {Path(name).name for name in tree.modules()} - {"__init__.py"}
    assert [name for name in names if not re.search(rf"^ +{name} ", listed, re.MULTILINE)] == []
    tracked = git.output("ls-files").splitlines()
    top = {name.partition("/")[0] for name in tracked if not name.startswith(".")}
    assert top <= set(tree.NOTES)
    assert set(tree.top()) == set(tree.NOTES)


def test_the_page_of_files_is_the_same_without_git(monkeypatch):
    before = tree.page()
    monkeypatch.setattr(git, "is_repository", lambda: False)
    assert tree.page() == before


def test_the_page_of_files_is_written_only_if_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "TREE", tmp_path / "docs" / "tree.md")
    assert tree.sync() == [paths.TREE]
    assert tree.sync() == []
    paths.TREE.write_text("old")
    assert tree.sync() == [paths.TREE]
    assert paths.TREE.read_text(encoding="utf-8") == tree.page()


@pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.slug)
def test_every_article_has_a_row_that_links_notebook_module_and_figure(article):
    rows = [line for line in README.splitlines() if line.startswith(f"| {article.number:02d} |")]
    assert len(rows) == 1
    links = re.findall(r"\]\(([^)]+)\)", rows[0])
    assert article.title in rows[0]
    assert f"notebooks/{article.stem}.ipynb" in links
    assert f"src/foredraft/articles/{article.slug}/experiment.py" in links
    assert any(link.startswith(f"figures/{article.slug}/") for link in links)
    assert any(link.startswith(f"{paths.cited(article.slug)}#") for link in links)


@every_page
def test_every_number_is_that_of_the_results(page):
    assert filled(PAGES[page], claims.findings()) == PAGES[page], "run `foredraft results`"


@pytest.fixture
def found(outputs):
    claim = claims.Claim("cold", "cold is sharp", "entropy.cold", n=5, spread=0.01)
    values = {"entropy": {"cold": 0.123456, "hot": 2.5}}
    Outputs("sampling", {}).finish(pd.DataFrame({"x": [1]}), values, [claim])
    return claims.findings()


def test_a_linked_value_is_filled_in_as_the_page_of_results_has_it(found, outputs):
    file = paths.cited("sampling")
    before = f"[?]({file}#entropy.cold), [old]({file}#entropy.hot), [9](data/results/bert.json#a)"
    (outputs / "README.md").write_text(before)
    write(found)
    after = (outputs / "README.md").read_text()
    values = f"[0.1235 ± 0.01]({file}#entropy.cold), [2.5]({file}#entropy.hot)"
    assert after == f"{values}, [9](data/results/bert.json#a)"


def test_a_page_below_the_front_page_is_filled_in_as_well(found, outputs):
    file = f"../{paths.cited('sampling')}"
    page = outputs / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(f"[?]({file}#entropy.hot)")
    write(found)
    assert page.read_text() == f"[2.5]({file}#entropy.hot)"
    assert page in paths.written()


def test_a_link_to_a_value_that_is_not_there_is_refused(found):
    with pytest.raises(ValueError, match=r"links to 'entropy\.cool': did you mean 'entropy\.cold'"):
        filled(f"[1]({paths.cited('sampling')}#entropy.cool)", found)


def test_without_a_page_none_is_written(found, outputs):
    write(found)
    assert not (outputs / "README.md").exists()


@every_page
def test_every_local_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page])
    local = [link for link in links if not re.match(r"https?:|mailto:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_command_in_them_can_be_given():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code())))
    assert {"reproduce", "test"} <= named
    assert named <= targets
    commands = set(re.findall(r"^\s*(?:\$ )?foredraft ([a-z]+)", "\n".join(code()), re.MULTILINE))
    known = {name(command) for command in COMMANDS}
    assert commands <= known


def name(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.name or command.callback.__name__


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_every_command_is_explained_in_the_words_of_its_help(command):
    first = str(inspect.getdoc(command.callback)).splitlines()[0]
    assert f"| `foredraft {name(command)}` | {first} |" in USAGE


def code() -> list[str]:
    """What stands in code blocks and between backticks; the page of files has sentences there."""
    text = "\n".join(text for page, text in PAGES.items() if page != paths.TREE)
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)


def test_continuous_integration_runs_the_documented_test_command():
    script = paths.ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "executable"
    assert "make test" in script.read_text()
    assert "`make test`" in README


def test_make_lists_what_it_can_do():
    shown = subprocess.run(["make"], cwd=paths.ROOT, check=True, capture_output=True, text=True)
    for target in ("setup", "reproduce", "update", "test", "lab", "sync", "lint", "bench"):
        assert f"make {target} " in shown.stdout
