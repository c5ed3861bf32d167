"""Computing an article again, and the verdict on each of its claims."""

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator

import pytest
import yaml

from foredraft import paths
from foredraft.machine import Processor
from foredraft.registry import article
from foredraft.repro import verdicts
from foredraft.repro.claims import Claim, Findings
from foredraft.repro.comparison import Compared, Verdict, judge
from foredraft.repro.reproduction import Baseline, Report
from tests import checkout
from tests.checkout import SLUG, Checkout

HERE = Processor("AMD EPYC", ("avx2",))
THERE = Processor("Intel(R) Xeon(R)", ("avx2", "amx_bf16"))
SPREAD = Claim("a", "a claim", "x", spread=0.1)
EXACT = Claim("b", "another claim", "x")
DRIFTING = Claim("c", "a p-value", "x", drift=0.5)


@pytest.mark.parametrize(
    ("committed", "here", "claim", "same", "elsewhere"),
    [
        (1.0, 1.0, EXACT, Verdict.SAME, Verdict.SAME),
        (1.0, 1.05, SPREAD, Verdict.WITHIN, Verdict.WITHIN),
        (1.0, 1.5, SPREAD, Verdict.DIFFERS, Verdict.DIFFERS),
        (1.0, 1.005, EXACT, Verdict.DIFFERS, Verdict.DRIFT),
        (1.0, 1.02, EXACT, Verdict.DIFFERS, Verdict.DIFFERS),
        (0, 1, EXACT, Verdict.DIFFERS, Verdict.DIFFERS),
        (0.85, 0.63, DRIFTING, Verdict.DIFFERS, Verdict.DRIFT),
        (0.85, 0.2, DRIFTING, Verdict.DIFFERS, Verdict.DIFFERS),
        (10.0, 11.0, None, Verdict.DIFFERS, Verdict.DRIFT),
        (10.0, 13.0, None, Verdict.DIFFERS, Verdict.DIFFERS),
        ("a plan", "a plan", None, Verdict.SAME, Verdict.SAME),
        ("a plan", "another", None, Verdict.DIFFERS, Verdict.DRIFT),
        ("a plan", "another", EXACT, Verdict.DIFFERS, Verdict.DIFFERS),
        (True, False, None, Verdict.DIFFERS, Verdict.DRIFT),
        (True, 1, None, Verdict.DIFFERS, Verdict.DIFFERS),
        (None, 1.0, SPREAD, Verdict.DIFFERS, Verdict.DIFFERS),
        (1.0, None, SPREAD, Verdict.DIFFERS, Verdict.DIFFERS),
        (1.0, float("nan"), SPREAD, Verdict.DIFFERS, Verdict.DIFFERS),
    ],
)
def test_a_value_is_judged_by_its_claim_and_the_processor(committed, here, claim, same, elsewhere):
    assert judge(committed, here, claim, same_processor=True) is same
    assert judge(committed, here, claim, same_processor=False) is elsewhere


def findings(**values: float) -> Findings:
    claims = tuple(Claim(key, f"claim {key}", key, spread=0.1) for key in values if key < "m")
    return Findings(article("sampling"), claims, values)


def test_a_value_that_was_edited_in_the_checkout_differs_although_the_committed_one_agrees():
    made = Baseline(findings(a=1.0, z=2.0), findings(a=9.0, z=2.0), HERE)
    found = {each.key: each for each in made.compare(findings(a=1.0, z=2.0), HERE)}
    assert found["a"].verdict is Verdict.DIFFERS
    assert found["a"].committed == 9.0
    assert found["z"].verdict is Verdict.SAME


def test_a_run_cannot_widen_the_interval_by_which_it_is_judged():
    committed = Findings(article("sampling"), (Claim("a", "a", "a", spread=0.01),), {"a": 1.0})
    here = Findings(article("sampling"), (Claim("a", "a", "a", spread=10.0),), {"a": 5.0})
    found = {each.key: each.verdict for each in Baseline(committed, None, HERE).compare(here, HERE)}
    assert found == {
        "a": Verdict.DIFFERS,
        "a@spread": Verdict.DIFFERS,
        "a@n": Verdict.SAME,
    }


def test_a_table_that_was_edited_differs_although_all_values_agree():
    made = Baseline(findings(a=1.0), None, HERE, files={"table": ("abc", "edited")})
    found = {
        each.key: each.verdict for each in made.compare(findings(a=1.0), HERE, {"table": "abc"})
    }
    assert found["table"] is Verdict.DIFFERS
    same = Baseline(findings(a=1.0), None, HERE, files={"table": ("abc",)})
    assert {each.verdict for each in same.compare(findings(a=1.0), HERE, {"table": "abc"})} == {
        Verdict.SAME
    }


def test_without_a_record_the_processor_is_taken_to_be_the_same():
    made = Baseline(findings(z=10.0), None, None)
    assert made.compare(findings(z=10.5), THERE)[0].verdict is Verdict.DIFFERS


def test_results_that_were_never_committed_have_nothing_to_differ_from():
    assert Baseline(None, None, None).compare(findings(a=1.0), HERE) == []


def test_a_processor_of_another_kind_is_told_from_one_of_the_same():
    made = Baseline(findings(z=10.0), None, HERE)
    verdicts_found = [
        made.compare(findings(z=10.5), processor)[0].verdict
        for processor in (HERE, Processor("AMD EPYC 9004", ("avx2",)), THERE)
    ]
    assert verdicts_found == [Verdict.DIFFERS, Verdict.DIFFERS, Verdict.DRIFT]


def report(*verdicts_found: Verdict, failed: tuple[str, ...] = ()) -> Report:
    compared = [
        Compared("sampling", f"k{n}", f"claim {n}", 1.0, 2.0, verdict, n % 2 == 0)
        for n, verdict in enumerate(verdicts_found)
    ]
    files = ["data/results/sampling.json"]
    return Report(compared, failed, [str(HERE)], str(THERE), files, "`git restore` does it")


def test_only_what_differs_or_fails_means_that_it_did_not_reproduce():
    assert report(Verdict.SAME, Verdict.WITHIN, Verdict.DRIFT).reproduced
    assert not report(Verdict.SAME, Verdict.DIFFERS).reproduced
    assert not report(Verdict.SAME, failed=("bert",)).reproduced


def test_the_report_counts_verdicts_names_processors_and_says_how_to_put_files_back():
    shown = "\n".join(verdicts.lines(report(*Verdict)))
    assert "2 claims: 1 same digits, 0 within its interval, 1 drift" in shown
    assert str(HERE) in shown
    assert str(THERE) in shown
    assert "1 files have changed: data/results/sampling.json; `git restore` does it." in shown
    assert "sampling#k3" in verdicts.failure(report(*Verdict))


STAGES = ("code", SLUG, "results")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with one article that is done at once, reproduced and committed."""
    made = checkout.make(tmp_path_factory.mktemp("small") / "repository")
    for notebook in paths.NOTEBOOKS.glob("*.py"):
        if SLUG not in notebook.name:
            shutil.copy(notebook, made.root / "notebooks")
    (made.root / "kernels").mkdir()
    stages = yaml.safe_load((paths.ROOT / "dvc.yaml").read_text())["stages"]
    kept = {name: stages[name] for name in STAGES}
    kept[SLUG]["deps"] = [f"data/digests/{SLUG}.txt"]
    kept[SLUG]["plots"] = [each for each in kept[SLUG]["plots"] if f"figures/{SLUG}" not in each]
    kept["results"]["deps"] = [f"data/results/{SLUG}.json", "data/digests/results.txt"]
    (made.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}))
    (made.root / ".gitignore").write_text(".site/\n.cache/\nbuild/\nledger\n__pycache__/\n")
    with made:
        for words in ("init -q", "config user.name a", "config user.email a@example.org"):
            assert made.run("git", *words.split())[0] == 0
        assert made.run("dvc", "init", "-q")[0] == 0
        assert made.run("foredraft", "reproduce", SLUG)[0] == 0
        commit(made)
        yield made


@pytest.fixture
def small(reproduced: Checkout) -> Iterator[Checkout]:
    """The same, and again as it was when the test is over."""
    first = reproduced.run("git", "rev-parse", "HEAD")[1].strip()
    yield reproduced
    assert reproduced.run("git", "reset", "--hard", "-q", first)[0] == 0


def commit(made: Checkout) -> None:
    assert made.run("git", "add", "-A")[0] == 0
    assert made.run("git", "commit", "-qm", "results")[0] == 0


def test_a_reproduction_says_whether_it_reproduced_and_a_planted_value_differs(small):
    code, out, err = small.run("foredraft", "reproduce", SLUG)
    assert code == 0, err
    assert "2 claims: 2 same digits" in out
    assert small.run("git", "status", "--porcelain")[1] == ""
    assert "up to date" in small.run("dvc", "status", *STAGES)[1]
    file = small.root / paths.cited(SLUG)
    document = json.loads(file.read_text())
    document["values"]["acceptance"]["mean"] += 1
    file.write_text(json.dumps(document))
    commit(small)
    code, out, err = small.run("foredraft", "reproduce", SLUG)
    assert code == 1
    assert re.search(r"The rate .*\(-1\).*differs", out)
    assert f"{SLUG}#acceptance.mean" in err
    assert "git restore data/results" in out


def test_a_reproduction_that_is_stopped_loses_what_was_running_and_leaves_the_rest(small):
    file = small.root / paths.cited(SLUG)
    before = file.read_bytes()
    (small.root / "wait").touch()
    params = (small.root / "params.yaml").read_text()
    section, _, rest = params.partition(f"{SLUG}:")
    changed = re.sub(r"(\n  length:) \d+", r"\1 7", rest, count=1)
    (small.root / "params.yaml").write_text(f"{section}{SLUG}:{changed}")
    runs = len(small.runs())
    process = small.start("foredraft", "reproduce", SLUG)
    while len(small.runs()) == runs:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 1
    assert f"What was running is lost, and its results are as they were before: {SLUG}" in err
    assert file.read_bytes() == before
    (small.root / "wait").unlink()
