"""Where things are: the only module that builds a path of this repository.

Whatever a run writes goes below `outputs()`: the repository itself, or the folder named by the
environment variable FOREDRAFT_OUTPUT (`foredraft run --out` sets it for the notebook's kernel), so
that a sweep or a test leaves the committed results alone. Inputs are always the repository's own.
"""

import os
from pathlib import Path

from foredraft.registry import article

ROOT = Path(__file__).resolve().parents[2]
OUTPUT_VARIABLE = "FOREDRAFT_OUTPUT"
ELSEWHERE = "elsewhere"
"""How the label of a file outside the repository begins: a published model's weights, say."""

PARAMS = ROOT / "params.yaml"
NOTEBOOKS = ROOT / "notebooks"
MODELS = ROOT / "data" / "models"
PROMPTS = ROOT / "data" / "prompts"
PLANS = ROOT / "data" / "plans"
RECORDED = ROOT / "data" / "recorded"
DIGESTS = ROOT / "data" / "digests"
"""One line an article: the digest of the code that its notebook reaches."""
LOCK = ROOT / "dvc.lock"
"""What each stage was made from and what it made, by digest."""
CITATION = ROOT / "CITATION.cff"
TREE = ROOT / "docs" / "tree.md"
"""The generated page of files and folders."""
CORPUS = ROOT / "data" / "corpus.json"
"""Which packages, files and bytes the pocket models were trained on."""
BUILD = ROOT / "build"
"""What is made on request and never committed: vectors, the site, reports."""
CACHE = ROOT / ".cache"
"""What can be made again at any time: token streams, checkpoints. Ignored by git."""

PACKAGES = {"foredraft.kernels": ROOT / "kernels", "foredraft": ROOT / "src" / "foredraft"}
"""Where the source of a package lies; the longest prefix counts."""


def outputs() -> Path:
    """The folder below which this run writes."""
    return Path(os.environ.get(OUTPUT_VARIABLE) or ROOT).absolute()


def notebook(slug: str) -> Path:
    """An article's notebook: the percent script, which is the source of truth."""
    return NOTEBOOKS / f"{article(slug).stem}.py"


def executed(slug: str) -> Path:
    """The executed copy of an article's notebook."""
    return outputs() / "figures" / "executed" / f"{article(slug).stem}.ipynb"


def figures(slug: str) -> Path:
    """The folder of an article's figures."""
    return outputs() / "figures" / article(slug).slug


def results(slug: str, ending: str = "json") -> Path:
    """What an article's notebook computed.

    `csv` is its tidy table, `json` has stamp, claims and values; `grid.csv` is a further table.
    """
    return result_files() / f"{article(slug).slug}.{ending}"


def record(slug: str) -> Path:
    """The full record of what an article's results and figures were made from."""
    return results(slug, "stamp.json")


def figure_tables(slug: str) -> Path:
    """The values that an article's figures are drawn from, figure by figure."""
    return results(slug, "figures.json")


def digest_line(slug: str) -> Path:
    """The file that holds the digest of the code that an article's notebook reaches."""
    return DIGESTS / f"{article(slug).slug}.txt"


def cited(slug: str) -> str:
    """How the results of an article are cited, wherever this run writes them."""
    return f"data/results/{article(slug).slug}.json"


def result_files() -> Path:
    """The folder of all computed results."""
    return outputs() / "data" / "results"


def results_page() -> Path:
    """The generated page of claims."""
    return outputs() / "RESULTS.md"


def results_macros() -> Path:
    """The generated TeX macros, one a value."""
    return outputs() / "figures" / "results.tex"


def pages() -> list[Path]:
    """The pages whose numbers are filled in: README.md and docs/*.md, as far as they exist."""
    readme = outputs() / "README.md"
    return [*([readme] if readme.is_file() else []), *sorted((outputs() / "docs").glob("*.md"))]


def written() -> list[Path]:
    """All that a reproduction writes: results, digests, figures, and the pages made of them."""
    folders = [result_files(), DIGESTS, outputs() / "figures"]
    return [*folders, results_page(), *pages(), LOCK]


def recorded(slug: str, device: str) -> Path:
    """What was measured for an article on a device such as `cpu` or `cuda`."""
    return RECORDED / f"{article(slug).slug}.{device}.json"


def sweeps(slug: str) -> Path:
    """The folder where the sweeps of an article keep their points, unless told otherwise."""
    return outputs() / "sweeps" / article(slug).slug


def model(name: str) -> Path:
    """The folder of a pocket model."""
    return MODELS / name


def weights(name: str) -> list[Path]:
    """The files that make a pocket model what it is; none for a model from elsewhere."""
    files = ("config.json", "model.safetensors", "tokenizer.json")
    return [model(name) / file for file in files if (model(name) / file).is_file()]


def recordings(slug: str) -> list[Path]:
    """All recordings of an article, by device."""
    return sorted(RECORDED.glob(f"{article(slug).slug}.*.json"))


def token_streams(key: str) -> Path:
    """The folder of the encoded corpus that a digest of text and tokenizer names."""
    return CACHE / "corpus" / key


def training(name: str) -> Path:
    """The folder where the training of a pocket model keeps its checkpoint."""
    return CACHE / "training" / name


def compiled_steps(key: str) -> Path:
    """The folder of the compiled steps of a model, which a digest of all that makes them names."""
    return CACHE / "steps" / key


def searches(key: str) -> Path:
    """The folder where searches with some settings, which a digest names, keep their trials."""
    return CACHE / "search" / key


def prompts(name: str) -> Path:
    """A file of prompts, one JSON object a line."""
    return PROMPTS / f"{name}.jsonl"


def plan(name: str) -> Path:
    """A file of one skip plan, published or found."""
    return PLANS / f"{name}.json"


def module(name: str) -> Path | None:
    """The source file of a module of ours; None if there is no such module."""
    for package, folder in PACKAGES.items():
        if name == package or name.startswith(f"{package}."):
            stem = folder.joinpath(*name.removeprefix(package).split(".")[1:])
            candidates = (stem.with_suffix(".py"), stem / "__init__.py")
            return next((path for path in candidates if path.is_file()), None)
    return None


def label(path: Path) -> str:
    """A path as results name it: relative to the repository; outside of it, folder and file."""
    path = path.resolve()
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return f"{ELSEWHERE}/{path.parent.name}/{path.name}"
