"""One browser and one server for all tests of the page."""

from collections.abc import Iterator

import pytest

from tests.serve.page.browser import Browser, chromium
from tests.serve.page_stub import Stub


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def shared() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture
def stub(shared: Stub) -> Stub:
    shared.forget()
    return shared


@pytest.fixture
def page(browser: Browser, stub: Stub) -> Browser:
    """The page as one sees it for the first time."""
    browser.open(stub.url)
    browser.wait(lambda: browser.text("#model"), "the model's name")
    return browser
