"""How Sphinx makes the site: `make site`, or sphinx-build with this folder as its configuration.

The pages are no files of this repository: `pages.py` writes them from the README, docs, the log,
the results, the executed notebooks, the models' cards and the sources when Sphinx starts. Nothing
is executed, nothing imported to be documented, nothing fetched.
"""

import sys
from importlib.metadata import version
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import links  # noqa: E402
import mathematics  # noqa: E402
import pages  # noqa: E402

project = "foredraft"
copyright = "the foredraft developers, Apache-2.0"
version = release = version("foredraft")

extensions = ["myst_parser", "sphinx.ext.viewcode"]
exclude_patterns = [links.PLACE]
viewcode_follow_imported_members = False  # which would import every module
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = ["http", "https", "mailto", links.SCHEME]

html_theme = "pydata_sphinx_theme"
html_title = "foredraft"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_js_files = ["figures.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which a browser does not do from a disk
html_use_index = html_domain_indices = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "foredraft"},
    "search_bar_text": "Search articles, results and code",
    "navigation_depth": 3,
    "collapse_navigation": True,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"_modules/**": [], "index": [], "results": [], "log": [], "search": []}


def setup(app: Sphinx) -> None:
    """Write the pages before Sphinx looks for them, and teach it what it lacks."""
    app.connect("config-inited", lambda app, _: pages.write(Path(app.srcdir)), priority=100)
    app.config.html_extra_path = [str(Path(app.srcdir) / links.PLACE)]
    app.connect("viewcode-find-source", links.source)
    app.connect("doctree-read", links.exactly, priority=100)
    app.connect("doctree-resolved", links.resolve)
    app.connect("doctree-resolved", links.name_in_backticks)
    app.add_html_math_renderer("mathml", (mathematics.visit, None), (mathematics.visit_block, None))
