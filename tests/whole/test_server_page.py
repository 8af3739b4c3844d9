"""The page against `headrace serve` itself: keys, an answer, the live view, a cancelled request."""

import os
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.serve.page.browser import ANSWER, ENTER, Browser, chromium
from tests.whole.offered import Offered, children, model, offered

KEY, ADMIN = "secret-key", "admin-key"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offered]:
    folder = model(tmp_path_factory.mktemp("page") / "tiny")
    with offered(folder, environ={"HEADRACE_API_KEY": KEY, "HEADRACE_ADMIN_KEY": ADMIN}) as running:
        yield running


def long_answer(url: str, cancelled: threading.Event) -> None:
    """Asks for a long answer; `cancelled` is set when it was ended before its time."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3500, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "nightly"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    if answer.status_code != 200 or answer.json()["usage"]["completion_tokens"] < 3500:
        cancelled.set()


def test_the_page_and_the_server_speak_the_same(browser: Browser, server: Offered):
    browser.open(server.url)
    browser.wait(lambda: browser.shown("#keys"), "the question for the key")
    browser.one("[name=api]").send_keys(KEY, ENTER)
    browser.wait(lambda: browser.text("#model") == "tiny", "the model's name")
    browser.click("#open-settings")
    browser.one("[name=max_tokens]").send_keys("12")
    browser.one("[name=temperature]").send_keys("0")
    browser.ask("hello")
    assert not browser.shown(f"{ANSWER} .trouble"), browser.text(ANSWER)
    assert " tokens" in browser.text(f"{ANSWER} .meta")
    browser.wait(lambda: browser.text("#state") == "Ready")
    browser.click("#to-live")
    browser.wait(lambda: browser.shown("#keys"), "the question for the admin key")
    browser.one("[name=admin]").send_keys(ADMIN, ENTER)
    browser.wait(lambda: browser.text(".tiles .value") == "0", "numbers")
    assert browser.text(".tiles div:nth-child(5) .value").endswith("s")  # the answer's time to first token
    cancelled = threading.Event()
    asking = threading.Thread(target=long_answer, args=(server.url, cancelled))
    asking.start()
    browser.one(".requests tbody button")
    (engine,) = children(server.process.pid)
    os.kill(engine, signal.SIGSTOP)  # or the answer might be complete before it is cancelled
    browser.click(".requests tbody button")
    browser.click(".requests tbody button")
    asking.join(120)
    os.kill(engine, signal.SIGCONT)
    assert cancelled.is_set()
    browser.wait(lambda: not browser.all(".requests tbody tr"), "the row to go")
    assert [url for url in browser.requested() if not url.startswith((server.url, "about:", "chrome:"))] == []


def test_the_page_of_the_server_is_held_to_its_policy(server: Offered):
    for path in ("/", "/page/js/main.js"):
        headers = httpx.get(server.url + path).headers
        assert headers.get_list("content-security-policy")[0].startswith(
            "default-src 'none'; script-src 'self'"
        )
    assert httpx.get(f"{server.url}/page/..%2fauth.py").status_code == 404
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
