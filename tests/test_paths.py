"""Where things are."""

from pathlib import Path

import pytest

from foredraft import paths

PER_ARTICLE = (paths.executed, paths.figures, paths.results)


def test_outputs_go_into_the_repository_unless_redirected(monkeypatch, tmp_path):
    monkeypatch.delenv(paths.OUTPUT_VARIABLE, raising=False)
    assert all(place("sampling").is_relative_to(paths.ROOT) for place in PER_ARTICLE)
    monkeypatch.setenv(paths.OUTPUT_VARIABLE, str(tmp_path))
    assert all(place("sampling").is_relative_to(tmp_path) for place in PER_ARTICLE)
    assert paths.results_page().is_relative_to(tmp_path)
    assert paths.results_macros().is_relative_to(tmp_path)


def test_inputs_stay_in_the_repository_when_outputs_are_redirected(outputs):
    inputs = (paths.notebook("sampling"), paths.PARAMS, paths.model("m"), paths.prompts("p"))
    assert all(path.is_relative_to(paths.ROOT) for path in inputs)


@pytest.mark.parametrize("place", [paths.notebook, *PER_ARTICLE])
def test_only_articles_have_places(place):
    with pytest.raises(ValueError, match="unknown article"):
        place("samplings")


def test_a_module_is_found_by_its_name():
    assert paths.module("foredraft.paths") == Path(paths.__file__)
    assert paths.module("foredraft.kernels") == paths.ROOT / "kernels" / "__init__.py"
    assert paths.module("foredraft.nothing") is None
    assert paths.module("foredraftly") is None
    assert paths.module("numpy") is None


def test_labels_name_no_folder_of_this_machine(tmp_path):
    assert paths.label(paths.PARAMS) == "params.yaml"
    outside = tmp_path / "snapshot" / "model.safetensors"
    assert paths.label(outside) == "elsewhere/snapshot/model.safetensors"
