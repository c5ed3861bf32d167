"""Notebook pairs: script and twin in step, nothing in a committed notebook that should not be."""

import re

import jupytext
import nbformat
import pytest
from jupytext.compare import NotebookDifference, compare_notebooks

from foredraft import paths
from foredraft.registry import ARTICLES
from foredraft.repro import pairs

SCRIPTS = [paths.notebook(article.slug) for article in ARTICLES]
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_there_is_one_pair_an_article_and_nothing_else():
    found = {path.name for path in paths.NOTEBOOKS.iterdir() if path.is_file()}
    assert found == {
        script.with_suffix(end).name for script in SCRIPTS for end in (".py", ".ipynb")
    }


@every_script
def test_the_twin_is_in_step_and_has_no_outputs(script):
    twin = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    compare_notebooks(twin, jupytext.read(script), fmt="py:percent", compare_ids=False)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in twin.cells)
    assert script.with_suffix(".ipynb").read_text(encoding="utf-8") == pairs.twin(script), (
        "run `make sync`"
    )


@every_script
def test_any_python_of_the_environment_can_open_it(script):
    kernel = jupytext.read(script).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


@every_script
def test_the_first_cell_says_what_a_notebook_needs_and_how_long_it_takes(script):
    first = " ".join(jupytext.read(script).cells[0].source.split())
    said = r"\*Needs\*: nothing but this repository.* \*Takes\*: about \w+ minutes? on two cores\."
    assert re.search(said, first)


@every_script
def test_a_committed_notebook_names_no_folder_of_a_machine_and_keeps_no_widgets(script):
    executed = paths.ROOT / "figures" / "executed" / f"{script.stem}.ipynb"
    for path in (script, script.with_suffix(".ipynb"), executed):
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if '"image/png"' not in line)
        assert str(paths.ROOT) not in text
        assert not any(f"/{home}/" in text for home in ("home", "root", "Users", "tmp"))
        assert "application/vnd.jupyter.widget" not in text


def test_a_twin_depends_on_its_script_alone_and_shows_a_change(tmp_path):
    script = tmp_path / "01_x.py"
    script.write_text("# %%\nx = 1\n\n# %%\nx\n")
    before = pairs.twin(script)
    assert pairs.twin(script) == before
    script.write_text("# %%\nx = 2\n\n# %%\nx\n")
    with pytest.raises(NotebookDifference):
        compare_notebooks(nbformat.reads(before, as_version=4), jupytext.read(script))


def test_sync_drops_outputs_and_writes_only_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    script, twin = tmp_path / "01_x.py", tmp_path / "01_x.ipynb"
    script.write_text("# %%\nprint(1)\n")
    assert pairs.sync() == [twin]
    assert pairs.sync() == []
    saved = nbformat.read(twin, as_version=4)
    saved.cells[0].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(saved, twin)
    assert pairs.sync() == [twin]
    assert twin.read_text() == pairs.twin(script)
