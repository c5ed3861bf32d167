"""The `foredraft` command."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

import foredraft as fd
from foredraft import paths
from foredraft.analysis.statistics import Estimate
from foredraft.articles.outputs import Outputs
from foredraft.benchmarks import roofline
from foredraft.cli import app, measure, models
from foredraft.models.loading import pocket_models
from foredraft.models.skip import PublishedPlan, SkipPlan
from foredraft.registry import ARTICLES
from foredraft.repro import claims, notebooks, params, recording
from foredraft.search import find as plan_search
from foredraft.search.engines import Ray
from foredraft.search.find import Candidate, Found
from foredraft.search.predict import Prediction
from foredraft.search.trial import Trial
from tests.decoding.conftest import tiny


@pytest.fixture
def foredraft(monkeypatch, capsys):
    """Run the command with the given words; gives exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foredraft", *words])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


@pytest.fixture
def ran(monkeypatch):
    """Instead of running notebooks, note what was to be run."""
    calls = []

    def run(slug, overrides, *, out=None):
        calls.append((slug, overrides, out))

    monkeypatch.setattr(notebooks, "run", run)
    return calls


def test_help_is_there_at_once_because_nothing_heavy_is_imported():
    heavy = "{'torch', 'transformers', 'pandas', 'matplotlib', 'papermill', 'pydantic'}"
    code = f"import sys; from foredraft import cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_console_script_answers():
    script = Path(sys.executable).with_name("foredraft")
    told = subprocess.run([script, "--help"], check=True, capture_output=True, text=True).stdout
    assert "Usage: foredraft" in told


def test_every_command_explains_itself(foredraft):
    code, listed, _ = foredraft("--help")
    names = ("run", "sync", "results", "models", "generate", "search", "pretrain", "bench")
    assert code == 0
    for name in (*names, "record", "sweep", "cite", "trace"):
        assert name in listed
        assert foredraft(name, "--help")[0] == 0


def test_parameters_are_yaml(foredraft, ran, tmp_path):
    words = ("-p", "seed=3", "-p", "temperatures=[0.5, 1]", "-p", "profile=smoke", "-p", "x=a=b")
    code, out, err = foredraft("run", "sampling", *words, "--out", str(tmp_path))
    assert code == 0, err
    overrides = {"seed": 3, "temperatures": [0.5, 1], "profile": "smoke", "x": "a=b"}
    assert ran == [("sampling", overrides, tmp_path)]
    assert out == "", "progress is no output"
    assert "▶ 01 sampling" in err
    assert "✓ 01 sampling" in err


@pytest.fixture
def graphics(monkeypatch):
    """A GPU, as far as anybody asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "x"),
        ("search",),
        ("pretrain", "pocket-llama"),
        ("bench", "sampling"),
        ("record", "sampling"),
    ],
)
@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda", "error: this machine has no CUDA device for --device cuda: use --device cpu"),
        ("gpu", "error: device 'gpu' is not known: choose cpu or cuda"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(
    foredraft, monkeypatch, words, device, told
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = foredraft(*words, "--device", device)
    assert (code, out) == (2, "")
    assert err.strip() == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "samplin"), "error: unknown article 'samplin': did you mean 'sampling'?"),
        (("run", "sampling", "-p", "seed"), "error: parameter 'seed' is not name=value"),
        (("run", "sampling", "-p", "seed=[1"), "the value is not YAML"),
        (("bench", "decod"), "error: unknown benchmark 'decod': did you mean 'decode'?"),
        (("bench", "--self"), "error: unknown benchmark 'overview --self': did you mean"),
        (
            ("bench", "sampling", "--device", "cuda"),
            "error: unknown benchmark 'sampling on cuda': did you mean 'sampling on cpu'?",
        ),
    ],
)
@pytest.mark.usefixtures("graphics")
def test_a_users_mistake_is_one_message_and_exit_code_2(foredraft, ran, words, told):
    code, _, err = foredraft(*words)
    assert code == 2
    assert told in err
    assert "Traceback" not in err
    assert not ran


def test_a_failed_notebook_is_told_and_exit_code_1(foredraft, monkeypatch):
    def fail(*args, **options):
        raise notebooks.NotebookError("sampling: cell 3 failed [oh]")

    monkeypatch.setattr(notebooks, "run", fail)
    code, _, err = foredraft("run", "sampling")
    assert code == 1
    assert "error: sampling: cell 3 failed [oh]" in err


def test_results_are_written_and_shown(foredraft, outputs):
    claim = claims.Claim("a", "a claim", "x", article=1, n=3, spread=0.5)
    Outputs("sampling", {}).finish(pd.DataFrame({"x": [2.5]}), {"x": 2.5}, [claim])
    code, out, _ = foredraft("results")
    assert code == 0
    assert "a claim" in out
    assert "2.5 ± 0.5" in out
    assert paths.results_page().is_file()


def test_results_and_models_are_told_in_json_too(foredraft, outputs, tmp_path, monkeypatch):
    claim = claims.Claim("a", "a claim", "x", article=1, n=3, spread=0.5)
    Outputs("sampling", {}).finish(pd.DataFrame({"x": [2.5]}), {"x": 2.5}, [claim])
    (told,) = json.loads(foredraft("results", "--json")[1])
    assert told["file"] == "data/results/sampling.json"
    assert told["claims"][0]["key"] == "x"
    assert told["values"] == {"x": 2.5}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "card.json").write_text('{"name": "one"}')
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    assert json.loads(foredraft("models", "--json")[1]) == [{"name": "one"}]


def test_the_shell_can_be_taught_the_commands(foredraft):
    assert "--install-completion" in foredraft("--help")[1]


def test_models_lists_what_is_shipped(foredraft, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    card = {
        "name": "pocket-llama",
        "architecture": "llama",
        "n_layers": 12,
        "parameters": 16_000_000,
        "held_out_package": {"bits_per_byte": 1.23456},
    }
    folder = tmp_path / "pocket-llama"
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "model.safetensors").write_bytes(b"0" * 2_500_000)
    code, out, _ = foredraft("models")
    assert code == 0
    row = ["pocket-llama", "llama", "12", "16,000,000", "2.5", "1.235"]
    assert out.splitlines()[1].split() == row


def test_no_name_of_a_model_is_cut_where_there_is_no_terminal(foredraft):
    code, out, _ = foredraft("models")
    assert code == 0
    assert set(pocket_models()) <= set(out.split())


def test_a_benchmark_is_shown_or_recorded(foredraft, tmp_path, monkeypatch):
    spread = {"ratio_median": 9.87654, "ratio_min": 9, "ratio_max": 11, "ratio_iqr": 1}
    row = {"what": "top-k", **spread, "n": 5}
    table = pd.DataFrame([row])
    measures = {("sampling", "cpu"): lambda: table}
    monkeypatch.setattr(measure, "_benchmarks", lambda *_: measures)
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    code, out, _ = foredraft("bench", "sampling")
    assert code == 0
    assert out.splitlines()[0].split() == ["what", "ratio", "n"]
    assert out.splitlines()[1].split() == ["top-k", "9.88", "(9–11)", "5"]
    assert not list(tmp_path.iterdir())
    for words in (("record",), ("record", "sampling")):
        assert foredraft(*words)[0] == 0
        kept = recording.recordings("sampling")["cpu"]
        assert kept.table["ratio_median"].tolist() == [9.87654]
    assert set(kept.stamp.code) == {"src/foredraft/benchmarks/sampling.py"}


@pytest.mark.parametrize("name", [None, "roofline"])
def test_without_a_name_all_is_benched_briefly_and_kept_where_asked(
    foredraft, tmp_path, monkeypatch, name
):
    asked, keep = [], recording.keep
    monkeypatch.setattr(recording, "keep", lambda *table: asked.append(table[0]) or keep(*table))
    spread = {"value_median": 1.23456, "value_min": 1, "value_max": 2, "value_iqr": 0.5}
    row = {"ratio": "÷ ours", **spread, "n": 5, "device": "cpu", "threads": 2}
    pages = {slug: lambda **_: pd.DataFrame([row]) for slug in (measure.OVERVIEW, "roofline")}
    monkeypatch.setattr(measure, "_apart", lambda: pages)
    monkeypatch.setattr(roofline, "asked", lambda table: table)
    file = tmp_path / "new" / "ratios.json"
    words = ["bench", *([name] if name else [])]
    code, out, _ = foredraft(*words)
    assert code == 0
    assert out.splitlines()[1].split()[2:] == ["1.23", "(1–2)", "5", "cpu", "2"]
    assert not asked
    assert foredraft(*words, "--out", str(file))[0] == 0
    assert asked == [file]
    kept = recording.read(file)
    assert kept.table.to_dict("records") == [row]
    assert f"src/foredraft/benchmarks/{name or measure.OVERVIEW}.py" in kept.stamp.code
    assert kept.machine.cores > 0


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("", "--out {0} is a folder: name a file in it, say {0}/bench.json"),
        ("file/b.json", "--out {0}/file/b.json cannot be written: {0}/file is no folder that you"),
        ("file/new/b.json", "{0}/file is no folder that you may write to; name a file in one"),
        ("shut/b.json", "{0}/shut is no folder that you may write to; name a file in one"),
    ],
)
def test_nothing_is_measured_for_a_file_that_cannot_be_written(
    foredraft, tmp_path, monkeypatch, out, told
):
    (tmp_path / "file").touch()
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "shut")  # root may all
    monkeypatch.setattr(
        measure, "_apart", lambda: {measure.OVERVIEW: lambda **_: pytest.fail("measured")}
    )
    code, shown, err = foredraft("bench", "--out", str(tmp_path / out))
    assert (code, shown) == (2, "")
    assert told.format(tmp_path) in err
    assert "Traceback" not in err


def test_make_bench_keeps_its_table_where_git_does_not_look():
    told = subprocess.run(
        ["make", "--dry-run", "bench"], cwd=paths.ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "foredraft bench --out build/bench.json" in told
    ignored = ["git", "check-ignore", "build/bench.json"]
    assert subprocess.run(ignored, cwd=paths.ROOT, check=False).returncode == 0


def test_what_depends_on_parameters_is_recorded_with_those_of_its_profile(
    foredraft, tmp_path, monkeypatch
):
    asked, row = [], {"what": "x", "ratio_iqr": 0.1, "n": 5}

    def benchmarks(profile=None):
        asked.append(profile)
        return {("confidence_gating", "cpu"): lambda: pd.DataFrame([row])}

    monkeypatch.setattr(measure, "_benchmarks", benchmarks)
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    assert foredraft("record", "confidence_gating", "--profile", "smoke")[0] == 0
    kept = recording.recordings("confidence_gating")["cpu"].stamp
    assert asked[0] == "smoke"
    assert kept.params == params.load(
        "confidence_gating", {"profile": "smoke", "device": "cpu"}
    ).model_dump(mode="json", exclude={"seed"}) | {
        key: value for key, value in kept.params.items() if key == "seed"
    }
    code, _, err = foredraft("record", "sampling", "--profile", "smoke")
    assert code == 2
    assert "profile 'smoke' is for self_speculation, confidence_gating" in err


@pytest.fixture
def wide(monkeypatch):
    """A benchmark of one row with fifteen figures, which no terminal of 80 has room for."""
    figures = {f"figure_{place}": 1.125 + place for place in range(15)}
    measures = {("sampling", "cpu"): lambda: pd.DataFrame([figures])}
    monkeypatch.setattr(measure, "_benchmarks", lambda *_: measures)
    return {name: f"{value:.4g}" for name, value in figures.items()}


def test_a_wide_table_goes_into_a_pipe_with_a_row_on_a_line(foredraft, wide):
    code, out, _ = foredraft("bench", "sampling")
    names, figures = out.splitlines()[:2]
    assert code == 0
    assert names.split() == list(wide)
    assert figures.split() == list(wide.values())


def test_a_terminal_too_narrow_for_a_table_cuts_no_figure(foredraft, output, wide):
    output(terminal=True, width=80)
    _, out, _ = foredraft("bench", "sampling")
    assert max(map(cell_len, map(str, map(Text.from_ansi, out.splitlines())))) <= 80
    told = Counter(filter(str.isdigit, out))
    assert Counter(filter(str.isdigit, "".join([*wide, *wide.values()]))) <= told


def test_self_drafting_is_benched_by_name_with_the_ratios_asked_for(foredraft, monkeypatch):
    def row(library, reuse, rate):
        way = {"strategy": "self-drafting", "library": library, "name": "exit 2", "reuse": reuse}
        speed = {"tokens_per_second_median": rate, "speedup_median": rate / 10}
        return {"model": "m", "sampler": "greedy", **way, "length": 3, **speed, "n": 8}

    rows = pd.DataFrame([row("foredraft", True, 12.0), row("transformers", False, 5.0)])
    monkeypatch.setattr(
        measure, "_benchmarks", lambda *_: {("layer_skipping", "cpu"): lambda: rows}
    )
    code, out, _ = foredraft("bench", "decode", "--self")
    assert code == 0
    assert "n 8" in out
    assert "÷ autoregressive" in out
    assert "2.4" in out
    assert foredraft("bench", "sampling", "--self")[0] == 2


def test_sync_writes_what_is_missing_and_says_so(foredraft, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(paths, "TREE", tmp_path / "tree.md")
    (tmp_path / "01_x.py").write_text("# %%\n1\n")
    written = foredraft("sync")[2]
    assert "01_x.ipynb" in written
    assert "tree.md" in written
    assert foredraft("sync")[2] == ""


def test_every_article_can_be_asked_for(foredraft, ran):
    for article in ARTICLES:
        assert foredraft("run", article.slug)[0] == 0
    assert [slug for slug, *_ in ran] == list(params.SECTIONS)


def test_generated_text_is_shown_whole_and_the_same_for_the_same_seed(foredraft):
    words = ("generate", "def mean(x):", "-n", "12", "--top-k", "20", "--top-p", "0.9")
    first, again = foredraft(*words, "--seed", "3"), foredraft(*words, "--seed", "3")
    assert first == again
    assert first[0] == 0
    assert foredraft(*words, "--seed", "4")[1] != first[1]


@pytest.fixture(scope="module")
def kept():
    """Load each model once."""
    return cache(fd.load)


@pytest.fixture
def output(monkeypatch, kept):
    """Say whether standard output is a terminal, and whether it has colours."""
    monkeypatch.setattr(fd, "load", kept)

    def be(*, terminal: bool, colours: bool = True, width: int | None = None) -> None:
        console = Console(
            force_terminal=terminal,
            color_system="auto",
            no_color=not colours,
            width=width,
            _environ=TERMINAL,
        )
        for commands in (models, measure):
            monkeypatch.setattr(commands, "output", console)

    be(terminal=False)
    return be


TERMINAL = {"TERM": "xterm-256color"}
DRAFTED = ("generate", "def mean(x):", "-n", "12", "--drafter", "pocket-gemma2")


def test_plain_decoding_has_neither_marks_nor_colours(foredraft, output):
    output(terminal=True)
    code, out, err = foredraft("generate", "def mean(x):", "-n", "12")
    assert code == 0
    assert not re.search(r"\x1b|‹[rb]›", out)
    assert err == (
        "12 tokens · 12 rounds · 0 drafted · 0 accepted · acceptance rate – · "
        "1.00 tokens a target pass\n"
    )


@pytest.mark.parametrize("how", [{"terminal": False}, {"terminal": True, "colours": False}])
def test_where_there_is_no_colour_tokens_are_told_apart_by_marks(foredraft, output, how):
    output(**how)
    code, out, err = foredraft(*DRAFTED)
    legend, told = err.splitlines()
    assert code == 0
    assert legend == "accepted · ‹r›recovered · ‹b›bonus"
    tokens, rounds, drafted, accepted = map(int, re.findall(r"\d+", told)[:4])
    assert tokens == 12 == rounds + accepted
    assert drafted > accepted > 0
    assert len(re.findall("‹[rb]›", out)) == rounds
    assert "\x1b" not in out


def test_on_a_terminal_tokens_are_told_apart_by_colours(foredraft, output):
    plain = foredraft(*DRAFTED, "--plain")[1]
    output(terminal=True)
    _, out, err = foredraft(*DRAFTED)
    assert err.startswith("accepted (green) · recovered (yellow) · bonus (blue)\n")
    assert "\x1b[32m" in out
    assert re.sub(r"\x1b\[\d+m", "", out) == plain


def test_marks_come_and_go_as_asked(foredraft, output):
    marked = foredraft(*DRAFTED)[1]
    _, clean, told = foredraft(*DRAFTED, "--no-marks")
    assert re.sub("‹[rb]›", "", marked) == clean
    assert foredraft(*DRAFTED, "--plain") == (0, clean, told)
    assert len(told.splitlines()) == 1, "nothing to explain"
    output(terminal=True)
    both = foredraft(*DRAFTED, "--marks")[1]
    assert re.sub(r"\x1b\[\d+m", "", both) == marked
    assert foredraft(*DRAFTED, "--plain") == (0, clean, told)


@pytest.mark.parametrize(
    "words",
    [
        ("--drafter", "lookup"),
        ("--drafter", "pocket-llama", "--confidence-exit", "0.6", "--draft-length", "3"),
        ("--drafter", "pocket-gemma2", "--verification", "block", "--draft-length", "1"),
    ],
)
def test_whoever_drafts_the_greedy_text_is_the_same(foredraft, output, words):
    greedy = ("generate", "def f(x):\n    return f(x", "-n", "16", "--temperature", "0", "--plain")
    code, out, err = foredraft(*greedy, *words)
    assert (code, out) == (0, foredraft(*greedy)[1])
    assert " 0 drafted" not in err


def test_a_draft_model_of_the_same_size_but_other_tokens_is_refused_by_their_names(
    foredraft, tmp_path
):
    """As many tokens, two of which have changed places: sizes alone would not tell."""
    whole = paths.model("pocket-llama-draft")
    for file in whole.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tokenizer = json.loads((whole / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    one, other = (next(word for word, i in vocab.items() if i == place) for place in (300, 301))
    vocab[one], vocab[other] = 301, 300
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, out, err = foredraft("generate", "x", "--drafter", str(tmp_path))
    assert (code, out) == (2, "")
    assert "error: the draft model's tokenizer differs from the target's in 2 tokens" in err
    assert all(told in err for told in (f"{one!r} (300, 301)", f"{other!r} (301, 300)"))
    assert "Traceback" not in err


PAIR = ("--model", "pocket-llama", "--drafter", "pocket-llama-draft")
FIBONACCI = ("generate", "def fib(n):", *PAIR, "-n", "24")
KINDS = {
    "accepted": ("\x1b[32m", ""),
    "recovered": ("\x1b[33m", "‹r›"),
    "bonus": ("\x1b[34m", "‹b›"),
}


@pytest.fixture
def streamed(monkeypatch):
    """Note each piece that is written and, as None, the end of each round."""
    written = []
    echo, generate = typer.echo, fd.generate

    def write(text="", **options):
        written.append(text)
        echo(text, **options)

    def noted(*args, on_round, **options):
        def end(each):
            on_round(each)
            written.append(None)

        return generate(*args, on_round=end, **options)

    monkeypatch.setattr(typer, "echo", write)
    monkeypatch.setattr(fd, "generate", noted)
    return written


@pytest.mark.parametrize("terminal", [True, False])
def test_the_pocket_pair_streams_all_three_kinds_of_tokens_then_one_line_of_figures(
    foredraft, output, streamed, terminal
):
    """Told apart by colour on a terminal, by marks without; each round is shown as it ends."""
    output(terminal=terminal)
    code, out, err = foredraft(*FIBONACCI)
    assert code == 0
    for colour, mark in KINDS.values():
        assert (colour in out) == terminal
        assert not mark or (mark in out) != terminal
    legend, figures = err.splitlines()
    assert [part in legend for part in KINDS] == [True] * 3
    rounds = int(re.search(r"^24 tokens · (\d+) rounds · \d+ drafted · \d+ accepted", figures)[1])
    assert streamed.count(None) == rounds > 3
    assert streamed[0], "shown before the first round was over"
    first, last = streamed.index(None), len(streamed) - 1 - streamed[::-1].index(None)
    assert len([piece for piece in streamed[first:last] if piece]) >= rounds
    assert "".join(filter(None, streamed)) + "\n" == out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--confidence-exit", "0.5"), "error: --confidence-exit 0.5 looks at a draft model's"),
        (("--drafter", "lookup", "--confidence-exit", "0.5"), "give one with --drafter"),
        (("--drafter", "lookup", "--draft-length", "0"), "give 1 or more, or no drafter"),
        (("--drafter", "pocket-lama"), "error: no model 'pocket-lama': did you mean"),
        (("--verification", "tokens"), "unknown verification 'tokens': did you mean 'token'?"),
    ],
)
def test_a_way_to_draft_that_makes_no_sense_is_one_line(foredraft, words, told):
    code, out, err = foredraft("generate", "x", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


@pytest.fixture
def loaded(monkeypatch, kept):
    """Note how each model is asked for; whatever that is, it is a plain one on the processor."""
    calls = []

    def load(name, **options):
        calls.append((name, options))
        return kept(name)

    monkeypatch.setattr(fd, "load", load)
    return calls


@pytest.mark.parametrize(
    ("words", "compiled", "device_map"),
    [((), False, None), (("--compile",), True, None), (("--device-map", "auto"), False, "auto")],
)
def test_both_models_are_compiled_as_asked_and_the_target_is_placed(
    foredraft, loaded, words, compiled, device_map
):
    """The draft model goes where the target reads tokens."""
    assert foredraft("generate", "x", *PAIR, "-n", "2", *words)[0] == 0
    assert loaded == [
        ("pocket-llama", {"device": "cpu", "compile": compiled, "device_map": device_map}),
        ("pocket-llama-draft", {"device": torch.device("cpu"), "compile": compiled}),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--compile", "--device-map", "auto"), "error: compile=True and device_map: compiled"),
        (("--device", "cuda", "--device-map", "auto"), "error: device='cuda' and device_map: give"),
        (("--device-map", "autto"), "error: unknown device_map 'autto': did you mean 'auto'?"),
    ],
)
@pytest.mark.usefixtures("graphics")
def test_a_place_for_a_model_that_makes_no_sense_is_one_line(foredraft, words, told):
    code, out, err = foredraft("generate", "x", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_a_sampler_that_makes_no_sense_is_one_line_and_no_traceback(foredraft):
    code, out, err = foredraft("generate", "x", "--top-p", "1.5")
    assert (code, out) == (2, "")
    assert "top_p" in err
    assert "Traceback" not in err


def test_a_model_that_is_not_there_is_one_line_with_what_is(foredraft):
    code, _, err = foredraft("generate", "x", "--model", "pocket-lama")
    assert code == 2
    assert "pocket-llama" in err


@pytest.fixture
def plans(monkeypatch, tmp_path):
    """Keep no plan in the repository."""
    monkeypatch.setattr(paths, "PLANS", tmp_path / "plans")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "plans"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--trials", "0"), "self_speculation.trials: 0 is not allowed; it must be greater than"),
        (("--objective", "speed"), "unknown objective 'speed': did you mean 'speedup'? Known: acc"),
        (("--objective", "-costs"), "unknown objective 'costs': did you mean 'cost'?"),
        (("--costs", "clok"), "unknown kind of costs 'clok': did you mean 'clock'?"),
        (("--engine", "rai"), "unknown engine 'rai': did you mean 'ray'?"),
        (("--address", "head:6379"), "--address head:6379 is that of a Ray cluster: add --engine"),
        (("--engine", "ray", "--workers", "0"), "workers=0: give 1 or more"),
        (("--engine", "ray", "--device", "cuda"), "Ray's workers have no cuda"),
        (("--temperature", "-1"), "self_speculation.temperature: -1.0 is not allowed"),
        (("--model", "pocket-lama"), "no model 'pocket-lama': did you mean 'pocket-llama'?"),
        (("--profile", "smok"), "unknown profile of self_speculation 'smok': did you mean 'smoke'"),
        (("--seed", "-1"), "self_speculation.seed: -1 is not allowed"),
    ],
)
@pytest.mark.usefixtures("graphics")
def test_a_search_that_makes_no_sense_is_one_line_and_leaves_nothing(foredraft, plans, words, told):
    code, out, err = foredraft("search", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err
    assert not [*plans.parent.iterdir()]


def test_an_objective_is_any_metric_that_a_plan_is_foretold_by(found):
    assert set(models.OBJECTIVES) == set(found.best[0].metrics())


@pytest.fixture
def found(tmp_path) -> Found:
    """What a search of a tiny model came to."""
    plan = SkipPlan(attn=[1], mlp=[0, 1])
    subject = Candidate("tiny", tiny("llama", 11, 3, torch.float32), [[1]], [[2]])
    speedup = Estimate(1.25, 0.01)
    best = Prediction(plan, 3, speedup, *[Estimate(0.5, 0.02)] * 3, cost=0.4)
    ends = {"speedup_median": 1.174, "speedup_min": 1.1, "speedup_max": 1.3, "speedup_iqr": 0.05}
    row = {"name": "found 1", "predicted_held_out": 1.21, **ends, "acceptance": 0.45, "n": 8}
    trials = [Trial(0, plan, best.metrics(), "start")]
    rows = pd.DataFrame([{**row, "name": None}, row])
    return Found(subject, 1.0, trials, [best], pd.DataFrame(), rows, 2.0, tmp_path / "cache")


@pytest.fixture
def searched(monkeypatch, found):
    """Instead of searching, note how it was asked for."""
    calls = []

    def find(name, params, **options):
        calls.append((name, params, options))
        return found

    monkeypatch.setattr(plan_search, "find", find)
    return calls


def test_a_search_shows_the_plan_its_three_speed_ups_and_where_it_is(foredraft, plans, searched):
    words = ("--model", "tiny", "--trials", "9", "--seed", "3", "--costs", "bytes")
    code, out, err = foredraft("search", *words, "--objective", "-cost", "--temperature", "0.5")
    assert code == 0
    assert out.splitlines() == [
        "SkipPlan(attn=[1], mlp=[0, 1]), draft length 3",
        "speed-up foretold 1.250 ± 0.010, by held-out texts 1.210, decoded 1.17 (1.1–1.3), n 8",
    ]
    assert err == f"✓ {paths.label(plans / 'tiny.json')}\n"
    assert PublishedPlan.read("tiny").gamma == 3
    ((name, given, options),) = searched
    assert (name, given.trials, given.seed, given.objective) == ("tiny", 9, 3, "-cost")
    assert (options["temperature"], options["times"], options["engine"]) == (0.5, False, None)


def test_a_search_goes_by_the_clock_unless_told_otherwise(foredraft, plans, searched):
    assert foredraft("search", "--profile", "smoke")[0] == 0
    ((name, given, options),) = searched
    assert (name, given.profile, given.objective) == ("pocket-llama", "smoke", "speedup")
    assert (options["temperature"], options["times"], options["engine"]) == (1.0, True, None)


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_a_search_on_a_cluster_has_as_many_workers_as_asked_for_where_asked(
    foredraft, plans, searched, address
):
    words = ["--address", address] if address else []
    assert foredraft("search", "--engine", "ray", "--workers", "3", *words)[0] == 0
    ((_, _, options),) = searched
    assert isinstance(options["engine"], Ray)
    assert (options["engine"].workers, options["engine"].address) == (3, address)
