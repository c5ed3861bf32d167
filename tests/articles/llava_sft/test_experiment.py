"""Article 06: what is taught, judged, shown and recorded, on a model too small to learn."""

from itertools import count

import numpy as np
import pandas as pd
import pytest

from foredraft import paths
from foredraft.analysis.statistics import numbers
from foredraft.articles.llava_sft import experiment as sft
from foredraft.articles.llava_sft import recording as llava_growth
from foredraft.articles.llava_sft import saliency
from foredraft.repro import params, recording
from foredraft.repro.provenance import stamp
from foredraft.training.llava.model import Sizes, save, untrained
from foredraft.training.llava.table_scores import score
from foredraft.training.llava.tables import HELD_OUT_SEED, parse

SIZES = Sizes(tower_width=64, tower_layers=2, width=64, layers=2, intermediate=128)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> params.LlavaSft:
    folder = tmp_path_factory.mktemp("llava")
    save(untrained(SIZES, seed=0), SIZES, folder)
    return params.load("llava_sft", {"profile": "smoke", "model": str(folder), "examples": 8})


@pytest.fixture(scope="module")
def before(settings) -> pd.DataFrame:
    return sft.judged(*sft.base(settings), settings, stage=sft.BEFORE)


@pytest.fixture(scope="module")
def found(settings) -> dict[str, sft.Taught]:
    return {method: sft.taught(settings, method=method) for method in settings.methods}


def perfect(table: pd.DataFrame, stage: str = "full") -> pd.DataFrame:
    """The same tables, all written as they are."""
    scores = dict.fromkeys(sft.METRICS, 1.0)
    return table.assign(stage=stage, predicted=table["reference"], **scores)


def test_every_level_is_judged_by_as_many_tables_that_training_never_shows(settings, before):
    assert before.groupby("level").size().tolist() == [settings.n_tables] * 2
    rows = sft.training_rows(settings)
    shown = {row["messages"][1]["content"][0]["text"] for row in rows}
    watched = {row["messages"][1]["content"][0]["text"] for row in sft.development_rows(settings)}
    assert not {*before["reference"]} & (shown | watched)
    assert not shown & watched


def test_examples_are_shared_out_among_levels(settings):
    few = settings.model_copy(update={"levels": (1, 2)})
    assert len(sft.training_rows(few, 5)) == 5
    answers = [row["messages"][1]["content"][0]["text"] for row in sft.training_rows(few, 5)]
    ours = {table.table.markdown() for table in sft.examples(sft.level_of(1), 3, settings.seed)}
    assert {*answers[:3]} == ours


def test_a_reader_s_own_folder_is_shared_into_training_and_development(settings, tmp_path):
    for number, example in enumerate(sft.examples(sft.level_of(1), 30, 5)):
        example.image.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.md").write_text(example.table.markdown())
    own = settings.model_copy(update={"data": str(tmp_path), "examples": 1000})
    train, watched = sft.training_rows(own), sft.development_rows(own)
    assert (len(train), len(watched)) == (27, 3)
    texts = [row["messages"][1]["content"][0]["text"] for row in (*train, *watched)]
    assert sorted(texts) == sorted(file.read_text() for file in tmp_path.glob("*.md"))
    few = settings.model_copy(update={"data": str(tmp_path), "batch_size": 25})
    with pytest.raises(ValueError, match="holds 30 pairs: give at least 35"):
        sft.training_rows(few)


def test_an_untaught_model_writes_no_table(before):
    assert (before["exact"] == 0).all()
    for row in before.to_dict("records"):
        assert row["cells"] == score(row["predicted"], row["reference"]).cell_accuracy


def test_teaching_changes_what_may_change_and_nothing_else(settings, found):
    base, _ = sft.base(settings)
    for method, each in found.items():
        ours, theirs = each.model.state_dict(), base.state_dict()
        moved = {name for name in ours if not ours[name].equal(theirs[name])}
        assert moved
        assert not any("vision_tower" in name for name in moved), method
    assert found["lora"].trained_parameters < found["full"].trained_parameters


def test_a_log_counts_examples_and_names_its_method(settings, found):
    for method, each in found.items():
        assert each.log["examples"].tolist() == [4, 8]
        assert {*each.log["method"]} == {method}
        assert each.log["eval_loss"].notna().sum() == 2


def test_scores_have_intervals_around_them(before):
    table = sft.scored(pd.concat([before, perfect(before)], ignore_index=True))
    assert table["stage"].tolist() == ["before", "before", "full", "full"]
    for name in sft.METRICS:
        low, middle, high = (numbers(table, name + end) for end in ("_low", "", "_high"))
        assert np.all((low <= middle) & (middle <= high))
    assert table.loc[table["stage"] == "full", "exact"].tolist() == [1, 1]


def test_a_perfect_reader_has_no_faults_and_no_character_misread(before):
    table = perfect(before)
    assert sft.faults_by_kind(table).empty
    assert sft.misread(table).empty
    assert {*numbers(sft.by_size(table), "exact")} == {1}


def test_faults_are_counted_by_kind_and_characters_as_they_were_read(before):
    table = perfect(before).head(1)
    reference = "| cat | 17 |\n| --- | --- |\n| dog | 5 |"
    table = table.assign(reference=reference, predicted=reference.replace("17", "12"))
    (row,) = sft.faults_by_kind(table).to_dict("records")
    assert (row["kind"], row["count"], row["share"]) == ("digit confusion", 1, 0.25)
    (pair,) = sft.misread(table).to_dict("records")
    assert (pair["true"], pair["read"], pair["count"]) == ("7", "2", 1)


def test_only_answers_and_their_end_carry_loss(settings):
    _, processor = sft.base(settings)
    example = sft.held_out(settings, 1)[0]
    tokens = sft.roles(processor, example)
    lossy = tokens.loc[tokens["has_loss"]]
    assert "".join(lossy["text"]).strip().removesuffix("</s>") == example.table.markdown()
    assert {*lossy["role"]} == {"answer", "end"}
    assert (tokens["role"] == "image").sum() == SIZES.image_tokens


def test_the_span_of_a_cell_is_its_text_wherever_it_stands():
    markdown = "| a\\|b | long |\n| :--- | ---: |\n| c |  |\n| dd | 7 |"
    table = parse(markdown)
    texts = [["a\\|b", "long"], ["c", ""], ["dd", "7"]]
    for row, cells in enumerate(texts):
        for column, text in enumerate(cells):
            start, end = saliency.cell_span(table.markdown(), row, column)
            assert table.markdown()[start:end] == text


def test_where_a_model_looks_is_a_share_of_every_patch(settings):
    model, processor = sft.base(settings)
    example = sft.held_out(settings, 1)[0]
    maps = saliency.saliency(model, processor, example, [(0, 0), (1, 1)])
    for each in maps:
        assert each.shape == (16, 16)
        assert (float(each.min()) >= 0, float(each.max())) == (True, pytest.approx(1))
    assert not np.array_equal(maps[0], maps[1])


def test_cases_show_what_was_learnt_and_what_was_not(settings, before):
    half = perfect(before)
    half.loc[(half["level"] == 1) & (half["index"] == 0), ["exact", "predicted"]] = [0.0, "?"]
    both = pd.concat([before, half], ignore_index=True)
    shown = sft.cases(both, settings, level=1, after="full")
    assert [case.after == case.reference for case in shown] == [True, True, False]
    image = sft.held_out(settings, 1)[0].image
    assert shown[2].image.tobytes() == image.tobytes()


def test_findings_name_each_level_before_and_after_by_both_methods(settings, before, found):
    tables = [before, perfect(before), perfect(before, "lora")]
    scores = sft.scored(pd.concat(tables, ignore_index=True))
    logs = pd.concat([each.log for each in found.values()])
    trained = {name: each.trained_parameters for name, each in found.items()}
    values, claims = sft.findings(scores, logs, trained, settings)
    level = values["held_out"]["level1"]
    assert level["n"] == settings.n_tables
    assert (level["exact_match_before"], level["exact_match_after"]) == (0, 1)
    assert (level["exact_match_after_lora"], level["cell_accuracy_after"]) == (1, 1)
    assert values["training"]["full"]["examples"] == 8
    assert {claim.key for claim in claims} >= {"held_out.level2.exact_match_after_lora"}


def test_a_model_that_cannot_be_had_is_named_with_what_runs_instead(settings, tmp_path):
    absent = settings.model_copy(update={"model": str(tmp_path / "absent")})
    with pytest.raises(ValueError, match="profile=pocket"):
        sft.base(absent)


def test_what_the_published_model_needs_is_more_by_all_weights_than_by_lora():
    needs = sft.llava15_needs().set_index("method")
    assert needs.loc["full", "parameters"] == pytest.approx(7.06, abs=0.01)
    assert needs.loc["lora", "gigabytes"] < needs.loc["full", "gigabytes"]
    assert min(numbers(needs, "hours")) > 0


def test_growth_is_recorded_for_every_method_number_and_level(settings, monkeypatch, tmp_path):
    ticks = count()
    monkeypatch.setattr(llava_growth, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(llava_growth, "COLLATED", 2)
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    short = settings.model_copy(update={"n_tables": 1, "judged_levels": (1,), "evaluations": 1})
    table = llava_growth.growth_benchmark(short, clock=lambda: float(next(ticks)))
    growth = table.loc[table["strategy"] == llava_growth.GROWTH]
    assert growth["examples"].tolist() == [4, 8, 4, 8]
    steps = table.loc[table["strategy"] == llava_growth.STEP]
    assert steps["method"].tolist() == list(settings.methods)
    assert min(numbers(steps, "collation_median")) > 0
    recording.record("llava_sft", "cpu", table, stamp("llava_sft", {}, []))
    assert len(recording.recordings("llava_sft")["cpu"].table) == len(table)


def test_held_out_seeds_lie_beyond_all_training_seeds(settings):
    assert settings.seed < HELD_OUT_SEED
