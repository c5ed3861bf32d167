"""The pipeline: dvc.yaml names what a result depends on; what is committed is what it made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foredraft import paths
from foredraft.articles import outputs as outputs_module
from foredraft.files import digest
from foredraft.models.loading import pocket_models
from foredraft.registry import ARTICLES
from foredraft.repro import claims, params, values
from foredraft.repro.origin import find
from foredraft.repro.provenance import read_marked, read_stamp

STAGES = yaml.safe_load((paths.ROOT / "dvc.yaml").read_text())["stages"]
every_article = pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.slug)


def strings(value: object) -> list[str]:
    """The strings of a parameter: itself, or its items."""
    items = value if isinstance(value, list) else [value]
    return [each for each in items if isinstance(each, str)]


def outputs(stage: str) -> set[str]:
    """The declared outputs of a stage; each must be kept in git and out of DVC's cache."""
    listed = [each for kind in ("outs", "plots", "metrics") for each in STAGES[stage].get(kind, [])]
    assert stage == "code" or "outs" not in STAGES[stage], "they switch the run-cache off"
    assert all(options == {"cache": False} for each in listed for options in each.values())
    return {name for each in listed for name in each}


def test_there_is_one_stage_an_article_one_for_the_code_and_one_for_the_page_of_results():
    assert list(STAGES) == ["code", *(article.slug for article in ARTICLES), "results"]
    assert not any(stage.get("frozen") for stage in STAGES.values())


def test_dvc_yaml_is_short_enough_to_be_written_by_hand():
    assert len((paths.ROOT / "dvc.yaml").read_text().splitlines()) < 200


def test_only_the_stage_of_the_code_depends_on_code():
    assert STAGES["code"]["deps"] == ["src/foredraft", "kernels", "notebooks"]
    assert outputs("code") == {"data/digests"}
    for name, stage in STAGES.items():
        if name != "code":
            assert f"data/digests/{name}.txt" in stage["deps"]
            assert not [each for each in stage["deps"] if each.startswith(("src", "kern", "note"))]


@every_article
def test_a_stage_depends_on_its_parameters_and_on_its_data(article):
    stage = STAGES[article.slug]
    assert stage["cmd"] == f"foredraft run {article.slug}"
    assert stage["params"] == [article.slug, f"profiles.${{{article.slug}.profile}}"]
    assert all((paths.ROOT / name).exists() for name in stage["deps"])
    section = params.load(article.slug).model_dump(mode="json")
    shipped = {f"data/models/{name}" for name in pocket_models()}
    used = {f"data/models/{name}" for value in section.values() for name in strings(value)}
    assert used & shipped == shipped & set(stage["deps"])


@every_article
def test_a_stage_makes_figures_results_and_the_executed_notebook(article):
    slug = article.slug
    made = {
        f"figures/{slug}",
        f"figures/executed/{article.stem}.ipynb",
        f"data/results/{slug}.csv",
        f"data/results/{slug}.json",
        f"data/results/{slug}.figures.json",
        f"data/results/{slug}.stamp.json",
    }
    assert made <= outputs(slug)


def test_the_page_of_results_depends_on_every_result():
    needed = {f"data/results/{article.slug}.json" for article in ARTICLES}
    assert needed <= set(STAGES["results"]["deps"])
    assert outputs("results") == {"RESULTS.md", "figures/results.tex"}


def test_no_result_or_figure_is_there_that_no_stage_made():
    made = {paths.ROOT / name for stage in STAGES for name in outputs(stage)}
    for folder in (paths.ROOT / "figures", paths.ROOT / "data" / "results"):
        for path in folder.rglob("*"):
            assert path.is_dir() or made & {path, *path.parents}, f"{path} is nobody's output"


def test_the_lock_knows_these_stages_and_no_others():
    locked = yaml.safe_load((paths.ROOT / "dvc.lock").read_text())["stages"]
    assert set(locked) == set(STAGES)


def test_what_is_committed_is_what_the_pipeline_makes(tmp_path):
    """`dvc status`; if it fails, run `dvc repro` and commit what changed."""
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(tmp_path), "DVC_NO_ANALYTICS": "1"}
    command = [str(Path(sys.executable).with_name("dvc")), "status"]
    told = subprocess.run(
        command, cwd=paths.ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert "up to date" in told.stdout, told.stdout


def test_the_page_and_the_macros_are_those_of_the_results():
    found = claims.findings()
    assert (paths.ROOT / "RESULTS.md").read_text() == claims.page(found)
    assert (paths.ROOT / "figures" / "results.tex").read_text() == claims.macros(found)


def test_every_record_is_of_what_is_committed():
    for article in ARTICLES:
        produced = outputs_module.read_record(paths.record(article.slug)).produced
        assert produced.table == digest(paths.results(article.slug, "csv"))
        assert read_stamp(paths.results(article.slug)).data == produced.results
        drawn = read_marked(paths.figure_tables(article.slug))["figures"]
        of_tables = {name: values.digest(each["values"]) for name, each in drawn.items()}
        figures = {path.stem: find(path) for path in paths.figures(article.slug).iterdir()}
        assert of_tables == produced.figures
        assert set(figures) == set(of_tables)
        assert all(each.commit is None for each in figures.values())


def test_tables_that_no_figure_needs_are_small():
    assert [
        file.name for file in paths.result_files().glob("*.csv") if file.stat().st_size > 100_000
    ] == []
