"""What an edit costs: planted in a copy of the repository, and DVC asked what it makes stale."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo

from foredraft import paths
from foredraft.registry import ARTICLES

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # of DVC's own

EDITED = ("src", "kernels", "notebooks", ".dvc")
"""Copied, since edits are planted there; what is only read is linked."""
READ = ("data", "figures")
FILES = ("params.yaml", "requirements.lock", "dvc.yaml", "dvc.lock", ".dvcignore", "RESULTS.md")
EVERY = {article.slug for article in ARTICLES}


def link(source: str, target: str) -> str:
    """Link a file, or copy it where a link cannot be made."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The repository as it is, without git."""
    root = tmp_path / "repository"
    left = shutil.ignore_patterns("__pycache__", "tmp", "cache", ".ipynb_checkpoints")
    for name in EDITED:
        shutil.copytree(paths.ROOT / name, root / name, ignore=left)
    for name in READ:
        shutil.copytree(paths.ROOT / name, root / name, copy_function=link)
    for name in FILES:
        shutil.copy2(paths.ROOT / name, root / name)
    with (root / ".dvc" / "config").open("a") as config:
        config.write("    no_scm = true\n")
    return root


def replace(path: Path, before: str, after: str) -> None:
    """Plant an edit."""
    text = path.read_text(encoding="utf-8")
    assert before in text, f"{path.name} has changed: plant the edit elsewhere"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def stages_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Find the stages that `dvc repro` would run: the code's, then those that its lines stale."""
    programs = Path(sys.executable).parent
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(repository / ".site"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(repository)

    def run() -> set[str]:
        with Repo(str(repository)) as before:
            first = set(before.status())
            assert first <= {"code"}, "before it runs, an edit makes nothing else stale"
            before.reproduce("code")
        with Repo(str(repository)) as after:
            return first | set(after.status())

    return run


def test_nothing_runs_where_nothing_was_edited(repository, stages_run):
    assert stages_run() == set()


def test_a_comment_and_a_docstring_run_the_code_s_stage_alone(repository, stages_run):
    path = repository / "src" / "foredraft" / "sampling.py"
    path.write_text(path.read_text().replace('"""', '"""Edited. ', 1))
    with path.open("a") as file:
        file.write("\n# One more comment.\n")
    assert stages_run() == {"code"}


def test_a_function_that_no_article_reaches_runs_the_code_s_stage_alone(repository, stages_run):
    path = repository / "src" / "foredraft" / "cli" / "app.py"
    replace(path, "def main() -> None:", "def main() -> None:\n    print('edited')\n    ")
    with (repository / "src" / "foredraft" / "sampling.py").open("a") as file:
        file.write("\n\ndef reached_by_none() -> int:\n    return 1\n")
    assert stages_run() == {"code"}


def test_a_function_that_one_article_reaches_runs_that_article(repository, stages_run):
    path = repository / "src" / "foredraft" / "training" / "llava" / "tables.py"
    replace(path, "\n\ndef ", "\nEDITED = 1\n\n\ndef ")
    text = path.read_text(encoding="utf-8")
    name = next(line for line in text.splitlines() if line.startswith("class "))
    replace(path, name, f"{name}\n    edited = 1\n")
    assert stages_run() == {"code", "llava_sft"}


def test_a_function_that_all_articles_reach_runs_them_all(repository, stages_run):
    path = repository / "src" / "foredraft" / "files.py"
    replace(
        path,
        "path.parent.mkdir(parents=True, exist_ok=True)",
        "path.parent.mkdir(0o777, True, True)",
    )
    assert stages_run() == {"code", "results"} | EVERY


def test_a_shared_module_that_is_renamed_runs_the_code_s_stage_alone(repository, stages_run):
    folder = repository / "src" / "foredraft"
    (folder / "errors.py").rename(folder / "unknown_names.py")
    for path in folder.rglob("*.py"):
        if "foredraft.errors" in path.read_text(encoding="utf-8"):
            replace(path, "foredraft.errors", "foredraft.unknown_names")
    assert stages_run() == {"code"}


def test_the_prose_of_a_notebook_runs_its_article_alone(repository, stages_run):
    path = repository / "notebooks" / f"{ARTICLES[0].stem}.py"
    with path.open("a") as file:
        file.write("\n# %% [markdown]\n# One more sentence.\n")
    assert stages_run() == {"code", ARTICLES[0].slug}
