"""The chat in a real browser: streaming, stopping, settings, conversations, and when it goes wrong."""

import json

from tests.serve.page.browser import ANSWER, ENTER, Browser
from tests.serve.page_stub import Stub


def test_an_answer_streams_in(page: Browser, stub: Stub):
    page.send("a slow one")
    first = page.wait(lambda: page.text(f"{ANSWER} .body > .prose"))
    page.wait(lambda: len(page.text(f"{ANSWER} .body > .prose")) > len(first) + 20, "more of it")
    assert page.shown("#stop")
    assert not page.shown("#send")
    body = stub.received[0]
    assert body["model"] == "smollm2-135m"
    assert body["stream"]
    assert body["messages"] == [{"role": "user", "content": "a slow one"}]
    assert not {"temperature", "top_p", "max_tokens", "stop", "tools", "seed"} & set(body)
    page.click("#stop")
    page.ended()


def test_stop_ends_the_request_and_keeps_what_there_is(page: Browser, stub: Stub):
    page.send("a slow one")
    page.wait(lambda: "word word" in page.text(ANSWER))
    page.click("#stop")
    page.ended()
    assert "stopped" in page.text(f"{ANSWER} .meta")
    page.wait(lambda: stub.closed == 1, "the server to see it")
    text = page.text(f"{ANSWER} .body > .prose")
    assert "word word" in text
    page.ask("again, short")  # and the conversation goes on
    assert stub.received[1]["messages"][1]["content"].strip() == text.strip()


def test_markdown_and_code_are_shown_as_such(page: Browser):
    page.ask("code")
    assert [cell.text for cell in page.all(f"{ANSWER} th")] == ["Case", "Comparisons", "Extra memory"]
    assert page.one(f"{ANSWER} td[align=right]").value_of_css_property("text-align") == "right"
    assert page.text(f"{ANSWER} strong") == "merge sort"
    page.wait(lambda: page.all(f"{ANSWER} .hljs-keyword"), "colours")
    assert page.text(f"{ANSWER} pre").startswith("def merge(left")
    link = page.one(f"{ANSWER} a")
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert link.get_attribute("target") == "_blank"


def test_blocks_that_are_done_are_not_drawn_again(page: Browser):
    page.send("paragraphs")
    page.wait(lambda: len(page.all(f"{ANSWER} .prose p")) > 3)
    page.js(f"document.querySelector('{ANSWER} .prose p').dataset.mine = 1")
    page.ended()
    assert page.all(f"{ANSWER} [data-mine]")
    assert len(page.all(f"{ANSWER} .prose p")) == 60


def test_copy_of_code_is_the_code(page: Browser):
    page.ask("code")
    page.js("window.copied = []; navigator.clipboard.writeText = async (text) => void copied.push(text)")
    page.click(f"{ANSWER} [aria-label='Copy code']")
    page.click(f"{ANSWER} .actions [aria-label=Copy]")
    page.wait(lambda: page.js("return copied.length") == 2)
    code, answer = page.js("return copied")
    assert code.startswith("def merge(")
    assert "```" not in code
    assert answer.startswith("Merging is the second half of **merge sort**")
    page.wait(lambda: page.text("#toast") == "Copied")


def test_thinking_is_folded(page: Browser):
    page.ask("think")
    assert page.text(f"{ANSWER} summary").startswith("Thought for ")
    assert not page.shown(f"{ANSWER} .thinking .prose")
    page.click(f"{ANSWER} summary")
    page.wait(lambda: "First, what is a headrace?" in page.text(f"{ANSWER} .thinking .prose"))
    assert "First, what" not in page.text(f"{ANSWER} .body > .prose")


def test_tool_calls_are_shown_and_answered(page: Browser, stub: Stub):
    page.click("#open-settings")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    page.one("[name=tools]").send_keys(json.dumps(tools))
    page.ask("weather?")
    assert stub.received[0]["tools"] == tools
    assert page.text(f"{ANSWER} .call header") == "weather"
    assert json.loads(page.text(f"{ANSWER} .call pre")) == {"city": "Zürich", "days": 3}
    page.one(f"{ANSWER} .results textarea").send_keys("rain, weather wise")
    page.click(f"{ANSWER} .results button")
    page.wait(lambda: len(stub.received) == 2)
    page.ended()
    call, result = stub.received[1]["messages"][1:]
    assert call["tool_calls"][0]["function"]["name"] == "weather"
    assert (result["role"], result["content"], result["tool_call_id"]) == (
        "tool",
        "rain, weather wise",
        "call_1",
    )
    assert not page.all(".results")


def test_settings_go_with_the_request_and_are_kept(page: Browser, stub: Stub):
    page.click("#open-settings")
    given = {
        "system": "Be brief.",
        "temperature": "0.5",
        "top_k": "20",
        "max_tokens": "64",
        "seed": "7",
        "stop": "\n",
    }
    for name, value in given.items():
        page.one(f"#settings [name={name}]").send_keys(value if name != "stop" else "END\nfin")
    page.one("[name=thinking] [value=off]").click()
    page.one("[name=tools]").send_keys("{not json")
    assert "Not JSON" in page.text("#tools-fault")
    page.ask("hello")
    body = stub.received[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["top_k"], body["max_tokens"], body["seed"]) == (0.5, 20, 64, 7)
    assert body["stop"] == ["END", "fin"]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "tools" not in body
    page.driver.refresh()
    page.wait(lambda: page.js("return document.querySelector('[name=seed]').value") == "7")
    page.click("#open-settings")
    page.click("#reset")
    page.ask("hello again")
    assert "seed" not in stub.received[1]


def test_regenerate_and_edit(page: Browser, stub: Stub):
    page.ask("one")
    page.ask("two")
    page.click(f"{ANSWER} [aria-label='Answer again']")
    page.wait(lambda: len(stub.received) == 3)
    page.ended()
    assert stub.received[2]["messages"] == stub.received[1]["messages"]
    page.click(".message.user [aria-label=Edit]")
    field = page.one(".edit textarea")
    assert page.focus() == "Text of the message"
    field.clear()
    field.send_keys("three")
    page.click(".edit .main")
    page.wait(lambda: len(stub.received) == 4)
    page.ended()
    assert stub.received[3]["messages"] == [{"role": "user", "content": "three"}]
    assert len(page.all(".message")) == 2
    page.click(f"{ANSWER} [aria-label=Edit]")
    page.one(".edit textarea").clear()
    page.one(".edit textarea").send_keys("my own words")
    page.click(".edit .main")
    page.ask("four")
    assert stub.received[4]["messages"][1] == {"role": "assistant", "content": "my own words"}


def test_conversations_are_kept_and_can_be_left_and_deleted(page: Browser):
    page.ask("the first")
    page.click("#new")
    assert page.shown("#welcome")
    page.ask("the second")
    page.driver.refresh()
    page.wait(lambda: len(page.all("#conversations li")) == 2)
    assert page.text(".message.user .bubble") == "the second"
    page.all("#conversations .open")[1].click()
    assert page.text(".message.user .bubble") == "the first"
    page.js("window.confirm = () => true; document.querySelectorAll('#conversations .icon')[1].click()")
    page.wait(lambda: len(page.all("#conversations li")) == 1)
    assert page.shown("#welcome")
    assert (
        page.js("return Object.keys(localStorage).filter((key) => key.startsWith('headrace.chat.')).length")
        == 1
    )


def test_what_is_damaged_in_the_store_does_not_stop_the_page(page: Browser, stub: Stub):
    page.js(
        "localStorage.setItem('headrace.chat.bad', '{'); localStorage.setItem('headrace.chat.odd', '[1]')"
    )
    page.driver.refresh()
    page.ask("hello")
    assert page.text(f"{ANSWER} strong") == "headrace"


def test_export(page: Browser):
    page.ask("code")
    page.click("#open-export")
    page.js("window.copied = ''; navigator.clipboard.writeText = async (text) => void (copied = text)")
    page.click("#export-copy")
    page.wait(lambda: page.js("return copied").startswith("# code\n"))
    assert "```python\ndef merge(" in page.js("return copied")
    page.wait(lambda: not page.shown("#export"))
    page.js(
        "window.saved = []; URL.createObjectURL = (blob) => { blob.text().then((t) => saved.push(t)); return '#'; }"
    )
    page.click("#open-export")
    page.js("document.querySelector('#export-json').click()")
    page.wait(lambda: page.js("return saved.length"))
    kept = json.loads(page.js("return saved[0]"))
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]


def test_an_error_in_the_middle_keeps_what_came_and_offers_another_try(page: Browser, stub: Stub):
    page.ask("an error")
    assert "The engine fell over." in page.text(f"{ANSWER} .trouble")
    assert page.text(f"{ANSWER} .body > .prose")
    page.click(f"{ANSWER} .trouble button")
    page.wait(lambda: len(stub.received) == 2)
    page.ended()


def test_a_full_server_says_when_to_come_back(page: Browser, stub: Stub):
    stub.refuse = {"Retry-After": "7"}
    page.ask("hello")
    assert "The line is full." in page.text(f"{ANSWER} .trouble")
    assert "7 s" in page.text(f"{ANSWER} .trouble")


def test_a_server_that_wants_a_key_is_given_one(browser: Browser):
    with Stub(key="sesame", admin="master") as locked:
        browser.open(locked.url)
        browser.wait(lambda: browser.shown("#keys"), "the question")
        assert "wants an API key" in browser.text("#keys-why")
        browser.one("[name=api]").send_keys("wrong", ENTER)
        browser.wait(lambda: browser.shown("#keys"), "the question once more")
        field = browser.one("[name=api]")
        field.clear()
        field.send_keys("sesame", ENTER)
        browser.wait(lambda: browser.text("#model"), "the model's name")
        browser.ask("hello")
        assert browser.js("return sessionStorage.getItem('headrace.key')") == "sesame"
        assert "sesame" not in browser.js("return JSON.stringify(localStorage)")
        browser.click("#to-live")
        browser.wait(lambda: browser.shown("#keys"), "the question for the admin key")
        browser.click("#keys [value=no]")
        browser.wait(lambda: "admin key" in browser.text("#live-view .trouble"))
        browser.click("#live-view .trouble button")
        browser.one("[name=admin]").send_keys("master", ENTER)
        browser.wait(lambda: browser.text(".tiles .value").isdecimal(), "numbers")
