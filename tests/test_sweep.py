"""Sweeps: every setting once, kept when it is done, whatever fails or dies on the way."""

import json
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.repro import claims as results
from foredraft.repro import notebooks, provenance
from foredraft.repro.origin import trace
from foredraft.sweep import engines
from foredraft.sweep.engines import Local, Ray, made
from foredraft.sweep.grid import grid, rows
from foredraft.sweep.point import points
from foredraft.sweep.table import report, shown, swept, tidy
from foredraft.viz.figures import FORMATS
from tests import checkout

SLUG = checkout.SLUG
PAGE = (paths.ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
PATIENCE = 600
"""Seconds; the machine may be busy."""


@pytest.fixture
def small(tmp_path):
    with checkout.make(tmp_path / "checkout") as made:
        yield made


@pytest.fixture
def source(tmp_path):
    """A file that all results are made from."""
    path = tmp_path / "source.txt"
    path.write_text("one")
    return path


@pytest.fixture
def run(monkeypatch, source):
    """Instead of running notebooks, write results at once; lengths in `run.fails` fail."""

    class Run:
        fails: tuple[int, ...] = ()
        lengths: tuple[int, ...] = ()

        def __call__(self, slug, overrides, *, out):
            length = overrides["length"]
            self.lengths += (length,)
            if length in self.fails:
                raise notebooks.NotebookError(f"cell 3 failed at {length}")
            rate = length / 10 + overrides.get("temperature", 0)
            values = {"rate": rate, "twice": 2 * rate, "same": 3, "name": "a"}
            claims = [results.Claim("r", "The rate", "rate", n=4, spread=0.1)]
            claims += [results.Claim("s", "Always", "same"), results.Claim("n", "Name", "name")]
            monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(out))
            written = Outputs(slug, {"length": length}, [source])
            written.finish(pd.DataFrame({"x": [1]}), values, claims)
            monkeypatch.delenv(paths.OUTPUT_VARIABLE)

    found = Run()
    monkeypatch.setattr(notebooks, "run", found)
    monkeypatch.setattr(
        provenance.Stamp,
        "changed_inputs",
        lambda stamp: [n for n, was in stamp.inputs.items() if was != provenance.digest(source)],
    )
    return found


class Here:
    """An engine that makes points in this process."""

    def __init__(self, **_):
        pass

    def make(self, points):
        for each in points:
            each.make()
            yield each


def planned(tmp_path, *axes, rows=({},)):
    return points(SLUG, grid(axes, rows), tmp_path / "sweep")


def test_a_grid_is_every_combination_of_values_with_every_row():
    assert grid(["length=1,2", "kinds=[table],[a, b]"], [{"seed": 1}]) == [
        {"seed": 1, "length": 1, "kinds": ["table"]},
        {"seed": 1, "length": 1, "kinds": ["a", "b"]},
        {"seed": 1, "length": 2, "kinds": ["table"]},
        {"seed": 1, "length": 2, "kinds": ["a", "b"]},
    ]


def test_a_row_of_a_file_is_a_setting_whose_empty_cells_say_nothing(tmp_path):
    file = tmp_path / "settings.csv"
    file.write_text('length,kinds,model\n1,"[a, b]",\n\n2,,pocket-llama\n')
    assert rows(file) == [
        {"length": 1, "kinds": ["a", "b"]},
        {"length": 2, "model": "pocket-llama"},
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n", "has no rows"),
        ("", "has no rows"),
        ("a,b\n1\n", "1 cells for 2"),
        (None, "no"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, told):
    file = tmp_path / "settings.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=told):
        rows(file)


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        (["length"], "is not name=value,value"),
        (["length="], "is not name=value,value"),
        (["length=[1"], "the value is not YAML"),
        (["length=1", "length=2"], "'length' is given twice"),
        (["seed=1"], "'seed' is given twice"),
    ],
)
def test_an_axis_that_is_none_is_refused(axes, told):
    with pytest.raises(ValueError, match=told):
        grid(axes, [{"seed": 1}])


def test_settings_that_come_to_the_same_parameters_are_one_point(tmp_path):
    found = planned(tmp_path, "temperature=1,1.0", "length=2,4")
    assert [each.params["length"] for each in found] == [2, 4]
    assert len({each.folder for each in found}) == 2
    again = points(SLUG, grid(["length=4,2"]), tmp_path)
    assert {each.folder.name for each in again} == {each.folder.name for each in found}


@pytest.mark.parametrize(
    ("axis", "told"),
    [
        (
            "lenght=1",
            "notebook speculative_decoding 'lenght': did you mean 'length'",
        ),
        ("length=0", "speculative_decoding.length: 0 is not allowed"),
        ("profile=smok", "did you mean 'smoke'"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_told_before_anything_is_written(tmp_path, axis, told):
    with pytest.raises(ValueError, match=told):
        planned(tmp_path, axis)
    assert not list(tmp_path.iterdir())


def test_what_is_done_is_not_done_again(run, tmp_path):
    assert [error for _, error in made(planned(tmp_path, "length=1,2"), Here())] == [None, None]
    assert [error for _, error in made(planned(tmp_path, "length=1,2,4"), Here())] == [None] * 3
    assert run.lengths == (1, 2, 4)


def test_what_was_made_from_other_sources_is_made_again(run, source, tmp_path):
    (first,) = planned(tmp_path, "length=1")
    first.make()
    (first.folder / "figures").mkdir()
    (first.folder / "figures" / "old.png").touch()
    source.write_text("two")
    assert not first.is_done()
    first.make()
    assert first.is_done()
    assert run.lengths == (1, 1)
    assert not (first.folder / "figures").exists(), "what an earlier run left is gone"


@pytest.mark.parametrize("name", ["prompts_file", "model"])
def test_a_file_elsewhere_that_a_parameter_names_is_looked_at_again(run, tmp_path, name):
    """A reader's prompts; a reader's model, of whose folder every file counts."""
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_text("one")
    named = folder if name == "model" else file
    (point,) = planned(tmp_path / "sweep", "length=1", f"{name}={named}")
    point.make()
    assert point.is_done()
    file.write_text("another")
    assert not point.is_done()
    assert str(file) in str(point.error())
    point.make()
    assert point.is_done()


def test_a_file_that_changes_while_a_point_is_made_leaves_it_undone(run, tmp_path, monkeypatch):
    file = tmp_path / "mine.jsonl"
    file.write_text("one")
    (point,) = planned(tmp_path / "sweep", "length=1", f"prompts_file={file}")

    def meanwhile(*args, **options) -> None:
        run(*args, **options)
        file.write_text("another")

    monkeypatch.setattr(notebooks, "run", meanwhile)
    point.make()
    assert not point.is_done()
    assert str(file) in str(point.error())


def test_what_was_changed_by_hand_is_made_again(run, tmp_path):
    (first,) = planned(tmp_path, "length=1")
    first.make()
    result = first.folder / paths.cited(SLUG)
    for change in (lambda: result.write_text("{}"), result.unlink):
        change()
        assert not first.is_done()
        first.make()
        assert first.is_done()
    assert run.lengths == (1, 1, 1)


def test_what_was_made_with_other_versions_is_made_again(run, tmp_path, monkeypatch):
    (first,) = planned(tmp_path, "length=1")
    first.make()
    monkeypatch.setattr(provenance, "PACKAGES", ("pandas", "pytest"))
    assert not first.is_done()
    assert "pytest" in str(first.error())


def test_a_failed_point_says_why_and_succeeds_later(run, tmp_path):
    run.fails = (2,)
    ended = made(planned(tmp_path, "length=1,2,4"), Here())
    told = {each.params["length"]: error for each, error in ended}
    assert told == {1: None, 2: "cell 3 failed at 2", 4: None}
    run.fails = ()
    assert all(error is None for _, error in made(planned(tmp_path, "length=1,2,4"), Here()))
    assert run.lengths == (1, 2, 4, 2)
    assert not list(tmp_path.rglob("error.txt"))


def test_a_point_without_results_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "run", lambda *_, out: None)
    (only,) = planned(tmp_path, "length=1")
    only.make()
    assert "has left no data/results/speculative_decoding.json" in str(only.error())


def test_a_point_without_a_record_has_failed(run, tmp_path, monkeypatch):
    def forgetful(slug, overrides, *, out):
        run(slug, overrides, out=out)
        (out / "data" / "results" / f"{slug}.stamp.json").unlink()

    monkeypatch.setattr(notebooks, "run", forgetful)
    (only,) = planned(tmp_path, "length=1")
    only.make()
    assert not only.is_done()
    assert f"{SLUG}.stamp.json is missing" in str(only.error())


def test_a_point_whose_process_died_says_where_its_words_are(tmp_path):
    (only,) = planned(tmp_path, "length=1")
    assert str(only.log) in str(only.error())


def test_a_table_has_a_row_for_every_point_and_value(run, tmp_path):
    found = planned(tmp_path, "length=1,2", rows=[{"lengths": [1, 2]}])
    list(made(found, Here()))
    table = tidy(found)
    assert list(table) == ["lengths", "length", "key", "value", "spread", "n", "claim"]
    assert len(table) == 2 * 4
    rate = table[table["key"] == "rate"]
    assert rate[["lengths", "length", "value", "spread", "n", "claim"]].to_numpy().tolist() == [
        ["[1, 2]", 1, 0.1, 0.1, 4, "The rate"],
        ["[1, 2]", 2, 0.2, 0.1, 4, "The rate"],
    ]
    assert swept(found) == ["length"]


def test_the_claims_that_move_are_drawn_unless_others_are_asked_for(run, tmp_path):
    found = planned(tmp_path, "length=1,2")
    list(made(found, Here()))
    table = tidy(found)
    assert shown(table) == ["rate"]
    assert shown(table, ["twice", "same"]) == ["twice", "same"]
    assert shown(tidy(found[:1])) == ["rate", "same"]
    with pytest.raises(ValueError, match="unknown value to show 'rat': did you mean 'rate'"):
        shown(table, ["rat"])
    with pytest.raises(ValueError, match="'name' is no number"):
        shown(table, ["name"])


def test_a_key_that_nothing_known_has_is_refused_before_points_are_made(foredraft, run, tmp_path):
    words = ("-p", "length=1,2", "--out", str(tmp_path / "s"))
    code, _, err = foredraft(*words, "--show", "acceptance.men")
    assert code == 2
    assert "did you mean 'acceptance.mean'" in err
    assert "run them without --show: the points are kept" in err
    code, _, err = foredraft(*words, "--show", "speedup_greedy.strategy")
    assert code == 2
    assert "'draft model', no number" in err
    assert not run.lengths
    assert not (tmp_path / "s").exists()


def test_a_key_that_only_these_settings_give_is_drawn_once_a_point_is_done(
    foredraft, run, tmp_path
):
    words = ("-p", "length=1,2", "--out", str(tmp_path / "s"))
    assert foredraft(*words, "--show", "twice")[0] == 2
    assert foredraft(*words)[0] == 0
    assert foredraft(*words, "--show", "twice")[0] == 0
    assert run.lengths == (1, 2)


def test_without_results_to_go_by_every_key_may_be_right(foredraft, run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        results,
        "read",
        lambda slug, below=None, read=results.read: (
            None if below == paths.ROOT else read(slug, below)
        ),
    )
    words = ("-p", "length=1,2", "--out", str(tmp_path / "s"))
    assert foredraft(*words, "--show", "twice")[0] == 0


@pytest.mark.parametrize(
    "axes",
    [
        ["length=1,2,4", "temperature=0,1"],
        ["verification=token,block", "length=1,2", "seed=1,2"],
    ],
)
def test_a_report_is_a_table_and_a_figure_that_say_what_they_are_from(run, tmp_path, axes):
    found = planned(tmp_path, *axes)
    list(made(found, Here()))
    table, *drawn = report(found, tmp_path / "sweep", ["rate", "twice"])
    assert len(provenance.read_table(table)) == 4 * len(found)
    assert [path.name for path in drawn] == [f"sweep.{ending}" for ending in FORMATS]
    for path in (table, *drawn):
        origin = trace(path)
        assert origin.stamp.what == f"sweep of {SLUG}"
        assert origin.article.slug == SLUG
        assert Path(origin.record).name == "table.json"
        assert set(origin.stamp.params) == {axis.partition("=")[0] for axis in axes}
        markers = {name for name in origin.stamp.inputs if name.endswith("point.json")}
        assert len(markers) == len(found)
        assert set(origin.stamp.code) == {"src/foredraft/sweep/plots.py"}


def test_a_figure_of_a_sweep_is_not_known_once_the_table_is_of_other_points(run, tmp_path):
    found = planned(tmp_path, "length=1,2,4")
    list(made(found, Here()))
    _, *drawn = report(found, tmp_path / "sweep", ["rate"])
    provenance.write_table(
        tmp_path / "sweep" / "table.csv",
        tidy(found[:2]),
        provenance.Stamp(what=f"sweep of {SLUG}", params={}, inputs={}, versions={}),
    )
    for path in drawn:
        with pytest.raises(ValueError, match=rf"{path.name} has the digest \w+, which no record"):
            trace(path)


def test_a_report_is_the_same_bytes_each_time(run, tmp_path):
    found = planned(tmp_path, "length=1,2")
    list(made(found, Here()))
    once, again = (report(found, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]


def test_a_single_point_has_a_table_and_no_figure(run, tmp_path):
    found = planned(tmp_path, "length=1")
    list(made(found, Here()))
    assert report(found, tmp_path / "sweep") == [tmp_path / "sweep" / "table.csv"]


def test_engines_say_what_they_need(monkeypatch):
    with pytest.raises(ValueError, match="jobs=0: give 1 or more"):
        Local(jobs=0)
    with pytest.raises(ValueError, match="jobs=0: give 1 or more"):
        Ray(jobs=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="the engine local does without"):
        Ray(jobs=1)


@pytest.fixture
def foredraft(monkeypatch, capsys):
    """Run the command in this process; gives exit code, standard output, standard error."""
    from foredraft.cli import app

    monkeypatch.setattr(engines, "Local", Here)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foredraft", "sweep", SLUG, *words])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_failed_points_are_told_and_the_same_command_runs_those_alone(foredraft, run, tmp_path):
    run.fails = (2,)
    words = ("-p", "length=1,2,4", "--out", str(tmp_path / "s"))
    code, out, err = foredraft(*words)
    assert (code, out) == (1, "")
    assert re.search(r"✓ length=1\n✗ length=2\ncell 3 failed at 2\n✓ length=4", err)
    assert "error: 1 of 3 points failed; the same command runs those again" in err
    assert set(provenance.read_table(tmp_path / "s" / "table.csv")["length"]) == {1, 4}
    run.fails = ()
    assert foredraft(*words)[0] == 0
    assert run.lengths == (1, 2, 4, 2)
    assert set(provenance.read_table(tmp_path / "s" / "table.csv")["length"]) == {1, 2, 4}


def test_a_dry_run_lists_the_points_and_writes_nothing(foredraft, run, tmp_path):
    file = tmp_path / "settings.csv"
    file.write_text("length\n1\n2\n")
    words = ("--csv", str(file), "-p", "temperature=0,1", "--out", str(tmp_path / "s"))
    code, out, _ = foredraft(*words, "--dry-run")
    assert code == 0
    assert out.splitlines() == [f"to do length={n} temperature={t}" for n in (1, 2) for t in (0, 1)]
    assert not (tmp_path / "s").exists()
    foredraft("-p", "length=1", "-p", "temperature=0", "--out", str(tmp_path / "s"))
    assert foredraft(*words, "--dry-run")[1].startswith("done  length=1 temperature=0\nto do")


def test_machines_are_told_in_json(foredraft, run, tmp_path):
    run.fails = (2,)
    code, out, _ = foredraft("-p", "length=1,2", "--out", str(tmp_path / "s"), "--json")
    assert code == 1
    told = json.loads(out)
    assert [each["setting"] for each in told["points"]] == [{"length": 1}, {"length": 2}]
    assert [each["done"] for each in told["points"]] == [True, False]
    assert [each["error"] for each in told["points"]] == [None, "cell 3 failed at 2"]
    assert all(Path(file).is_file() for file in told["files"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("-p", "gamma=1,2"),
            "error: unknown parameter of the notebook speculative_decoding",
        ),
        (("-p", "length=1", "--engine", "rayy"), "unknown engine 'rayy': did you mean 'ray'?"),
        (("-p", "length=1", "--address", "auto"), "add --engine ray"),
        (("-p", "length=1", "--csv", "nowhere.csv"), "nowhere.csv is no file"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(foredraft, run, words, told):
    code, _, err = foredraft(*words)
    assert code == 2
    assert told in err
    assert not run.lengths


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits to be collected does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def test_a_sweep_that_is_killed_loses_the_point_in_flight_and_nothing_else(small):
    """The command itself, notebooks by papermill, SIGKILL in the middle of the second."""
    words = ("-p", "profile=smoke", "-p", "length=1,7")
    (small.root / "wait").touch()
    killed = small.start("foredraft", "sweep", SLUG, *words)
    wait_for(lambda: small.lengths() == [1, 7])
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (_, kernel) = small.runs()[-1]
    wait_for(lambda: not is_alive(kernel))
    (small.root / "wait").unlink()
    code, out, err = small.sweep(*words, "--json")
    assert code == 0, err
    assert small.lengths() == [1, 7, 7]
    assert all(each["done"] for each in json.loads(out)["points"])
    table = provenance.read_table(small.root / "sweeps" / SLUG / "table.csv")
    rates = table[table["key"] == "acceptance.mean"]
    assert rates["length"].tolist() == [1, 7]
    assert rates["value"].astype(float).tolist() == [1 + 1 / 16, 1 + 7 / 16]


def test_a_sweep_on_a_ray_cluster_is_the_sweep_on_this_machine(small):
    """A cluster of two CPUs is started; the failing point fails there, and only that."""
    code, _, err = small.sweep(
        *("-p", "profile=smoke", "-p", "length=1,13", "--engine", "ray", "--jobs", "2")
    )
    assert code == 1, err
    assert "AssertionError: thirteen" in err
    assert small.lengths() == [1, 13]
    table = provenance.read_table(small.root / "sweeps" / SLUG / "table.csv")
    assert set(table["length"]) == {1}
    failed = [path.parent for path in (small.root / "sweeps").rglob("error.txt")]
    assert [(path / f"{SLUG}.ipynb").is_file() for path in failed] == [True]
    (small.root / "fail").unlink()
    code, _, err = small.sweep("-p", "profile=smoke", "-p", "length=1,13", "--jobs", "2")
    assert code == 0, err
    assert small.lengths() == [1, 13, 13]


def block(command: str) -> str:
    """The block of the page on sweeps that has this command in it."""
    blocks = re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [each for each in blocks if command in each]
    return found


def test_papermill_sweeps_as_the_page_says(small):
    code, _, err = small.run("bash", "-euc", block("papermill "))
    assert code == 0, err
    lengths = set(small.lengths())
    assert len(lengths) > 1
    for length in lengths:
        below = small.root / "sweeps" / "by_hand" / str(length)
        found = results.read(SLUG, below=below)
        assert found is not None
        assert found.values["acceptance.mean"] == 1 + length / 16


def test_dvc_queues_experiments_as_the_page_says(small, monkeypatch):
    """In copies of the repository, whose own sources and parameters count."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a reader")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "reader@example.org")
    (small.root / ".gitignore").write_text("__pycache__/\n.cache/\n.site/\nledger\n")
    begin = "git init -q && dvc init -q && git add -A && git commit -qm start"
    code, _, err = small.run("bash", "-euc", begin)
    assert code == 0, err
    code, out, err = small.run("bash", "-euc", block("dvc exp"))
    assert code == 0, err
    told = [line.split(",") for line in out.splitlines() if line.count(",") == 2]
    rates = {int(length): float(rate) for _, rate, length in told[1:] if rate not in ("", "!")}
    assert len(rates) > 1
    assert rates == {length: 1 + length / 16 for length in rates}
    assert small.lengths() == [], "nothing ran in the checkout itself"
    _, status, _ = small.run("git", "status", "--porcelain")
    assert status == ""


def test_two_that_come_at_once_make_a_point_once(run, tmp_path):
    (only,) = planned(tmp_path, "length=1")
    both = [threading.Thread(target=only.make) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert only.is_done()
    assert run.lengths == (1,)
