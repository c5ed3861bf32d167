"""Running a notebook: strict going in, the same bytes coming out."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from foredraft import paths
from foredraft.repro import live, notebooks, params

HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile: str | None = None
seed: int | None = None
temperatures = None
measure = False  # a switch of the notebook's own

# %%
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Write the trial notebook of the article `sampling` with the given cells."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "FAILED", tmp_path / "failed")

    def write(*cells: str) -> Path:
        path = paths.notebook("sampling")
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER + "\n\n# %%\n".join(cells) + "\n")
        return path

    return write


def texts(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [output.text for cell in cells for output in cell.get("outputs", [])]


def test_two_runs_give_the_same_bytes_wherever_they_start(notebook, tmp_path, monkeypatch):
    notebook(
        "import sys, time\nfor _ in range(3):\n    print('a', flush=True); time.sleep(0.1)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "{object: 1}.__len__(), set('abcdef')",
    )
    first = notebooks.run("sampling", {}, out=tmp_path / "a").read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "svg")
    second = notebooks.run("sampling", {}, out=tmp_path / "b").read_bytes()
    assert first == second
    written = json.loads(first)
    assert set(written["metadata"]) == {"kernelspec", "language_info"}
    assert "version" not in written["metadata"]["language_info"]
    assert all(not set(cell["metadata"]) - {"tags"} for cell in written["cells"])
    assert b"image/png" in first


def test_parameters_reach_the_notebook_and_outputs_go_where_they_should(notebook, tmp_path):
    notebook(
        "from foredraft import paths",
        "from foredraft.repro import params",
        "print(params.load('sampling', {'seed': seed}).seed, temperatures, measure)",
        "print(paths.results('sampling').parent)",
    )
    overrides = {"seed": 4, "temperatures": [0.5, 1], "measure": True}
    executed = notebooks.run("sampling", overrides, out=tmp_path / "out")
    assert executed == tmp_path / "out" / "figures" / "executed" / "01_sampling.ipynb"
    assert texts(executed) == ["4 [0.5, 1] True\n", f"{tmp_path}/out/data/results\n"]


def test_a_run_is_not_live_even_if_it_is_started_from_an_open_notebook(
    notebook, tmp_path, monkeypatch
):
    monkeypatch.setenv(live.SESSION_VARIABLE, "notebooks/01_sampling.ipynb")
    notebook("from foredraft.repro.live import is_live\nprint(is_live())")
    assert texts(notebooks.run("sampling", {}, out=tmp_path)) == ["False\n"]


def test_the_environment_is_as_before_after_a_run(notebook, tmp_path):
    notebook("pass")
    before = dict(os.environ)
    notebooks.run("sampling", {}, out=tmp_path)
    assert dict(os.environ) == before


def test_a_run_has_the_threads_of_its_article_whatever_the_user_has_set(
    notebook, tmp_path, monkeypatch
):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "7")
    notebook(f"import os\nprint(*(os.environ[name] for name in {names}))")
    threads = params.load("sampling").threads
    assert texts(notebooks.run("sampling", {}, out=tmp_path)) == [f"{threads} {threads}\n"]


WRITES = """from foredraft import paths
from foredraft.files import write_text
write_text(paths.figures('sampling') / 'one.png', 'new')
write_text(paths.record('sampling'), 'new')
write_text(paths.results('sampling'), 'new')"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with what an earlier run wrote, and what a killed one left elsewhere."""
    root = tmp_path / "repository"
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(notebooks, "RUNNING", tmp_path / "running")
    monkeypatch.delenv(paths.OUTPUT_VARIABLE, raising=False)
    kept = [paths.figures("sampling") / name for name in ("one.png", "old.png")]
    kept += [paths.record("sampling"), paths.results("sampling"), paths.figures("bert") / "x.png"]
    for path in (*kept, tmp_path / "running" / "sampling" / "figures" / "sampling" / "ghost.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return root


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*.*") if path.suffix != ".ipynb"}


def test_results_are_replaced_when_all_is_done_and_the_record_last(
    notebook, repository, monkeypatch
):
    notebook(WRITES)
    moved, replace = [], os.replace

    def noted(source, target):
        if Path(target).is_relative_to(repository):
            assert (repository / "figures/sampling/old.png").exists(), "nothing is removed before"
            moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(notebooks.os, "replace", noted)
    executed = notebooks.run("sampling", {})
    assert executed == repository / "figures" / "executed" / "01_sampling.ipynb"
    assert moved[-1] == "sampling.stamp.json"
    written = dict.fromkeys(("one.png", "sampling.stamp.json", "sampling.json"), "new")
    assert set(moved) == {*written, "01_sampling.ipynb"}
    assert contents(repository) == {**written, "x.png": "old"}, "no figure of an earlier run"
    assert not list(notebooks.RUNNING.glob("*/*"))


def test_a_run_that_fails_leaves_the_former_results_whole(notebook, repository, tmp_path):
    before = contents(repository)
    notebook(WRITES, "1 / 0")
    with pytest.raises(notebooks.NotebookError, match="ZeroDivisionError"):
        notebooks.run("sampling", {})
    assert contents(repository) == before
    assert (tmp_path / "failed" / "sampling.ipynb").is_file()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"sed": 1}, "unknown parameter of the notebook sampling 'sed': did you mean 'seed'"),
        ({"seed": "one"}, "sampling.seed: 'one' is not allowed; it must be a valid integer"),
        ({"profile": "smok"}, "unknown profile of sampling 'smok': did you mean 'smoke'"),
        ({"measure": 1}, "sampling.measure: 1 is not allowed; it must be bool"),
        ({"samples": 1}, "unknown parameter of the notebook sampling 'samples'"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_told_before_anything_runs(
    notebook, tmp_path, overrides, told
):
    notebook(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=told):
        notebooks.run("sampling", overrides, out=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_every_parameter_of_a_run_can_be_told_before_it(notebook):
    notebook("pass")
    told = notebooks.resolved("sampling", {"seed": 4, "measure": True, "profile": "smoke"})
    smoke = params.load("sampling", {"seed": 4, "profile": "smoke"}).model_dump(mode="json")
    assert told == {**smoke, "measure": True}
    assert notebooks.resolved("sampling", {})["measure"] is False


def test_a_failing_cell_is_named_and_the_earlier_copy_stays(notebook, tmp_path):
    notebook("print('fine')")
    executed = notebooks.run("sampling", {}, out=tmp_path)
    before = executed.read_bytes()
    notebook("print('fine')", "# the division\n1 / 0", "print('never')")
    with pytest.raises(notebooks.NotebookError) as told:
        notebooks.run("sampling", {}, out=tmp_path)
    assert "cell 3" in str(told.value)
    assert "# the division" in str(told.value)
    assert "ZeroDivisionError: division by zero" in str(told.value)
    assert executed.read_bytes() == before
    assert (tmp_path / "failed" / "sampling.ipynb").is_file()


def test_a_kernel_that_dies_is_told(notebook, tmp_path):
    notebook("import os\nos._exit(9)")
    with pytest.raises(notebooks.NotebookError, match="the kernel died"):
        notebooks.run("sampling", {}, out=tmp_path)


def test_a_notebook_without_its_cell_of_parameters_is_refused(notebook, tmp_path):
    path = notebook("pass")
    path.write_text(path.read_text().replace('tags=["parameters"]', ""))
    with pytest.raises(ValueError, match="one cell tagged 'parameters'; this one has 0"):
        notebooks.run("sampling", {}, out=tmp_path)


def test_an_article_without_its_notebook_is_told(notebook, tmp_path):
    with pytest.raises(ValueError, match=r"01_sampling\.py is missing"):
        notebooks.run("sampling", {}, out=tmp_path)


def test_the_link_below_a_figure_leads_to_it_from_the_executed_copy(tmp_path):
    """From the notebook's folder it goes over `figures`, in which the executed copy lies."""
    link = {"text/markdown": "[one.png](../figures/sampling/one.png)"}
    output = nbformat.v4.new_output("display_data", data=link)
    cell = nbformat.v4.new_code_cell("x", outputs=[output])
    written = notebooks.normalised(nbformat.v4.new_notebook(cells=[cell]))
    (executed,) = nbformat.reads(written, 4).cells
    assert executed.outputs[0].data["text/markdown"] == "[one.png](../sampling/one.png)"
    folders = paths.executed("sampling").parent, paths.figures("sampling")
    assert (folders[0] / "../sampling").resolve() == folders[1].resolve()


def test_widget_state_is_dropped():
    cell = nbformat.v4.new_code_cell("x", metadata={"papermill": {"duration": 1}, "execution": {}})
    metadata = {"widgets": {"state": {}}, "papermill": {}}
    made = nbformat.v4.new_notebook(cells=[cell], metadata=metadata)
    written = notebooks.normalised(made)
    assert "widgets" not in written
    assert "papermill" not in written
    assert made.metadata.widgets, "the notebook that was given is left alone"
