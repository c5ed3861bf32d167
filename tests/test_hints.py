"""The wording for a name that is not known."""

from foredraft.hints import unknown


def test_an_unknown_name_is_told_with_what_is_near_and_what_is_allowed():
    told = str(unknown("strategy", "drafft", ["target", "draft"]))
    assert told == "unknown strategy 'drafft': did you mean 'draft'? Known: draft, target"


def test_nothing_is_suggested_where_nothing_is_near():
    assert str(unknown("strategy", "xyz", ["draft"])) == "unknown strategy 'xyz': Known: draft"
    assert str(unknown("strategy", "xyz", [])) == "unknown strategy 'xyz': Known: none"
