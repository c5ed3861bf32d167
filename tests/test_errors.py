"""The wording for a name that is not known."""

from foredraft.errors import unknown


def test_an_unknown_name_is_told_with_what_is_near_and_what_is_allowed():
    told = str(unknown("strategy", "drafft", ["target", "draft"]))
    assert told == "unknown strategy 'drafft': did you mean 'draft'? Known: draft, target"


def test_nothing_is_suggested_where_nothing_is_near():
    assert str(unknown("strategy", "xyz", ["draft"])) == "unknown strategy 'xyz': Known: draft"
    assert str(unknown("strategy", "xyz", [])) == "unknown strategy 'xyz': Known: none"


def test_of_many_names_those_alike_are_listed():
    told = str(unknown("key", "n77", [f"n{i}" for i in range(100)]))
    assert "did you mean 'n77'" in told
    assert told.endswith("and 92 others")
    assert told.count(",") == 7
