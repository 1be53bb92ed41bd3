"""The report in a browser: no error, every picture visible, keys that work, and enough contrast.

It needs a Chromium of the system and Playwright, and for contrast and the rest of accessibility the file of axe-core
(from npm), whose path is in AXE. Without them it is skipped; nothing is downloaded.
"""

import importlib.util
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.written_runs import write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
AXE = Path(os.environ.get("AXE", "node_modules/axe-core/axe.min.js"))
WHY_NOT = "no Chromium on the path" if CHROMIUM is None else "no Playwright: pip install playwright"
pytestmark = [
    pytest.mark.skipif("CI" in os.environ, reason="a browser is started by hand, not in CI"),
    pytest.mark.skipif(CHROMIUM is None or not HAS_PLAYWRIGHT, reason=WHY_NOT),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    from lightning_bsscale.report.page import make_page
    from lightning_bsscale.report.read_run import read_run

    folder = tmp_path_factory.mktemp("reports")
    runs = [read_run(write_run(folder / f"{index}.jsonl", 400)) for index in range(2)]
    for name, shown in (("one", runs[:1]), ("two", runs)):
        (folder / f"{name}.html").write_text(make_page(shown), encoding="utf-8")
    return folder


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=[390, 1000])
def width(request):
    return request.param


@pytest.fixture
def shown(browser, reports, scheme, width):
    """Opens a page, and fails if its console says anything."""
    said, opened = [], []

    def show(name):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=False)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if "file:" not in request.url else None)
        page.goto((reports / f"{name}.html").as_uri())
        opened.append(page)
        return page

    yield show
    for page in opened:
        page.close()
    assert said == []


def visible(page):
    pictures = page.locator("svg[role=img]").all()
    return {one.get_attribute("id") for one in pictures if one.is_visible() and one.bounding_box()}


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_picture_can_be_seen(shown, width, name):
    page = shown(name)
    for details in page.locator("main > details > summary").all():
        details.click()
    every = {one.get_attribute("id") for one in page.locator("svg[role=img]").all()}
    seen = set()
    for axis in ("steps", "seconds", "examples"):
        page.locator(f"#axis-{axis}").check()
        now = visible(page)
        assert now
        assert not any(re.search("-(examples|steps|seconds)$", one) and not one.endswith(axis) for one in now)
        seen |= now
    assert seen == every
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_keys_move_along_a_picture(shown):
    page = shown("one")
    page.locator("#run-noise-examples").focus()
    tip = page.locator("#run-noise-figure .tip")
    assert not tip.is_visible()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "noise scale" in first
    assert tip.inner_text() != first
    page.keyboard.press("End")
    assert page.locator("#run-noise-figure tbody tr").last.locator("td").first.text_content() in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.locator("#run-noise-examples").hover()
    assert tip.is_visible()


def test_colours_can_be_chosen(shown):
    page = shown("one")
    colours = set()
    for theme in ("light", "dark"):
        page.locator(f"#theme-{theme}").check()
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


@pytest.mark.skipif(not AXE.is_file(), reason=f"no axe-core at {AXE}: npm install axe-core, or set AXE")
@pytest.mark.parametrize("name", ["one", "two"])
def test_axe_finds_nothing(browser, reports, scheme, width, name):
    # The page's own policy forbids scripts from outside, such as this one.
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page.goto((reports / f"{name}.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")
    page.close()
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []
