"""Every notebook, executed at smoke size: it runs, it is quick, and its digest covers what ran.

Two are executed twice, one that samples and one that trains: they leave the same bytes. That the
others do is seen on each `make reproduce`, whose claims are compared to the last digit.
"""

import resource
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from foredraft import paths
from foredraft.registry import ARTICLES
from foredraft.repro import claims, digests, library, live, notebooks, params, provenance, reach
from foredraft.repro.record import read_record
from foredraft.training.bert.docstrings import load_docstrings

TRACER = Path(__file__).parent / "tracer"
TWICE = [each for each in ARTICLES if each.slug in ("speculative_decoding", "llava_sft")]
"""One that samples, one that trains."""

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
def run(article, tmp_path_factory) -> Path:
    """What a run under the tracer has written, and below `trace` what ran."""
    folder = tmp_path_factory.mktemp(article.slug)
    trace = folder / "trace"
    trace.mkdir()
    before = processor_seconds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TRACER))
        patch.setenv("FOREDRAFT_TRACE", str(trace))
        if article.slug == "vector_add":  # kernels are interpreted from their source
            patch.setenv("FOREDRAFT_PROFILE", "1")
        notebooks.run(article.slug, {"profile": "smoke"}, out=folder)
    assert processor_seconds() - before < SMOKE_SECONDS
    return folder


def processor_seconds() -> float:
    """What the kernels that have ended took."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "trace")
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.fixture
def written(run, monkeypatch) -> Path:
    """What the run has written, which `paths` now points to."""
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(run))
    return run


@pytest.mark.parametrize("article", TWICE, ids=lambda each: each.slug, indirect=True)
def test_a_second_run_leaves_the_same_bytes(article, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebooks.run(article.slug, {"profile": "smoke"}, out=tmp_path)
    once, again = contents(run), contents(tmp_path)
    assert set(once) == set(again)
    assert [name for name, content in once.items() if again[name] != content] == []


def traced(folder: Path) -> set[tuple[Path, int]]:
    """File and first line of every function of ours that ran, 0 for a module's own body."""
    lines = {line for file in folder.glob("*.txt") for line in file.read_text().splitlines()}
    ran = ((Path(file), int(line)) for line, _, file in (each.partition(" ") for each in lines))
    ours = tuple(paths.PACKAGES.values())
    return {(path, line) for path, line in ran if any(path.is_relative_to(o) for o in ours)}


def test_every_function_that_ran_is_covered_by_the_article_s_digest(article, run):
    """False freshness would be the worst fault of all: what is not covered could change unseen."""
    reached = digests.reached(article)
    instruments = [path for name in library.INSTRUMENTS if (path := paths.module(name))]
    of_instruments = reach.reach(*instruments)  # what they call while they compute the digest
    ran = {(path, line) for path, line in traced(run / "trace") if path not in instruments}
    assert sum(line > 0 for _, line in ran) > 100, "the tracer has seen the run"
    uncovered = [
        f"{path}:{line}"
        for path, line in ran
        if line and not reached.covers(path, line) and not of_instruments.covers(path, line)
    ]
    assert uncovered == []
    modules = {path for path, line in ran if line == 0}
    assert modules <= reached.modules | {path for path in modules if path.name == "__init__.py"}


def test_the_executed_copy_shows_figures_and_no_noise(article, written):
    cells = nbformat.read(paths.executed(article.slug), as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))


def test_a_figure_stands_once_small_above_a_link_to_the_saved_one(article, written):
    cells = nbformat.read(paths.executed(article.slug), as_version=4).cells
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    links = [each["text/markdown"] for each in data if ".png](" in each.get("text/markdown", "")]
    saved = sorted(path.name for path in paths.figures(article.slug).iterdir())
    assert sorted(links) == [f"[{name}](../{article.slug}/{name})" for name in saved]
    assert sum("image/png" in each for each in data) == len(links)


def test_every_figure_carries_the_digest_that_the_record_has(article, written):
    record = read_record(paths.record(article.slug))
    saved = {path.stem: path for path in paths.figures(article.slug).iterdir()}
    assert saved
    assert set(record.produced.figures) == set(saved)
    for name, path in saved.items():
        with Image.open(path) as image:
            mark = provenance.parse(image.info["Provenance"])
        assert mark == provenance.Mark(article.slug, name, record.produced.figures[name])


def test_results_are_tidy_make_claims_and_have_one_record(article, written):
    found = claims.read(article.slug)
    assert found is not None
    assert found.claims
    assert not provenance.read_table(paths.results(article.slug, "csv")).empty
    record = read_record(paths.record(article.slug))
    expected = params.load(article.slug, {"profile": "smoke"}).model_dump(mode="json")
    assert record.stamp.params == expected
    assert paths.label(paths.notebook(article.slug)) in record.stamp.code
    assert record.stamp.changed_inputs() == ()


def test_nothing_in_the_executed_copy_changes_unless_a_value_does(article, written):
    text = paths.executed(article.slug).read_text(encoding="utf-8")
    record = read_record(paths.record(article.slug))
    digests_told = {*record.produced.everything(), *record.stamp.code.values()}
    assert not [each for each in digests_told | set(record.stamp.inputs.values()) if each in text]
    assert "changed since" not in text
    assert str(paths.ROOT) not in text


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
    declared = notebooks.declared(notebooks.read(article.slug))
    keys = set(params.SECTIONS[article.slug].model_fields)
    assert declared["profile"] is None
    for name, default in declared.items():
        assert default is None or isinstance(default, bool), f"{name}: None or a switch"
        assert default is not None or name in keys, f"{name} is no key of params.yaml"
