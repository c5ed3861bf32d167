"""README.md against the disk.

The README must have, in this form:

* an article table, a row an article, whose cells link to the notebook, the module and a figure:

      | # | article | notebook | module | figure | headline |
      |---|---|---|---|---|---|
      | 01 | From logits to a token | [01_sampling](notebooks/...) | [`sampling`](src/...) | ... |

* numbers: the text of a link to `data/results/<article>.json#key` is that value, as `foredraft
  results` writes it; every row of the article table has one

* an annotated tree: the one fenced block whose first line is `foredraft/`. A line is two spaces a
  level, a name (folders end in `/`), and after two spaces or more what it is. Names may be joined
  by `, ` or ` + `, and may hold `*`; each must exist:

      foredraft/
        Makefile               setup reproduce check test
        dvc.yaml, dvc.lock     one stage an article
        src/foredraft/         the package
          sampling.py          logits to one distribution

* commands: every `make target` that it names is a target, and every `foredraft command` is one.
"""

import inspect
import re
import subprocess

import pandas as pd
import pytest

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.cli.app import app
from foredraft.registry import ARTICLES
from foredraft.repro import claims
from foredraft.repro.readme import filled, write

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
NOT_OF_THE_REPOSITORY = {".git", ".venv", ".conda", ".cache", "build", "dist", "runs"}
NOT_OF_THE_REPOSITORY |= {"dvc_plots", "sweeps"}
"""Beside these, hidden files and folders need no line in the tree."""


def tree() -> set[str]:
    """The names in the annotated tree, each as a path from the root."""
    blocks = re.findall(r"```\w*\n(foredraft/\n.*?)```", README, re.DOTALL)
    assert len(blocks) == 1, "one fenced block starts with foredraft/"
    found: set[str] = set()
    parents: list[str] = []
    for line in blocks[0].splitlines()[1:]:
        if not line.strip():
            continue
        level = (len(line) - len(line.lstrip())) // 2
        names = re.split(r", | \+ ", re.split(r"\s{2,}", line.strip())[0])
        folder = "".join(parents[: level - 1])
        found |= {folder + name for name in names}
        parents[level - 1 :] = [names[0]]
    return found


def exists(name: str) -> bool:
    return any(True for _ in paths.ROOT.glob(name.rstrip("/")))


def test_every_path_in_the_tree_exists():
    assert [name for name in sorted(tree()) if not exists(name)] == []


def test_the_tree_names_every_file_and_folder_at_the_top():
    top = {
        path.name + ("/" if path.is_dir() else "")
        for path in paths.ROOT.iterdir()
        if not path.name.startswith(".") and path.name not in NOT_OF_THE_REPOSITORY
    }
    assert top - {name.split("/")[0] + ("/" if "/" in name else "") for name in tree()} == set()


def test_the_tree_names_every_module():
    sources = [path for package in paths.PACKAGES.values() for path in package.rglob("*.py")]
    modules = {paths.label(path) for path in sources if path.name != "__init__.py"}
    assert modules - tree() == set()


@pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.slug)
def test_every_article_has_a_row_that_links_notebook_module_and_figure(article):
    rows = [line for line in README.splitlines() if line.startswith(f"| {article.number:02d} |")]
    assert len(rows) == 1
    links = re.findall(r"\]\(([^)]+)\)", rows[0])
    assert article.title in rows[0]
    assert f"notebooks/{article.stem}.ipynb" in links
    assert f"src/foredraft/experiments/{article.slug}.py" in links
    assert any(link.startswith(f"figures/{article.slug}/") for link in links)
    assert any(link.startswith(f"{paths.cited(article.slug)}#") for link in links)


def test_every_number_is_that_of_the_results():
    assert filled(README, claims.findings()) == README, "run `foredraft results`"


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


def test_a_link_to_a_value_that_is_not_there_is_refused(found):
    with pytest.raises(ValueError, match=r"links to 'entropy\.cool': did you mean 'entropy\.cold'"):
        filled(f"[1]({paths.cited('sampling')}#entropy.cool)", found)


def test_without_a_page_none_is_written(found, outputs):
    write(found)
    assert not (outputs / "README.md").exists()


def test_every_local_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    local = [link for link in links if not re.match(r"https?:|mailto:", link)]
    assert local
    assert [link for link in local if not exists(link)] == []


def test_every_command_in_it_can_be_given():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code())))
    assert {"reproduce", "test"} <= named
    assert named <= targets
    commands = set(re.findall(r"^\s*(?:\$ )?foredraft ([a-z]+)", "\n".join(code()), re.MULTILINE))
    known = {
        "run",
        "sync",
        "digests",
        "reproduce",
        "figures",
        "results",
        "models",
        "generate",
        "pretrain",
        "bench",
        "record",
        "search",
        "sweep",
        "cite",
        "trace",
    }
    assert commands <= known


def test_every_command_is_explained_in_the_words_of_its_help():
    for command in app.registered_commands:
        assert command.callback is not None
        first = str(inspect.getdoc(command.callback)).splitlines()[0]
        name = command.name or command.callback.__name__
        assert f"| `foredraft {name}` | {first} |" in README


def code() -> list[str]:
    """What stands in code blocks and between backticks."""
    return re.findall(r"```\w*\n(.*?)```", README, re.DOTALL) + re.findall(r"`([^`\n]+)`", README)


def test_continuous_integration_runs_the_documented_test_command():
    script = paths.ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "executable"
    assert "make test" in script.read_text()
    assert "`make test`" in README or "make test" in "\n".join(code())


def test_make_tells_what_it_can_do():
    told = subprocess.run(["make"], cwd=paths.ROOT, check=True, capture_output=True, text=True)
    for target in ("setup", "reproduce", "check", "test", "lab", "sync", "lint", "bench"):
        assert f"make {target} " in told.stdout
