"""What a program reaches, and which edits change its digest."""

from pathlib import Path

import pytest

from foredraft import imports, paths
from foredraft.registry import ARTICLES, Article
from foredraft.repro import digests, library, reach
from foredraft.repro.library import Library

SCRIPT = """
from foredraft import tools
from foredraft.shapes import Circle
import foredraft as fd

print(tools.area(Circle(2)), fd.Sampler)
"""
FILES = {
    "__init__": '''
"""A package."""
_HOMES = {"Sampler": "foredraft.sampling"}
''',
    "tools": '''
"""Tools."""
import math
from math import pi

from foredraft import extra

FACTOR = 2
UNUSED = 3


def area(shape):
    """Of a shape."""
    return FACTOR * shape.size(pi)  # a comment


def unused(x):
    return extra.helper(x)
''',
    "extra": '''
"""More."""
def helper(x):
    return x
''',
    "shapes": '''
"""Shapes."""
from foredraft.extra import helper


class Circle:
    """Round."""

    def __init__(self, r):
        self.r = r

    def size(self, pi):
        return helper(pi * self.r)

    def never_called(self):
        return other()


def other():
    return 1


class Square:
    def size(self, pi):
        return 4
''',
    "sampling": """
class Sampler:
    pass
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package of its own in the place of ours."""
    folder = tmp_path / "foredraft"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(paths, "PACKAGES", {"foredraft": folder})
    monkeypatch.setattr(library, "PACKAGE", folder / "__init__.py")
    imports.homes.cache_clear()
    yield folder
    imports.homes.cache_clear()


def reached(package: Path) -> reach.Reach:
    return reach.reach(package.parent / "script.py", library=Library())


def digest(package: Path) -> str:
    return reached(package).digest


def edit(package: Path, module: str, before: str, after: str) -> None:
    path = package / f"{module}.py"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def names(package: Path) -> set[str]:
    """The definitions of the package that are reached, as module.name."""
    found = reached(package)
    return {
        f"{path.stem}.{name}"
        for path, number in found.statements
        if path.parent == package
        for name, bound in found.library.source(path).bindings.items()
        if any(each.statement == number for each in bound)
    }


def test_a_function_reaches_what_it_uses_and_a_class_counts_whole(package):
    assert names(package) == {
        *("tools.area", "tools.FACTOR", "shapes.Circle", "shapes.other", "extra.helper"),
        "sampling.Sampler",
    }


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("tools", "# a comment", "# another"),
        ("tools", '"""Of a shape."""', '"""The area of a shape."""'),
        ("tools", '"""Tools."""', '"""Other tools."""'),
        ("tools", "UNUSED = 3", "UNUSED = 4"),
        ("tools", "return extra.helper(x)", "return extra.helper(x + 1)"),
        ("shapes", "return 4", "return 5"),
        ("tools", "FACTOR = 2\nUNUSED = 3", "UNUSED = 3\n\nFACTOR = 2"),
        ("tools", "def area(shape):", "def area(\n    shape,\n):"),
    ],
)
def test_what_changes_nothing_that_is_reached_keeps_the_digest(package, module, before, after):
    was = digest(package)
    edit(package, module, before, after)
    assert digest(package) == was


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("tools", "FACTOR * shape", "FACTOR + shape"),
        ("tools", "FACTOR = 2", "FACTOR = 3"),
        ("tools", "from math import pi", "from math import tau as pi"),
        ("shapes", "return 1", "return 2"),
        ("shapes", "self.r = r", "self.r = 2 * r"),
        ("extra", "return x", "return -x"),
        ("sampling", "    pass", "    size = 1"),
        ("tools", "UNUSED = 3", "UNUSED = 3\nprint(UNUSED)"),
        ("tools", "UNUSED = 3", "UNUSED = 3\nFACTOR += 1"),
        ("tools", "UNUSED = 3", "UNUSED = register(area)"),
        ("shapes", "def other", "@register\ndef other"),
    ],
)
def test_what_is_reached_changes_the_digest(package, module, before, after):
    was = digest(package)
    edit(package, module, before, after)
    assert digest(package) != was


def test_a_module_that_is_moved_and_renamed_keeps_the_digest(package):
    was = digest(package)
    (package / "inner").mkdir()
    (package / "inner" / "__init__.py").write_text("")
    (package / "extra.py").rename(package / "inner" / "helping.py")
    edit(package, "tools", "from foredraft import extra", "from foredraft.inner import helping")
    edit(package, "tools", "extra.helper(x)", "helping.helper(x)")
    edit(package, "shapes", "from foredraft.extra", "from foredraft.inner.helping")
    assert digest(package) == was


def test_two_functions_of_one_name_that_change_places_change_the_digest(package):
    for module, value in (("one", 1), ("two", 2)):
        (package / f"{module}.py").write_text(f"def f():\n    return {value}\n")
    edit(package, "tools", "import math\n", "from foredraft import one, two\n")
    edit(package, "tools", "FACTOR * shape", "(one.f() - two.f()) * shape")
    was = digest(package)
    edit(package, "tools", "one.f() - two.f()", "two.f() - one.f()")
    assert digest(package) != was


WHOLE = {"extra.helper", "extra.second"}


@pytest.mark.parametrize(
    "use",
    [
        "getattr(extra, 'second')(1)",
        "list(map(vars, [extra]))",
        "extra.__dict__['second'](1)",
        "subprocess.run(['python', '-m', 'foredraft.extra'])",
    ],
)
def test_a_module_that_is_used_without_a_name_in_it_counts_whole(package, use):
    edit(package, "extra", "def helper", "def second(x):\n    return 2\n\n\ndef helper")
    edit(package, "tools", "FACTOR * shape", f"{use} * shape")
    assert names(package) >= WHOLE


def test_a_star_import_counts_the_module_whole(package):
    edit(package, "extra", "def helper", "def second(x):\n    return 2\n\n\ndef helper")
    edit(package, "tools", "import math\n", "from foredraft.extra import *\n")
    edit(package, "tools", "FACTOR * shape", "second(1) * shape")
    assert names(package) >= WHOLE


@pytest.mark.parametrize(
    ("body", "uses_it"),
    [
        ("unused(1)", True),
        ("[unused for unused in range(2)]", False),
        ("[x for x in [unused(1)]]", True),
        ("[x for unused in [1] for x in [unused]]", False),
        ("(lambda unused: unused)(1)", False),
        ("(lambda x=unused: x)(1)", True),
        ("[unused for x in [1]]", True),
    ],
)
def test_names_are_looked_up_in_their_scope(package, body, uses_it):
    edit(package, "tools", "FACTOR * shape", f"bool({body}) * shape")
    assert ("tools.unused" in names(package)) == uses_it


@pytest.mark.parametrize(
    ("before", "uses_it"),
    [
        ("unused = 1", False),
        ("for unused in (): pass", False),
        ("from math import pi as unused", False),
        ("global unused", True),
        ("del shape.x", True),
    ],
)
def test_a_local_name_is_not_the_module_s(package, before, uses_it):
    edit(package, "tools", "return FACTOR", f"{before}\n    unused\n    return FACTOR")
    assert ("tools.unused" in names(package)) == uses_it


def test_an_import_inside_a_function_counts_only_with_the_function(package):
    (package / "late.py").write_text("print('imported')\n\n\ndef f():\n    return 1\n")
    edit(package, "tools", "return extra.helper(x)", "from foredraft import late\n    late.f()")
    assert not any(path.name == "late.py" for path in reached(package).modules)
    edit(package, "tools", "return FACTOR", "unused(1)\n    return FACTOR")
    assert any(path.name == "late.py" for path in reached(package).modules)
    assert "late.f" in names(package)


def test_imports_and_annotations_for_a_type_checker_do_not_count(package):
    checked = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from foredraft import extra\n"
    )
    edit(package, "shapes", "from foredraft.extra import helper", checked)
    edit(package, "shapes", "return helper(pi * self.r)", "return pi")
    edit(package, "tools", "def area(shape)", "def area(shape: Square) -> Square")
    edit(
        package,
        "tools",
        "from math import pi",
        "from math import pi\nfrom foredraft.shapes import Square",
    )
    assert not {"extra.helper", "shapes.Square"} & names(package)


def test_a_public_name_counts_as_its_home_however_it_is_imported(package):
    edit(package, "tools", "import math\n", "from foredraft import Sampler\n")
    edit(package, "tools", "FACTOR * shape", "Sampler() * shape")
    assert "sampling.Sampler" in names(package)


def test_names_of_ours_inside_strings_count(package):
    edit(package, "tools", "FACTOR * shape", "load('python -m foredraft.extra:helper') * shape")
    edit(package, "shapes", "return helper(pi * self.r)", "return pi")
    assert "extra.helper" in names(package)


def test_a_relative_import_is_refused_since_it_would_not_be_followed(package):
    edit(package, "tools", "import math\n", "from .extra import helper\n")
    with pytest.raises(ValueError, match=r"from \.extra import helper.* is relative"):
        digest(package)


def test_what_runs_without_a_type_checker_counts(package):
    unlike = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    X = 1\nelse:\n    X = 2\n"
    edit(package, "tools", "import math\n", unlike)
    edit(package, "tools", "FACTOR * shape", "X * shape")
    was = digest(package)
    edit(package, "tools", "X = 2", "X = 3")
    assert digest(package) != was


def test_a_class_reads_the_module_s_name_before_it_binds_its_own(package):
    edit(
        package,
        "shapes",
        "    def never_called",
        "    other = staticmethod(other)\n\n    def never_called",
    )
    edit(package, "shapes", "        return other()", "        return 0")
    assert "shapes.other" in names(package)


def test_a_module_that_counts_whole_counts_with_what_it_reexports(package):
    (package / "extra.py").write_text("from foredraft.hidden import helper\n")
    (package / "hidden.py").write_text("def helper(x):\n    return x\n")
    edit(package, "tools", "FACTOR * shape", "getattr(extra, 'helper')(1) * shape")
    edit(package, "shapes", "return helper(pi * self.r)", "return pi")
    assert "hidden.helper" in names(package)


def test_statements_that_act_at_import_change_the_digest_when_they_change_places(package):
    edit(package, "tools", "UNUSED = 3", "ROWS = []\nROWS.append(1)\nROWS.append(2)")
    was = digest(package)
    edit(package, "tools", "ROWS.append(1)\nROWS.append(2)", "ROWS.append(2)\nROWS.append(1)")
    assert digest(package) != was


def test_where_source_is_shown_its_comments_and_docstrings_count(package):
    edit(package, "tools", "FACTOR * shape", "len(inspect.getsource(unused)) * shape")
    was = digest(package)
    edit(package, "shapes", '"""Round."""', '"""Very round."""')
    assert digest(package) != was


def test_an_article_s_digest_covers_what_runs_its_notebook():
    home = paths.module("foredraft.repro.notebooks")
    assert all(
        any(path == home for path, _ in digests.reached(each).statements) for each in ARTICLES
    )


def test_an_article_reaches_the_class_of_its_parameters_and_not_those_of_others():
    found = digests.reached(ARTICLES[0])
    home = paths.module("foredraft.repro.params")
    assert home is not None
    bound = found.library.source(home).bindings
    assert [
        (home, bound[name][0].statement) in found.statements for name in ("Sampling", "Bert")
    ] == [
        True,
        False,
    ]


def test_an_article_without_parameters_is_refused(monkeypatch):
    monkeypatch.setattr(paths, "notebook", lambda slug: paths.NOTEBOOKS / "01_sampling.py")
    with pytest.raises(ValueError, match="no class for 'nothing'"):
        digests.reached(Article(9, "nothing", "Nothing"))


def test_the_committed_lines_are_those_of_the_code():
    """If this fails, run `dvc repro code`."""
    for each in ARTICLES:
        assert paths.digest_line(each.slug).read_text() == f"{digests.of_article(each)}\n"


def test_an_article_s_line_changes_with_its_prose(tmp_path, monkeypatch):
    notebook = tmp_path / "01_sampling.py"
    notebook.write_text(paths.notebook("sampling").read_text())
    monkeypatch.setattr(paths, "notebook", lambda slug: notebook)
    before = digests.of_article(ARTICLES[0])
    notebook.write_text(notebook.read_text() + "\n# %% [markdown]\n# One more sentence.\n")
    assert digests.of_article(ARTICLES[0]) != before
