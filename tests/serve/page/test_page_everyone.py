"""The page for everyone: phone, keyboard, screen reader, dark and light, calm."""

from itertools import pairwise

import pytest

from tests.serve.page.browser import ANSWER, ENTER, ESCAPE, SHIFT, TAB, Browser
from tests.serve.page_stub import Stub


@pytest.mark.parametrize("view", ["#chat", "#live"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_in_one_direction(browser: Browser, stub: Stub, view: str, width: int):
    browser.open(stub.url, phone=True)
    metrics = {"width": width, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.wait(lambda: browser.text("#model"))
    browser.ask("code")
    if view == "#live":
        browser.live()
    assert browser.js("return innerWidth") == width
    assert browser.audit("wide") == []
    assert browser.js("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.js("return document.documentElement.scrollHeight <= innerHeight"), "only the view scrolls"
    sideways = "const view = document.querySelector(arguments[0]); return view.scrollWidth - view.clientWidth"
    assert browser.js(sideways, "#live-view" if view == "#live" else "#scroll") == 0


def test_drawers_on_a_phone(browser: Browser, stub: Stub):
    browser.open(stub.url, phone=True)
    assert not browser.shown("#settings")
    browser.click("#open-settings")
    assert browser.focus() == "close-settings"
    assert browser.js("return document.querySelector('#main').inert")
    browser.keys(ESCAPE)
    assert not browser.shown("#settings")
    assert browser.focus() == "open-settings"
    browser.click("#open-list")
    browser.wait(lambda: browser.focus() == "new")
    browser.wait(
        lambda: browser.js("return document.querySelector('#list').getBoundingClientRect().left") == 0
    )
    browser.click("#new")
    browser.wait(lambda: not browser.js("return document.querySelector('#main').inert"))


def test_the_keyboard_alone_is_enough(page: Browser, stub: Stub):
    reached: list[str] = []
    for _ in range(20):
        page.keys(TAB)
        reached.append(page.focus())
        if reached[-1] == "send":
            break
    order = ["to-chat", "to-live", "open-keys", "theme", "new", "model"]
    order += ["open-export", "open-settings", "prompt", "send"]
    assert [one for one in reached if one in order] == order
    assert "Skip to the content" in reached
    page.one("#prompt").send_keys("line one", SHIFT + ENTER)
    page.keys("line two", ENTER)
    page.wait(lambda: len(stub.received) == 1)
    page.ended()
    assert stub.received[0]["messages"][0]["content"] == "line one\nline two"
    page.keys("a slow one", ENTER)
    page.wait(lambda: "word" in page.text(ANSWER))
    page.keys(ESCAPE)
    page.ended()
    assert "stopped" in page.text(f"{ANSWER} .meta")
    ring = page.js(
        "document.querySelector('#open-settings').focus(); return getComputedStyle(document.activeElement).outlineStyle"
    )
    assert ring == "solid"


def test_the_answer_is_spoken_politely(page: Browser):
    assert page.one("#spoken").get_attribute("aria-live") == "polite"
    page.ask("hello")
    said = page.text("#spoken").split()
    assert " ".join(said[:3] + said[-3:]) == "A headrace is smooth and steady."


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_names_headings_and_contrast(browser: Browser, stub: Stub, dark: bool):
    browser.open(stub.url, dark=dark, calm=True)
    browser.wait(lambda: browser.text("#model"))
    browser.ask("think of code")
    browser.ask("weather?")
    browser.click("#open-settings")
    browser.wait(lambda: browser.all(".hljs-keyword"))
    for step in ("chat", "keys", "live"):
        if step == "keys":
            browser.click("#open-keys")
        if step == "live":
            browser.click("#keys [value=no]")
            browser.live()
        assert browser.audit("nameless") == []
        assert browser.audit("repeated") == []
        assert browser.audit("dangling") == []
        assert browser.audit("faint") == []
        levels = browser.audit("headings")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, stub: Stub):
    def ground() -> int:
        return browser.js("return Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")

    browser.open(stub.url, dark=True)
    assert ground() < 60
    browser.open(stub.url, dark=False)
    assert ground() > 200
    browser.click("#theme")  # light
    browser.click("#theme")  # dark
    assert ground() < 60
    assert browser.one("#theme").get_attribute("aria-label") == "Colours: dark"
    browser.driver.refresh()
    assert ground() < 60


def test_nothing_moves_for_those_who_ask_for_calm(browser: Browser, stub: Stub):
    browser.open(stub.url, calm=True)
    assert browser.audit("longest") < 0.01
    browser.open(stub.url)
    assert browser.wait(lambda: browser.audit("longest") > 0.01)
