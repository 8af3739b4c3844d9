"""What a model writes, in a real browser: it is shown, and does nothing."""

from tests.serve.page.browser import ANSWER, Browser
from tests.serve.page_stub import Stub


def test_nothing_that_a_model_writes_runs_or_loads(page: Browser, stub: Stub):
    page.requested()
    page.ask("attack")
    page.ask("think about the attack")
    page.all(".thinking summary")[-1].click()
    page.driver.refresh()
    page.wait(lambda: "The end of it." in page.text(ANSWER))
    page.rest(300)
    for element in page.all(".message .prose a, .message .prose code"):
        page.js("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", element)
    assert page.js("return window.hacked ?? null") is None
    assert page.audit("dangerous") == []
    elsewhere = [url for url in page.requested() if not url.startswith((stub.url, "chrome:"))]
    assert elsewhere == []
    assert page.complaints() == []  # not even the policy had to step in


def test_the_policy_would_stop_what_slips_through(page: Browser, stub: Stub):
    page.requested()
    page.js("""
        document.body.append(Object.assign(document.createElement('img'), { src: 'http://elsewhere.invalid/leak' }));
        const made = document.createElement('div');
        try { made.setAttribute('onclick', 'window.hacked = 1') } catch { window.listened = true }
        fetch('http://elsewhere.invalid/').catch(() => {});
        try { made.innerHTML = '<b>x</b>' } catch { window.refused = true }
    """)
    complaints = page.wait(page.complaints, "the policy to complain")
    assert any("Content Security Policy" in line for line in complaints)
    assert page.js("return [window.hacked ?? null, window.listened, window.refused]") == [None, True, True]


def test_everything_comes_from_this_server(page: Browser, stub: Stub):
    page.ask("code")
    page.click("#to-live")
    page.wait(lambda: page.all(".charts canvas"))
    asked = page.requested()
    assert any("uPlot" in url for url in asked)
    assert [url for url in asked if not url.startswith((stub.url, "about:", "chrome:"))] == []
    assert page.complaints() == []
