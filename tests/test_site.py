"""The site as `make site` builds it: whole, offline, and read in a browser at two widths.

It is built once. What needs a browser is skipped where there is none, as in test_jupyterlab.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from foredraft import paths
from foredraft.registry import ARTICLES
from foredraft.repro import claims
from tests.test_jupyterlab import CHROMIUM, MISSING

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
in_a_browser = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason=MISSING)
every_article = pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.slug)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, made by the command of the Makefile.

    A proxy that is not there stops what would be fetched.
    """
    folder = tmp_path_factory.mktemp("site")
    (folder / "pages").mkdir()
    recipe = re.search(r"^\t@(sphinx-build .*)$", (paths.ROOT / "Makefile").read_text(), re.M)
    assert recipe
    command = recipe[1].replace("$(JOBS)", "1").replace("build/site", str(folder)).split()
    command[0] = str(Path(sys.executable).with_name(command[0]))
    environment = os.environ | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "127.0.0.1:9"}
    made = subprocess.run(
        command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stderr == ""
    return folder / "html"


@dataclass
class Read(HTMLParser):
    """What a page holds: ids, links, and what a browser fetches to show it."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            self.fetched.append(given["href"])
        elif "src" in given:
            self.fetched.append(given["src"])


@cache
def read(page: Path) -> Read:
    found = Read()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def every_page(site: Path) -> list[Path]:
    """All but what the theme lays beside its scripts, a template for itself."""
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)


def leads(link: str, page: Path, site: Path) -> bool:
    """Whether a local link leads to a file of the site, and to an id in it."""
    parts = urlsplit(unquote(link))
    target = Path(os.path.normpath(page.parent / parts.path)) if parts.path else page
    if not target.is_relative_to(site) or not is_file(target):
        return False
    return not parts.fragment or target.suffix != ".html" or parts.fragment in read(target).ids


is_file = cache(Path.is_file)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_no_link_is_dead(site):
    dead = [
        f"{page.relative_to(site)}: {link}"
        for page in every_page(site)
        for link in read(page).links + read(page).fetched
        if not re.match(r"https?:|mailto:", link) and not leads(link, page, site)
    ]
    assert dead == []


def test_a_dead_link_would_be_found(site):
    page = site / "index.html"
    assert leads("results.html", page, site)
    assert not leads("no_such_page.html", page, site)
    assert not leads("results.html#no-such-id", page, site)
    assert not leads("../pages/index.md", page, site)


def test_nothing_is_fetched_from_elsewhere(site):
    for page in every_page(site):
        assert [each for each in read(page).fetched if re.match(r"(https?:)?//", each)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text(style)), style


@every_article
def test_an_article_has_a_page_with_its_code_figures_and_words_in_the_search_index(article, site):
    page = text(site / "articles" / f"{article.stem}.html")
    drawings = re.findall(rf"href=\"(\.\./figures/{article.slug}/\w+\.png)\"", page)
    assert drawings
    assert {Path(each).name for each in drawings} <= {
        each.name for each in paths.figures(article.slug).glob("*.png")
    }
    assert 'class="input ' in page
    titles = re.search(r'"?titles"?:(\[.*?\])', text(site / "searchindex.js"))
    assert titles
    assert f"{article.number:02d} · " in titles[1].encode().decode("unicode_escape")


def test_every_claim_leads_to_its_value(site):
    page, found = read(site / "results.html"), claims.findings()
    wanted = {f"results/{f.article.slug}.html#{c.key}" for f in found for c in f.claims}
    assert wanted
    assert wanted <= set(page.links)


def test_every_module_is_in_the_reference_with_its_public_names(site):
    for package, home in paths.PACKAGES.items():
        for source in home.rglob("*.py"):
            below = source.relative_to(home).with_suffix("").parts
            name = ".".join([package, *below]).removesuffix(".__init__")
            ids = read(site / "reference" / f"{name}.html").ids
            functions = re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", source.read_text(), re.M)
            assert {f"{name}.{function}" for function in functions} <= ids


def test_log_and_every_card_have_a_page(site):
    assert (site / "log.html").is_file()
    for card in paths.MODELS.glob("*/README.md"):
        assert (site / "models" / f"{card.parent.name}.html").is_file()


def test_every_page_of_docs_has_a_page_in_the_guide(site):
    guide = read(site / "guide" / "index.html").links
    for page in (paths.ROOT / "docs").glob("*.md"):
        assert (site / "guide" / f"{page.stem}.html").is_file()
        assert f"{page.stem}.html" in guide


def test_every_formula_is_mathml(site):
    notebooks = {each: paths.notebook(each.slug).read_text() for each in ARTICLES}
    formulas = {each: re.findall(r"\$\$.+?\$\$", said, re.S) for each, said in notebooks.items()}
    assert any(formulas.values())
    for each, written in formulas.items():
        page = text(site / "articles" / f"{each.stem}.html")
        assert page.count("<math ") == len(written)
        assert "$$" not in page


@pytest.fixture(scope="module")
def browser() -> Iterator:
    assert CHROMIUM, MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page whose console has to stay without an error, and which may fetch nothing."""
    errors: list[str] = []
    page = browser.new_page(viewport=PHONE, color_scheme="light")
    page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith("http") and errors.append(asked.url))
    yield page
    page.close()
    assert errors == []


def overflow(page: Page) -> int:
    return page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")


@in_a_browser
def test_no_page_is_wider_than_the_window_on_a_phone_or_a_desk(site, page):
    """Of the shown sources, each one block of code, the longest stands for all; of the modules'
    pages, which are made alike, the ten longest do.
    """

    def by_size(folder: str) -> list[Path]:
        return sorted(site.glob(f"{folder}/**/*.html"), key=lambda each: each.stat().st_size)

    sources, modules = by_size("_modules"), by_size("reference")
    others = [each for each in every_page(site) if each not in {*sources, *modules}]
    pages = [*others, *modules[-10:], sources[-1]]
    wide = []
    for each in pages:
        page.goto(each.as_uri(), wait_until="load")
        for size in (PHONE, DESKTOP):
            page.set_viewport_size(size)
            if overflow(page) > 0:
                wide.append((each.relative_to(site).as_posix(), size["width"]))
    assert wide == []


@in_a_browser
def test_the_search_finds_a_word_without_a_server(site, page):
    page.goto((site / "search.html").as_uri() + "?q=speculative")
    found = page.locator("#search-results a")
    expect(found.first).to_be_visible()
    hrefs = found.evaluate_all("links => links.map(link => link.href)")
    assert any("articles/02_speculative_decoding.html" in href for href in hrefs)


@in_a_browser
def test_the_switch_makes_the_background_dark(site, page):
    page.set_viewport_size(DESKTOP)
    page.goto((site / "index.html").as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.locator(".theme-switch-button:visible").first.click()
    page.get_by_text("Dark", exact=True).first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(background) != before


@in_a_browser
def test_a_figure_opens_large_by_the_keyboard_and_closes(site, page):
    page.goto((site / "articles" / f"{ARTICLES[0].stem}.html").as_uri())
    large, link = page.locator("dialog.large"), page.locator("article a:has(img)").first
    expect(large).not_to_be_visible()
    before = link.locator("img").bounding_box()
    link.press("Enter")
    picture = large.locator("img")
    expect(picture).to_be_visible()
    page.wait_for_function("document.querySelector('dialog.large img').naturalWidth > 0")
    after = picture.bounding_box()
    assert before
    assert after
    assert after["height"] > before["height"]
    assert large.evaluate("dialog => dialog.querySelector('img').src").endswith(".png")
    page.keyboard.press("Escape")
    expect(large).not_to_be_visible()
