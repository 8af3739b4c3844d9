"""A headless Chromium for the tests of the page, and what they do in it."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
AUDIT = Path(__file__).with_name("audit.js").read_text()
ANSWER = ".message.assistant:last-child"
ENTER, TAB, ESCAPE, SHIFT = "\ue007", "\ue004", "\ue00c", "\ue008"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@contextmanager
def chromium() -> Iterator["Browser"]:
    """One browser for many pages; the test is skipped where none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(opened)
    finally:
        opened.quit()


class Browser:
    """A driver with words for what the page's tests do."""

    def __init__(self, driver: Any):
        self.driver = driver
        self.js = driver.execute_script

    def open(self, url: str, *, dark: bool = False, phone: bool = False, calm: bool = False) -> None:
        """The page as one sees it for the first time."""
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features |= {"prefers-reduced-motion": "reduce" if calm else "no-preference"}
        media = [{"name": name, "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        if phone:
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        else:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        self.driver.get(f"{url}/page/icon.svg")
        self.js("localStorage.clear(); sessionStorage.clear()")
        self.driver.get(url)

    def wait(self, what: Callable[[], T], why: str = "") -> T:
        """Until `what()` is true; its value."""
        end = time.monotonic() + 120
        while not (found := what()):
            assert time.monotonic() < end, f"waited too long for {why or what}"
            time.sleep(0.03)
        return found

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        return self.wait(lambda: self.all(css), css)[0]

    def click(self, css: str) -> None:
        self.one(css).click()

    def text(self, css: str) -> str:
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def shown(self, css: str) -> bool:
        return self.js("return document.querySelector(arguments[0])?.checkVisibility() ?? false", css)

    def keys(self, *keys: str) -> None:
        """Typed at whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def live(self) -> Any:
        """Goes to the live view; its first row."""
        self.click("#to-live")
        return self.one(".requests tbody tr")

    def frames(self) -> None:
        """Until what was to be drawn has been drawn."""
        self.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def rest(self, milliseconds: int) -> None:
        self.js(f"return new Promise((done) => setTimeout(done, {milliseconds}))")

    def send(self, text: str) -> None:
        self.one("#prompt").send_keys(text)
        self.click("#send")

    def ask(self, text: str) -> None:
        """Sends a message and waits for the whole answer."""
        before = len(self.all(".message.assistant"))
        self.send(text)
        self.wait(lambda: len(self.all(".message.assistant")) > before, "an answer")
        self.ended()

    def ended(self) -> None:
        self.wait(lambda: self.shown("#send") and not self.all("[aria-busy=true]"), "the end of the answer")

    def audit(self, name: str) -> Any:
        """What a function of audit.js finds."""
        return self.js(f"{AUDIT}\nreturn {name}()")

    def focus(self) -> str:
        """What has the focus: its id, else its name for a screen reader."""
        return self.js("const a = document.activeElement; return a.id || a.ariaLabel || a.textContent.trim()")

    def requested(self) -> list[str]:
        """Addresses that the browser asked for, or that the policy kept it from asking for."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the browser's console has of errors and warnings."""
        entries = self.driver.get_log("browser")
        own = [entry["message"] for entry in entries if entry["level"] != "INFO"]
        return [message for message in own if "/favicon.ico" not in message]  # a browser asks by itself
