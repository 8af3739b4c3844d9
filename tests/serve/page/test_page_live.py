"""The live view in a real browser: numbers, charts, and rows that can be cancelled."""

from tests.serve.page.browser import Browser
from tests.serve.page_stub import Stub

DASH = "\N{EN DASH}"


def test_the_live_view_shows_numbers_charts_and_rows(page: Browser):
    page.live()
    assert len(page.all(".charts canvas")) == 5
    page.wait(lambda: all(DASH not in tile.text for tile in page.all(".tiles > div")), "numbers in all tiles")
    tiles = [tile.text for tile in page.all(".tiles > div")]
    assert [tile.split("\n")[0] for tile in tiles] == [
        "Running", "KV blocks", "Prefix hits", "Tokens per second", "Time to first token", "Inter-token latency",
    ]  # fmt: skip
    row = page.all(".requests tbody tr")[0].text
    assert "chatcmpl-" in row
    assert "0 of 200" in row
    label = page.one(".plot").get_attribute("aria-label")
    page.wait(lambda: page.one(".plot").get_attribute("aria-label") != label, "the chart to move")
    drawn = "const c = arguments[0]; return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(Boolean)"
    assert all(page.js(drawn, canvas) for canvas in page.all(".charts canvas"))


def test_pause_holds_the_view_still(page: Browser):
    page.live()
    page.click(".live-head button")
    label = page.one(".plot").get_attribute("aria-label")
    page.rest(900)
    assert page.one(".plot").get_attribute("aria-label") == label
    page.click(".live-head button")
    page.wait(lambda: page.one(".plot").get_attribute("aria-label") != label, "the chart to go on")


def test_a_request_is_cancelled_by_pressing_twice(page: Browser, stub: Stub):
    row = page.live()
    id = row.find_element("css selector", "td").get_attribute("title")
    button = row.find_element("css selector", "button")
    button.click()
    assert button.text == "Sure?"
    assert not stub.cancelled
    button.click()
    page.wait(lambda: stub.cancelled == [id], "the server to hear of it")
    page.wait(lambda: not page.all(f".requests td[title='{id}']"), "the row to go")


def test_leaving_the_live_view_ends_its_feed(page: Browser, stub: Stub):
    page.live()
    page.click("#to-chat")
    page.wait(lambda: not page.shown("#live-view"))
    assert page.shown("#prompt")
    page.frames()
    before = page.js("return document.querySelector('.plot').ariaLabel")
    page.rest(700)
    assert page.js("return document.querySelector('.plot').ariaLabel") == before
