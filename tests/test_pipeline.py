"""The pipeline: dvc.yaml names what a notebook is made of; what is committed is what it made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foredraft import params, paths, results
from foredraft.articles import ARTICLES
from foredraft.imports import closure
from foredraft.models.loading import pocket_models

STAGES = yaml.safe_load((paths.ROOT / "dvc.yaml").read_text())["stages"]
every_article = pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.slug)


def strings(value: object) -> list[str]:
    """The strings of a parameter: itself, or its items."""
    items = value if isinstance(value, list) else [value]
    return [each for each in items if isinstance(each, str)]


def outputs(stage: str) -> set[str]:
    """The declared outputs of a stage; each must be kept in git and out of DVC's cache."""
    listed = [*STAGES[stage].get("plots", []), *STAGES[stage].get("metrics", [])]
    assert "outs" not in STAGES[stage], "plain outputs switch the run-cache off"
    assert all(options == {"cache": False} for each in listed for options in each.values())
    return {name for each in listed for name in each}


def test_there_is_one_stage_an_article_and_one_for_the_page_of_results():
    assert list(STAGES) == [*(article.slug for article in ARTICLES), "results"]
    assert not any(stage.get("frozen") for stage in STAGES.values())


@every_article
def test_a_stage_depends_on_every_module_that_its_notebook_imports(article):
    named = {name for name in STAGES[article.slug]["deps"] if name.endswith(".py")}
    needed = {paths.label(path) for path in closure(paths.notebook(article.slug))}
    assert named == needed


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
    }
    assert made <= outputs(slug)


def test_the_page_of_results_depends_on_every_result():
    needed = {f"data/results/{article.slug}.json" for article in ARTICLES}
    assert needed <= set(STAGES["results"]["deps"])
    assert outputs("results") == {"RESULTS.md", "figures/results.tex"}


def test_no_result_or_figure_lies_about_that_no_stage_made():
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
    found = results.findings()
    assert (paths.ROOT / "RESULTS.md").read_text() == results.page(found)
    assert (paths.ROOT / "figures" / "results.tex").read_text() == results.macros(found)
