"""Values, claims, and the pages made from them."""

import pandas as pd
import pytest

from foredraft import paths
from foredraft.articles.outputs import Outputs
from foredraft.registry import article
from foredraft.repro import claims as results
from foredraft.repro import provenance
from foredraft.repro.claims import Claim

TABLE = pd.DataFrame({"x": [1, 2]})
VALUES = {"entropy": {"cold": 0.123456789, "hot": 2}, "kind": "50% | more_or_less"}
CLAIMS = (
    Claim("cold", "cold is sharp", "entropy.cold", article=0.1, n=5, spread=0.01),
    Claim("kind", "a kind", "kind"),
)


@pytest.fixture
def written(outputs):
    Outputs("sampling", {}).finish(TABLE, VALUES, CLAIMS)
    return outputs


def test_results_come_back_as_they_were_written(written):
    found = results.read("sampling")
    assert found is not None
    assert found.claims == CLAIMS
    assert found.values == {"entropy.cold": 0.123457, "entropy.hot": 2, "kind": VALUES["kind"]}


def test_results_are_read_from_text_too(written):
    text = paths.results("sampling").read_text(encoding="utf-8")
    assert results.parse(article("sampling"), text) == results.read("sampling")


def test_results_that_were_edited_are_not_read(written):
    path = paths.results("sampling")
    path.write_text(path.read_text().replace("0.123457", "0.2"))
    with pytest.raises(ValueError, match=r"sampling\.json was edited after it was written"):
        results.read("sampling")
    with pytest.raises(ValueError, match=r"sampling\.json was edited after it was written"):
        results.publish()
    assert not paths.results_page().exists()


def test_a_drift_is_kept_where_a_claim_has_one(outputs):
    claims = [*CLAIMS, Claim("hot", "hot is flat", "entropy.hot", drift=0.5)]
    Outputs("sampling", {}).finish(TABLE, VALUES, claims)
    found = results.read("sampling")
    assert found is not None
    assert [claim.drift for claim in found.claims] == [None, None, 0.5]
    kept = provenance.read_marked(paths.results("sampling"))["claims"]
    assert ["drift" in claim for claim in kept] == [False, False, True]


def test_an_article_that_has_not_been_run_has_no_results(outputs):
    assert results.read("sampling") is None
    assert results.findings() == []


def test_the_page_has_a_row_for_every_claim(written):
    results.publish()
    page = paths.results_page().read_text()
    file = "data/results/sampling.json"
    assert (
        f"| cold is sharp | 0.1 | 0.1235 ± 0.01 | 5 | `dvc repro -f sampling` "
        f"| [`{file}#entropy.cold`]({file}) |" in page
    )
    assert "| a kind | – | 50% \\| more_or_less | 1 |" in page


def test_the_macros_have_every_value_and_escape_it(written):
    results.publish()
    macros = paths.results_macros().read_text().splitlines()
    assert r"\expandafter\def\csname res@sampling/entropy.cold\endcsname{0.123457}" in macros
    assert r"\expandafter\def\csname res@sampling/kind\endcsname{50\% | more\_or\_less}" in macros


def test_publishing_twice_gives_the_same_bytes(written):
    results.publish()
    first = paths.results_page().read_bytes(), paths.results_macros().read_bytes()
    results.publish()
    assert first == (paths.results_page().read_bytes(), paths.results_macros().read_bytes())


@pytest.mark.parametrize(
    ("values", "claims", "stated"),
    [
        (VALUES, [Claim("a", "", "entropy.col")], "did you mean 'entropy.cold'"),
        (VALUES, [CLAIMS[0], CLAIMS[0]], "'cold' stands twice"),
        ({"a b": 1}, [], "'a b' cannot be cited"),
    ],
)
def test_what_cannot_be_cited_is_refused(outputs, values, claims, stated):
    with pytest.raises(ValueError, match=stated):
        results.checked("sampling", values, claims)
    with pytest.raises(ValueError, match=stated):
        Outputs("sampling", {}).finish(TABLE, values, claims)
    assert not paths.results("sampling").exists()
