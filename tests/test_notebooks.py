"""Every notebook, executed at smoke size, twice: it runs, it is quick, it is stable."""

import resource
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from foredraft import live, params, paths, provenance, results, runner
from foredraft.articles import ARTICLES
from foredraft.training.docstrings import load_docstrings

SMOKE_SECONDS = 90
"""Of processor time, which work beside it lengthens by up to a half where threads share a core."""


@pytest.fixture(scope="module", autouse=True)
def texts_are_at_hand() -> None:
    """Read the packages' docstrings, which happens once on a machine, on nobody's account."""
    load_docstrings()


@pytest.fixture(scope="module", params=ARTICLES, ids=lambda article: article.slug)
def article(request):
    return request.param


@pytest.fixture(scope="module")
def runs(article, tmp_path_factory) -> tuple[Path, Path]:
    """What two runs in a row have written, the second from another working directory."""
    first, second = (tmp_path_factory.mktemp(f"{article.slug}-{n}") for n in "ab")
    before = processor_seconds()
    runner.run(article.slug, {"profile": "smoke"}, out=first)
    assert processor_seconds() - before < SMOKE_SECONDS
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(second)
        runner.run(article.slug, {"profile": "smoke"}, out=second)
    return first, second


def processor_seconds() -> float:
    """What the kernels that have ended took."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.fixture
def written(runs, monkeypatch) -> Path:
    """What the first run has written, which `paths` now points to."""
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(runs[0]))
    return runs[0]


def test_two_runs_leave_the_same_bytes(runs):
    first, second = runs
    once, again = contents(first), contents(second)
    assert set(once) == set(again)
    assert [name for name, content in once.items() if again[name] != content] == []


def test_the_executed_copy_shows_figures_and_no_noise(article, written):
    cells = nbformat.read(paths.executed(article.slug), as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))


def test_every_figure_is_saved_in_three_formats_with_its_stamp(article, written):
    saved = {path.name for path in paths.figures(article.slug).iterdir()}
    names = {name.removesuffix(".png") for name in saved if name.endswith(".png")}
    assert names
    assert saved == {f"{name}.{ending}" for name in names for ending in ("png", "svg", "pdf")}
    for name in names:
        with Image.open(paths.figures(article.slug) / f"{name}.png") as image:
            stamp = provenance.Stamp.from_json(image.info["Provenance"])
        assert stamp.what == article.slug
        assert stamp.params["profile"] == "smoke"


def test_results_are_stamped_tidy_and_make_claims(article, written):
    found = results.read(article.slug)
    assert found is not None
    assert found.claims
    assert not provenance.read_table(paths.results(article.slug, "csv")).empty
    stamp = provenance.read_json(paths.results(article.slug)).stamp
    expected = params.load(article.slug, {"profile": "smoke"}).model_dump(mode="json")
    assert stamp.params == expected
    assert paths.label(paths.notebook(article.slug)) in stamp.inputs
    assert stamp.changed_inputs() == ()


def test_a_notebook_runs_where_jupyterlab_runs_it_and_shows_no_widget(tmp_path, monkeypatch):
    """Its twin as it is committed, by nbclient alone, in the notebooks' folder."""
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(tmp_path))
    for name in ("MPLBACKEND", live.SESSION_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    script = paths.notebook("sampling")
    twin = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    (cell,) = (cell for cell in twin.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += '\nprofile = "smoke"'
    before = set(contents(paths.NOTEBOOKS))
    where = {"metadata": {"path": str(paths.NOTEBOOKS)}}
    NotebookClient(twin, kernel_name="python3", timeout=600, resources=where).execute()
    kinds = [
        kind
        for cell in twin.cells
        for out in cell.get("outputs", [])
        for kind in out.get("data", {})
    ]
    assert "image/png" in kinds
    assert not any("widget" in kind for kind in kinds)
    assert paths.results("sampling").is_file()
    assert set(contents(paths.NOTEBOOKS)) == before


def test_the_parameters_cell_defers_to_params_yaml(article):
    declared = runner.declared(runner.read(article.slug))
    keys = set(params.SECTIONS[article.slug].model_fields)
    assert declared["profile"] is None
    for name, default in declared.items():
        assert default is None or isinstance(default, bool), f"{name}: None or a switch"
        assert default is not None or name in keys, f"{name} is no key of params.yaml"
