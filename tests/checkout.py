"""A small checkout: this package and params.yaml around one notebook that is done at once.

Processes that have its `src` on their path run its notebook and write below it, so that a test can
drive the real command, papermill and DVC without the repository.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jupytext

from foredraft import paths

SLUG = "speculative_decoding"

NOTEBOOK = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile = None
length = None
temperature = None
seed = None

# %%
import os
import time
from pathlib import Path

import pandas as pd

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.repro import claims as results
from foredraft.repro import params

# %%
given = {"profile": profile, "length": length, "temperature": temperature, "seed": seed}
taken = params.load("speculative_decoding", given)
with (paths.ROOT / "ledger").open("a") as ledger:
    ledger.write(f"{taken.length} {os.getpid()}\\n")

# %% [markdown]
# A length of 13 fails and one of 7 waits, as long as a file says so.

# %%
assert taken.length != 13 or not (paths.ROOT / "fail").exists(), "thirteen"
while taken.length == 7 and (paths.ROOT / "wait").exists():
    time.sleep(0.05)

# %%
values = {
    "acceptance": {"mean": taken.length / 16 + taken.temperature},
    "same": 3,
    "model": taken.model,
}
claims = [
    results.Claim("rate", "The rate", "acceptance.mean", n=4, spread=0.01),
    results.Claim("same", "The same everywhere", "same"),
]
outputs = Outputs("speculative_decoding", taken.model_dump(mode="json"))
outputs.finish(pd.DataFrame({"x": [1]}), values, claims)
"""

STAGE = """stages:
  speculative_decoding:
    cmd: foredraft run speculative_decoding
    deps: [notebooks/02_speculative_decoding.py]
    params: [speculative_decoding]
    plots:
      - figures/executed/02_speculative_decoding.ipynb: {cache: false}
      - data/results/speculative_decoding.csv: {cache: false}
      - data/results/speculative_decoding.figures.json: {cache: false}
      - data/results/speculative_decoding.stamp.json: {cache: false}
    metrics:
      - data/results/speculative_decoding.json: {cache: false}
"""


@dataclass(frozen=True)
class Checkout:
    """The folder, and how commands run in it; none of them outlives the context."""

    root: Path
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def __enter__(self) -> "Checkout":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def environment(self) -> dict[str, str]:
        programs = Path(sys.executable).parent
        return {
            **{name: value for name, value in os.environ.items() if name != paths.OUTPUT_VARIABLE},
            "PYTHONPATH": str(self.root / "src"),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root / ".site"),
        }

    def start(self, *words: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            words,
            cwd=self.root,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        process = self.start(*words)
        out, err = process.communicate()
        return process.returncode, out, err

    def sweep(self, *words: str) -> tuple[int, str, str]:
        return self.run("foredraft", "sweep", SLUG, *words)

    def runs(self) -> list[tuple[int, int]]:
        """The length and the kernel's process id of each run of the notebook so far."""
        ledger = self.root / "ledger"
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return [(int(length), int(pid)) for length, pid in map(str.split, lines)]

    def lengths(self) -> list[int]:
        return sorted(length for length, _ in self.runs())


def make(root: Path) -> Checkout:
    """Lay a checkout out below a folder that does not exist."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(paths.PACKAGES["foredraft"], root / "src" / "foredraft", ignore=ignored)
    for file in (paths.PARAMS, paths.CITATION):
        shutil.copy(file, root)
    notebook = root / "notebooks" / "02_speculative_decoding.py"
    notebook.parent.mkdir()
    notebook.write_text(NOTEBOOK)
    jupytext.write(jupytext.read(notebook), notebook.with_suffix(".ipynb"))
    (root / "dvc.yaml").write_text(STAGE)
    (root / "fail").touch()
    return Checkout(root)
