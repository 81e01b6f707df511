"""The page in a real headless Chromium: it renders, filters work, rows stay text, axe finds nothing grave."""

import re
import shutil
from pathlib import Path

import pytest
from page_checks import faults
from sample_run import EVIL, write_run

from lm_mixup.config import ReportConfig
from lm_mixup.report.page import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=600_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The address of a page with every section, and of one whose rows try to be markup."""
    addresses = {}
    for name, evil in (("full", False), ("evil", True)):
        run = write_run(tmp_path_factory.mktemp("runs") / name, evil=evil, embed=True)
        report(run, ReportConfig(title=EVIL if evil else ""))
        addresses[name] = f"file://{run.path}/report/index.html"
    return addresses


@pytest.fixture
def open_page(browser, written):
    """Opens a page; what its console says is an error of the test."""
    opened, said = [], []

    def open_page(name, **options):
        context = browser.new_context(**options)
        opened.append(context)
        context.set_default_timeout(600_000)  # a busy machine draws slowly
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        page.goto(written[name])
        return page

    yield open_page
    for context in opened:
        context.close()
    assert said == []


def _shown(page):
    return page.locator("#example-list article:visible")


def test_every_chart_is_drawn_and_no_page_is_wider_than_the_screen(open_page):
    page = open_page("full", viewport={"width": 400, "height": 800})
    holders = page.locator(".plot")
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.main-svg')).length"
    )
    assert drawn == holders.count() == 19
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator(".flow-chart path").count() > 8


def test_filters_search_and_pages_choose_the_examples(open_page):
    page = open_page("full")
    total = page.locator("#example-list article").count()
    assert _shown(page).count() == 5 < total
    first = _shown(page).first.text_content()
    page.click("#later")
    assert _shown(page).first.text_content() != first
    page.select_option("select[name=state]", "rejected")
    found = page.locator("#example-list article[data-state=rejected]").count()
    assert page.text_content("#shown").startswith(f"{found} of {total} examples, page 1")
    assert set(_shown(page).evaluate_all("all => all.map(a => a.dataset.state)")) == {"rejected"}
    page.select_option("select[name=faithful]", "no")
    assert "less than 0.9 of what it says" in _shown(page).first.text_content()
    page.fill("input[name=search]", "nothing says this")
    assert _shown(page).count() == 0
    assert page.text_content("#shown") == f"0 of {total} examples, page 1 of 1"


def test_a_box_on_the_map_chooses_the_examples_of_its_clusters(open_page):
    page = open_page("full")
    total = page.locator("#example-list article").count()
    cluster = page.locator("#example-list article").first.get_attribute("data-cluster")
    page.wait_for_function("document.getElementById('map-0').on !== undefined")
    point = {"points": [{"customdata": [cluster, "", ""]}]}
    page.evaluate("event => document.getElementById('map-0').emit('plotly_selected', event)", point)
    assert page.text_content("#shown").startswith(f"1 of {total} examples")
    page.click("#map-clear")
    assert page.text_content("#shown").startswith(f"{total} of {total}")


def test_rows_that_are_markup_stay_text(open_page):
    page = open_page("evil")  # a script that runs would open a dialog
    assert page.title() == EVIL
    assert page.locator("#example-list b, #example-list script").count() == 0
    assert EVIL in page.text_content("#example-list")


def test_no_row_runs_is_markup_asks_the_network_or_breaks_the_layout(browser, written):
    assert faults(browser, Path(written["evil"].removeprefix("file://"))) == []


def test_without_javascript_the_page_says_so_and_shows_every_row(open_page):
    page = open_page("full", java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert _shown(page).count() == page.locator("#example-list article").count() > 20
    assert not page.locator("#filters").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page("full", color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    grave = {v["id"]: v["nodes"][0]["html"][:200] for v in found if v["impact"] in ("serious", "critical")}
    assert grave == {}


def test_the_command_is_copied(open_page):
    page = open_page("full", permissions=["clipboard-read", "clipboard-write"])
    button = page.locator(".copy[data-copy=command]")
    button.click()
    button.filter(has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"lm-mixup run \S+ --run-dir \S+", copied)
