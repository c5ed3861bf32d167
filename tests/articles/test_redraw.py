"""Figures drawn again from the values that their articles kept."""

import json
import sys

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.articles.redraw import draw, redraw
from foredraft.cli import app
from foredraft.repro import provenance, values
from foredraft.repro.origin import find
from foredraft.sweep import plots
from foredraft.viz.figures import FORMATS
from tests.viz.test_figures import mark_in

TABLE = pd.DataFrame(
    [
        {"length": length, "key": "rate", "value": length / 3, "spread": 0.1, "claim": "The rate"}
        for length in (1, 2, 4)
    ]
)


@pytest.fixture(autouse=True)
def article(tmp_path, monkeypatch):
    """An article's results with two figures, in a folder of their own."""
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(tmp_path / "article"))
    made = Outputs("sampling", {"seed": 3})
    for name, x in (("one", "length"), ("two", "spread")):
        made.save(plots.panels(TABLE, x=x, hue=None, keys=["rate"]), name)
    made.finish(TABLE, {"rate": 1.0}, [])
    yield made
    plt.close("all")


def edit(change) -> None:
    """Change what is kept, and leave its mark as it is or make it right again."""
    path = paths.figure_tables("sampling")
    content = dict(provenance.read_marked(path))
    change(content["figures"])
    provenance.write_marked(path, "sampling", "figures", content, indent=None)


def test_every_figure_is_drawn_in_every_format_with_the_mark_of_its_picture(tmp_path):
    drawn = list(redraw("sampling", FORMATS, tmp_path / "again"))
    names = [f"{name}.{ending}" for name in ("one", "two") for ending in FORMATS]
    assert [path.relative_to(tmp_path / "again").as_posix() for path in drawn] == names
    for path in drawn:
        committed = paths.figures("sampling") / f"{path.stem}.png"
        assert mark_in(path) == mark_in(committed)


def test_a_picture_is_drawn_again_to_the_same_bytes(tmp_path):
    for path in redraw("sampling", ["png"], tmp_path):
        assert path.read_bytes() == (paths.figures("sampling") / path.name).read_bytes()


def test_vectors_are_the_same_bytes_each_time(tmp_path):
    once, again = (list(redraw("sampling", ["pdf", "svg"], tmp_path / name)) for name in "ab")
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]


def test_what_was_drawn_again_is_traced_to_the_record_of_the_article(article, tmp_path):
    for path in redraw("sampling", ["svg", "pdf"], tmp_path):
        assert find(path).stamp.to_json() == article.stamp.to_json()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "only public functions"),
        ("foredraft.cli.app.main", "only public functions"),
        ("foredraft.articles.panels", "only public functions"),
        ("foredraft.sweep.plots._panel", "only public functions"),
        ("panels", "only public functions"),
        ("", "only public functions"),
        ("foredraft.sweep.plots.fill", "is no figures.drawing of"),
        ("foredraft.sweep.plots.where", "is no figures.drawing of"),
        ("foredraft.sweep.plots.ACROSS", "is no figures.drawing of"),
        ("foredraft.sweep.plots.gone", "is not there any more"),
        ("foredraft.articles.gone.plots.panels", "is not there any more"),
    ],
)
def test_nothing_but_a_public_function_of_the_plots_is_called(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        draw(name, values.encode([["echo"], {}]))
    edit(lambda kept: kept["one"].update(drawing=name))
    with pytest.raises(ValueError, match=message):
        list(redraw("sampling", ["pdf"], tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_values_that_were_edited_are_refused(tmp_path):
    path = paths.figure_tables("sampling")
    document = json.loads(path.read_text())
    document["figures"]["one"]["values"][1]["x"] = "value"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"sampling\.figures\.json was edited after it was writ"):
        list(redraw("sampling", ["pdf"], tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_half_a_file_of_values_is_refused(tmp_path):
    path = paths.figure_tables("sampling")
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"sampling\.figures\.json is not a whole JSON file"):
        list(redraw("sampling", ["pdf"], tmp_path))


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown format of a figure 'epdf': did you mean 'pdf'"):
        list(redraw("sampling", ["svg", "epdf"], tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_an_article_that_has_kept_nothing_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="`foredraft run bert` writes it"):
        list(redraw("bert", ["pdf"], tmp_path))


@pytest.fixture
def foredraft(monkeypatch, capsys):
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["foredraft", "figures", *words])
        with pytest.raises(SystemExit) as left:
            app.main()
        return int(left.value.code or 0), capsys.readouterr().err

    return call


def test_the_command_draws_articles_below_a_folder(foredraft, tmp_path):
    out = tmp_path / "again"
    code, err = foredraft("sampling", "--out", str(out))
    assert code == 0
    assert "✓ 4 files in" in err
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert found == [f"sampling/{n}.{end}" for n in ("one", "two") for end in ("pdf", "svg")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("samplin",), "did you mean 'sampling'"),
        (("sampling", "--formats", "pdff"), "did you mean 'pdf'"),
        (("sampling", "--formats", ","), "names no format: give pdf, svg or png"),
        (("bert",), "`foredraft run bert` writes it"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(foredraft, tmp_path, words, message):
    code, err = foredraft(*words, "--out", str(tmp_path / "again"))
    assert code == 2
    assert message in err
    assert not (tmp_path / "again").exists()
