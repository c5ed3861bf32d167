"""What a reader does: open a notebook from JupyterLab's file browser, run it, move a slider.

In Debian's Chromium, which `.ci/run` installs where it may; playwright brings no browser of its
own. Where there is no Chromium the test is skipped, and says so; where there is one, never.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from foredraft import paths
from foredraft.repro import notebooks

CHROMIUM = shutil.which("chromium")
MISSING = "no chromium here: `apt-get install chromium`, as .ci/run does, and this test runs"
SECONDS = 600
"""For any one thing to happen: a loaded machine is slow."""

SLUG = "sampling"

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
"""All cells are in the page, those out of sight too; nobody asks for news."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of one notebook up to its sliders, set to smoke size, in a folder of its own."""
    notebook = notebooks.read(SLUG)
    ends = [i for i, cell in enumerate(notebook.cells) if "Panel(" in cell.source]
    notebook.cells = notebook.cells[: ends[0] + 1]
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = cell.source.replace("profile = None", 'profile = "smoke"')
    assert 'profile = "smoke"' in cell.source
    folder = tmp_path / "copy"
    folder.mkdir()
    nbformat.write(notebook, folder / f"{SLUG}.ipynb")
    return folder


@contextmanager
def jupyterlab(root: Path, scratch: Path) -> Iterator[str]:
    """A server on a free port, with a token, that knows nothing of the user; gives its address."""
    names = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {paths.OUTPUT_VARIABLE: str(scratch / "out"), "OMP_NUM_THREADS": "1"}
    environment |= {f"JUPYTER_{name}": str(scratch / name.lower()) for name in names}
    environment |= {f"JUPYTERLAB_{n}": str(scratch / n) for n in ("SETTINGS_DIR", "WORKSPACES_DIR")}
    environment["IPYTHONDIR"] = str(scratch / "ipython")
    for name, settings in SETTINGS.items():
        file = scratch / "SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("jupyter-lab")), "--no-browser", "--allow-root"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={root}", "--log-level=ERROR"]
    with (scratch / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=scratch, stdout=log, stderr=log)
    try:
        yield address(scratch / "runtime_dir", server)
    finally:
        server.terminate()
        server.wait(30)


def address(runtime: Path, server: subprocess.Popen) -> str:
    for _ in range(10 * SECONDS):
        for known in runtime.glob("jpserver-*.json"):
            if written := known.read_text():
                about = json.loads(written)
                return f"{about['url']}lab?token={about['token']}"
        assert server.poll() is None, "JupyterLab ended at once"
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start")


@pytest.fixture
def page(folder: Path, tmp_path: Path) -> Iterator[Page]:
    """JupyterLab in a browser, whose console has to stay without an error."""
    assert CHROMIUM, MISSING
    errors: list[str] = []
    with jupyterlab(folder, tmp_path) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    assert errors == []


def picture(panel: Locator) -> bytes:
    return panel.locator("img").screenshot()


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason=MISSING)
def test_a_notebook_runs_in_jupyterlab_and_a_slider_changes_its_figure(page):
    page.locator(".jp-DirListing-item", has_text=f"{SLUG}.ipynb").dblclick()
    expect(page.locator(".jp-NotebookPanel .jp-Notebook")).to_be_visible(timeout=1000 * SECONDS)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=1000 * SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    panel = page.locator(".jp-OutputArea-output", has=page.locator(".widget-image"))
    expect(panel).to_be_visible(timeout=1000 * SECONDS)
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.last).to_have_text(f"[{prompts.count()}]:", timeout=1000 * SECONDS)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    panel.scroll_into_view_if_needed()
    before = picture(panel)
    handle = panel.locator(".widget-inline-hbox", has_text="top-p").locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowLeft")
    for _ in range(SECONDS):
        if picture(panel) != before:
            break
        time.sleep(0.25)
    assert picture(panel) != before


def test_continuous_integration_installs_the_browser_and_then_requires_it():
    script = (paths.ROOT / ".ci" / "run").read_text()
    assert "apt-get install" in script
    assert "chromium" in script
    assert "export CI=" in script
