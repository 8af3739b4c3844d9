"""Reports as a browser shows them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.report_optimize import html
from headrace.plan.advice import advise
from headrace.plan.gpus import GPUS
from headrace.plan.page import page as plan
from headrace.plan.search import cheapest
from tests.bench.made_story import story
from tests.bench.serve.test_report import page
from tests.plan.options import option
from tests.serve.page.browser import PHONE, Browser, chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def planned() -> str:
    asked = option()
    return plan(asked, advise(asked), cheapest(asked, [GPUS["h200"]], ["bf16", "fp8"], [], 10), "cost")


REPORTS = {"load": page, "optimization": lambda: html(story()), "plan": planned}
CHARTS = {"load": 10, "optimization": 7, "plan": 2}
"""That are open to be seen at first."""


@pytest.fixture(params=list(REPORTS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def driver(browser: Browser, tmp_path: Path, name: str) -> Any:
    file = tmp_path / "report.html"
    file.write_text(REPORTS[name]())
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.driver.get(file.as_uri())
    return browser.driver


def test_charts_and_tables_are_drawn(driver: Any, name: str):
    charts = driver.find_elements("css selector", "figure svg")
    assert sum(chart.size["height"] > 100 for chart in charts if chart.is_displayed()) >= CHARTS[name]
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
