"""What a run writes: files with marks, and the record that they lead to."""

import io
import json
from dataclasses import replace

import matplotlib
import pandas as pd
import pytest
from IPython.display import Image as Picture
from IPython.display import Markdown
from matplotlib import pyplot as plt
from PIL import Image

from foredraft import paths
from foredraft.articles import outputs
from foredraft.articles.outputs import Outputs
from foredraft.machine import Processor
from foredraft.repro import digests, live, provenance, values
from foredraft.repro.claims import Claim
from foredraft.repro.provenance import Mark
from foredraft.repro.record import Record, read_record
from foredraft.viz import figures
from foredraft.viz.panel import Panel, Slider
from tests.viz.test_figures import mark_in

TABLE = pd.DataFrame({"x": [1, 2], "y": [1 / 3, 0.5]})
FOUND = {"speedup": {"greedy": 1.5}, "rate": 2 / 3}
CLAIMS = (Claim("rate", "The rate", "rate", n=4, spread=0.01),)
ONE = Processor("AMD One", ("avx2",))
OTHER = Processor("Intel Other", ("avx2", "avx512f"))
FILES = ("sampling.csv", "sampling.figures.json", "sampling.json", "sampling.stamp.json")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """What a run writes goes there, on one processor."""
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(tmp_path))
    monkeypatch.setattr(outputs, "this_processor", lambda: ONE)
    yield tmp_path
    plt.close("all")


@figures.drawing
def line(table: pd.DataFrame, height: float = 1.0):
    figure = figures.panels(width=figures.SINGLE)
    figure.axes[0].plot(table["x"], table["y"] * height)
    return figure


def finished(table=TABLE, found=FOUND, **params) -> Record:
    """The record of a run that draws two figures, one of them of a recording."""
    made = Outputs("sampling", {"seed": 3, **params}, [paths.PARAMS])
    recording = paths.recorded("sampling", "cpu")
    made.save(line(table), "one")
    made.save(line(table, height=2.0), "costs", recorded=recording)
    made.finish(table, found, CLAIMS, recorded={"speedup": recording})
    return read_record(paths.record("sampling"))


def written(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_record_has_the_digest_of_every_file(folder):
    produced = finished().produced
    everything = set(written(folder))
    assert everything == {
        *(f"data/results/{name}" for name in FILES),
        *("figures/sampling/one.png", "figures/sampling/costs.png"),
    }
    assert produced.table == provenance.digest(paths.results("sampling", "csv"))
    for name, digest in produced.figures.items():
        found = mark_in(paths.figures("sampling") / f"{name}.png")
        assert found == Mark("sampling", name, digest)
    for path, name, digest in (
        (paths.results("sampling"), "results", produced.results),
        (paths.figure_tables("sampling"), "figures", produced.drawings),
    ):
        assert provenance.read_stamp(path) == Mark("sampling", name, digest)
    assert len(set(produced.everything())) == 5


def test_the_record_has_the_stamp_the_processor_and_the_recordings_behind():
    record = finished(samples=4)
    assert record.stamp.what == "sampling"
    assert record.stamp.params == {"seed": 3, "samples": 4}
    assert record.stamp.seed == 3
    assert record.stamp.inputs == {"params.yaml": provenance.digest(paths.PARAMS)}
    notebook = paths.notebook("sampling")
    assert record.stamp.code == {"notebooks/01_sampling.py": digests.of(notebook)}
    assert record.processor == ONE
    file = "data/recorded/sampling.cpu.json"
    assert record.recorded == {"costs": file, "#speedup": file}


def test_a_record_comes_back_as_it_was_written():
    record = finished()
    text = paths.record("sampling").read_text(encoding="utf-8")
    assert record.to_json() == text
    assert Record.from_json(text).to_json() == text
    assert text.index('"processor"') > text.index('"produced"'), "what may vary stands last"


def test_the_same_values_give_the_same_bytes(folder):
    finished()
    first = written(folder)
    finished()
    assert written(folder) == first


def test_what_differs_in_the_last_digits_gives_the_same_bytes(folder):
    finished()
    first = written(folder)
    finished(TABLE.assign(y=TABLE["y"] * (1 + 1e-13)), {**FOUND, "rate": 2 / 3 + 1e-13})
    assert written(folder) == first


def test_the_processor_that_first_made_the_values_is_kept(folder, monkeypatch):
    finished()
    first = written(folder)
    monkeypatch.setattr(outputs, "this_processor", lambda: OTHER)
    finished()
    assert written(folder) == first
    assert finished(found={**FOUND, "rate": 0.5}).processor == OTHER, "other values, made here"


def test_a_run_from_other_parameters_with_the_same_values_changes_the_record_alone(
    folder, monkeypatch
):
    finished(samples=4)
    first = written(folder)
    monkeypatch.setattr(outputs, "this_processor", lambda: OTHER)
    assert finished(samples=5).processor == OTHER
    second = written(folder)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"data/results/sampling.stamp.json"}


def test_other_values_change_what_has_them(folder):
    finished()
    first = written(folder)
    finished(found={**FOUND, "rate": 0.5})
    changed = {name for name, content in written(folder).items() if first[name] != content}
    assert changed == {"data/results/sampling.json", "data/results/sampling.stamp.json"}


def test_a_damaged_record_is_replaced():
    record = finished()
    paths.record("sampling").write_text("{")
    assert finished() == record


def test_what_the_figures_draw_is_kept(folder):
    finished()
    kept = provenance.read_marked(paths.figure_tables("sampling"))["figures"]
    assert list(kept) == ["one", "costs"]
    assert kept["costs"]["drawing"] == f"{__name__}.line"
    assert kept["costs"]["values"] == values.encode([[TABLE], {"height": 2.0}])
    assert len(paths.figure_tables("sampling").read_text().splitlines()) == 1


@pytest.mark.parametrize("draw", [figures.panels, plt.figure, lambda: figures.page(2.0)])
def test_a_figure_that_does_not_know_its_values_is_refused(folder, draw):
    made = Outputs("sampling", {})
    with pytest.raises(ValueError, match="figure 'one' of sampling does not know its values"):
        made.save(draw(), "one")
    assert not written(folder)


@pytest.mark.parametrize(
    ("found", "claims", "message"),
    [
        (FOUND, [Claim("a", "", "speedup.gredy")], "did you mean 'speedup.greedy'"),
        (FOUND, [*CLAIMS, *CLAIMS], "'rate' stands twice among the claims of sampling"),
        ({"a b": 1}, [], "'a b' cannot be cited"),
    ],
)
def test_values_and_claims_that_cannot_be_cited_are_refused_before_anything_is_written(
    folder, found, claims, message
):
    with pytest.raises(ValueError, match=message):
        Outputs("sampling", {}).finish(TABLE, found, claims)
    assert not written(folder)


def test_an_unknown_article_is_refused():
    with pytest.raises(ValueError, match="did you mean 'sampling'"):
        Outputs("samplin", {})


def test_device_and_precision_are_stated():
    stamp = Outputs("sampling", {}, device="cuda", dtype="bfloat16").stamp
    assert (stamp.device, stamp.dtype) == ("cuda", "bfloat16")


@pytest.mark.parametrize("change", ["processor", "produced", "recorded", "what"])
def test_a_record_that_lacks_something_is_refused_by_name(change):
    finished()
    path = paths.record("sampling")
    document = json.loads(path.read_text())
    del document[change]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"sampling\.stamp\.json is not a whole record"):
        read_record(path)


def test_a_record_that_is_not_there_is_refused(folder):
    with pytest.raises(ValueError, match="`foredraft run` writes it"):
        read_record(folder / "sampling.stamp.json")


@pytest.fixture
def shown(monkeypatch) -> list[object]:
    """What is displayed, in order."""
    found: list[object] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    monkeypatch.delenv(live.SESSION_VARIABLE, raising=False)
    return found


def test_a_saved_figure_is_shown_small_with_a_link_to_its_file(shown):
    Outputs("sampling", {}).save(line(TABLE), "one")._ipython_display_()
    picture, link = shown
    assert isinstance(picture, Picture)
    with Image.open(io.BytesIO(picture.data)) as small:
        assert small.width < figures.SINGLE * 100
    assert isinstance(link, Markdown)
    assert link.data == "[one.png](../figures/sampling/one.png)"
    assert not plt.get_fignums(), "and not once more by matplotlib"


def panel() -> Panel:
    return Panel(lambda height: line(TABLE, height=height), height=Slider((1.0, 2.0, 3.0), at=2.0))


def test_a_panel_is_saved_as_it_is_at_first(shown):
    Outputs("sampling", {}).save(panel(), "one")._ipython_display_()
    assert isinstance(shown[0], Picture)
    expected = values.encode([[TABLE], {"height": 2.0}])
    assert mark_in(paths.figures("sampling") / "one.png").data == values.digest(expected)


def test_a_saved_panel_is_its_controls_where_somebody_watches(shown, monkeypatch):
    monkeypatch.setenv(live.SESSION_VARIABLE, "notebooks/01_sampling.ipynb")
    Outputs("sampling", {}).save(panel(), "one")._ipython_display_()
    box, link = shown
    assert len(box.children) == 3, "a slider, the picture, and what went wrong"
    assert isinstance(link, Markdown)


def test_a_figure_does_not_depend_on_what_was_drawn_before(folder):
    finished()
    first = written(folder)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False}):
        finished()
    assert written(folder) == first


def test_processors_of_one_kind_may_have_several_names():
    same = replace(ONE, name="AMD Two")
    assert same.kind == ONE.kind != OTHER.kind
