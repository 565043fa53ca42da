"""The page in a real browser: what it asks for, whether it fits a phone, both colour schemes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmerge.study.report import html_of, page_of, read_sources

from .browser import CHROMIUM, Browser, browsing
from .made_up import RunFolder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    made = RunFolder(
        folder / "run",
        silos=("<script>document.title='run'</script>", "north", "south-by-a-long-name", "west"),
    )
    made.write()
    made.sweep(30)
    made.geometry()
    path = folder / "report.html"
    path.write_text(html_of(page_of(read_sources([made.path]))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_it_is_read_whole_without_the_network(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.requested() == [page.as_uri()]
    assert browser.complaints() == []
    headings = browser.evaluate("[...document.querySelectorAll('h1, h2')].map((each) => each.textContent)")
    assert headings[0] == "made-up"
    assert {"Scores", "Round by round", "Silo by silo", "Sweep", "Geometry of the updates"} < set(headings)
    assert browser.evaluate("document.title").startswith("made-up")  # what a silo is called does not run
    shown = (
        "[...document.querySelectorAll('tbody th')].some((cell) => cell.textContent.startsWith('<script>'))"
    )
    assert browser.evaluate(shown)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_and_no_text_is_cut_off(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    cut = """
    [...document.querySelectorAll('figure svg')].filter((svg) => svg.getBoundingClientRect().width > 0)
      .flatMap((svg) => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter((text) => {
          const own = text.getBoundingClientRect();
          return own.left < box.left - 1 || own.right > box.right + 1
            || own.top < box.top - 1 || own.bottom > box.bottom + 1;
        }).map((text) => text.textContent);
      })
    """
    assert browser.evaluate(cut) == []
    pictures = "[...document.querySelectorAll('figure')].map((each) => [...each.querySelectorAll('svg')]"
    visible = f"{pictures}.filter((svg) => svg.checkVisibility()).length)"
    assert set(browser.evaluate(visible)) == {1}


def test_light_and_dark_by_the_system_and_by_the_button(browser: Browser, page: Path) -> None:
    style, text = "getComputedStyle", "document.querySelector('svg text')"
    colours = f"[{style}(document.body).backgroundColor, {style}({text}).fill]"
    browser.open(page)
    light = browser.evaluate(colours)
    browser.open(page, dark=True)
    dark = browser.evaluate(colours)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    press = "document.querySelector('header button').click()"
    browser.evaluate(press)  # from auto to light
    assert browser.evaluate(colours) == light
    browser.evaluate(press)
    assert browser.evaluate(colours) == dark
    browser.evaluate(press)  # auto again, for what comes after


def test_a_column_sorts_by_size(browser: Browser, page: Path) -> None:
    browser.open(page)
    table = "[...document.querySelectorAll('table')].find((each) => each.textContent.includes('Leaderboard'))"
    browser.evaluate(f"{table}.tHead.rows[0].cells[1].querySelector('button').click()")
    browser.evaluate(f"{table}.tHead.rows[0].cells[1].querySelector('button').click()")
    ranks = browser.evaluate(f"[...{table}.tBodies[0].rows].map((row) => +row.cells[1].textContent)")
    assert ranks == sorted(ranks, reverse=True)
    assert browser.evaluate(f"{table}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == "descending"
