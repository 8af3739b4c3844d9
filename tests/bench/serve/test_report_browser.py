"""Reports as a browser shows them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.report_optimize import html
from tests.bench.made_story import story
from tests.bench.serve.test_report import page
from tests.serve.page.browser import PHONE, Browser, chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(params=["load", "optimization"])
def driver(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    file = tmp_path / "report.html"
    file.write_text(page() if request.param == "load" else html(story()))
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.driver.get(file.as_uri())
    return browser.driver


def test_charts_and_tables_are_drawn(driver: Any):
    charts = driver.find_elements("css selector", "figure svg")
    assert sum(chart.size["height"] > 100 for chart in charts if chart.is_displayed()) >= 7
    lines = driver.find_elements("css selector", "polyline.c0")
    assert lines[0].value_of_css_property("stroke") == "rgb(40, 103, 201)"
    assert driver.get_log("browser") == []
    assert len(driver.get_screenshot_as_png()) > 20_000, "an empty page compresses to less"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_and_can_be_read(driver: Any, browser: Browser, scheme: str):
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    paper = driver.find_element("css selector", "body").value_of_css_property("background-color")
    assert (paper == "rgba(255, 255, 255, 1)") == (scheme == "light")
    assert browser.audit("faint") == []
    assert browser.audit("nameless") == []


def test_a_phone_shows_it_without_scrolling_sideways(driver: Any):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= PHONE["width"] + 1
