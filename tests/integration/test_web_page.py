"""The page in a real Chromium: it loads, lives, searches, and shows what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import threatbus_web.history
from helpers.browser import Browser
from helpers.buses import Buses, OpenApp
from helpers.documents import encode, indicator, sighting
from helpers.waiting import eventually

from integration.web_helpers import TOKEN, WebBus
from threatbus.observe.report import ReaderState


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


class Page:
    """The page of a bus, signed in."""

    def __init__(self, browser: Browser, web: WebBus) -> None:
        self.browser = browser
        self.web = web
        browser.complaints.clear()
        browser.size(1280)
        browser.open(web.url)
        browser.type("#token", TOKEN)
        browser.press("Enter")
        browser.shows("#state", "eady")

    def publish(self, document: dict[str, Any]) -> None:
        assert self.web.ask("/api/publish", "POST", encode(document)).status == 200

    def rows(self) -> list[str]:
        """The recent messages as they are shown, the newest first."""
        found = self.browser.run(
            "[...document.querySelectorAll('#recent li')].map(e => e.innerText)"
        )
        assert isinstance(found, list)
        return found

    def lists(self, count: int, text: str) -> None:
        """Wait until `count` messages are listed, the first of which shows `text`."""

        def listed() -> bool:
            rows = self.rows()
            return len(rows) == count and text in rows[0]

        eventually(listed, what=f"{count} rows, the first with {text!r}")

    def is_wider_than_its_window(self) -> bool:
        return bool(self.browser.run("document.documentElement.scrollWidth > innerWidth"))


@pytest.fixture
def page(
    browser: Browser, start_bus: Buses, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch
) -> Page:
    monkeypatch.setattr(threatbus_web.history, "INTERVAL_SECS", 0.1)
    return Page(browser, WebBus(start_bus, {"open": None}))


def test_it_asks_for_the_token_once_and_keeps_it_in_the_tab(
    browser: Browser, start_bus: Buses
) -> None:
    web = WebBus(start_bus)
    browser.open(web.url)
    assert browser.run("document.querySelector('#sign-in').open")
    assert browser.run("getComputedStyle(document.querySelector('.pair')).visibility") == "hidden"
    browser.type("#token", "wrong-token-0123456789")
    browser.press("Enter")
    browser.shows("#sign-in-error", "not the token")
    browser.type("#token", TOKEN)
    browser.press("Enter")
    browser.shows("#state", "Ready")
    browser.open(f"{web.url}/?again")
    browser.shows("#state", "Ready")
    assert browser.run("localStorage.length") == 0
    assert TOKEN not in str(browser.run("location.href + document.documentElement.outerHTML"))


def test_it_loads_without_complaints_and_from_nowhere_else(page: Page) -> None:
    browser = page.browser
    browser.shows("#plugins", "inmem")
    browser.shows("#recent-empty", "Nothing has passed yet")
    browser.shows("#subscribers-empty", "Nobody is subscribed")
    loaded = browser.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(name.startswith(page.web.url) for name in loaded)
    assert browser.complaints == []


def test_it_shows_what_passes_as_it_passes_and_no_markup_in_it(page: Page) -> None:
    hostile = "[a:b = '<img src=x onerror=alert(1)>']"
    page.publish(indicator(hostile, name="<script>alert(2)</script>"))
    eventually(lambda: any("<img src=x" in row for row in page.rows()))
    assert page.browser.run("document.querySelectorAll('#recent img, #recent script').length") == 0
    for number in range(3):
        page.publish(indicator(f"[domain-name:value = 'c{number}.example']"))
    eventually(lambda: len(page.rows()) == 4)
    assert "c2.example" in page.rows()[0], "the newest is the first"
    assert "nobody" not in page.rows()[0], "who has it is not known yet when it passes"
    assert page.browser.complaints == []


def test_a_reload_shows_history(page: Page) -> None:
    page.publish(indicator("[domain-name:value = 'before.example']"))
    page.browser.open(f"{page.web.url}/?reload")
    eventually(lambda: any("before.example" in row for row in page.rows()))
    page.browser.until("document.querySelector('#meter-in .plot-line')")
    page.browser.shows("#meter-in", "1 since the start")
    label = page.browser.run("document.querySelector('#meter-in svg').getAttribute('aria-label')")
    assert "quarter of an hour" in label


def test_it_searches_by_text_and_type(page: Page) -> None:
    wanted = indicator("[domain-name:value = 'evil.example']")
    good = indicator("[domain-name:value = 'good.example']")
    for document in (good, wanted, sighting(wanted["id"])):
        page.publish(document)
    eventually(lambda: len(page.rows()) == 3)
    page.browser.type("#text", "EVIL.example")
    page.lists(1, "evil.example")
    page.publish(indicator("[domain-name:value = 'other.example']"))
    page.publish({**wanted, "revoked": True})
    page.lists(2, "remove")
    page.browser.type("#text", "no such thing")
    page.browser.shows("#recent-empty", "Nothing of what the bus still knows matches")
    page.browser.run(
        "document.querySelector('#text').value = '';"
        "const type = document.querySelector('#type'); type.value = 'sighting';"
        "type.dispatchEvent(new Event('change'))"
    )
    page.lists(1, "sighting")


def test_a_click_traces(page: Page, open_app: OpenApp) -> None:
    open_app.subscribe("stix2/", open_app.services.outq("sensor #1"))
    known = indicator("[domain-name:value = 'evil.example']", x_threatbus_source="MISP 1")
    page.publish(known)
    page.publish({**known, "revoked": True})
    page.browser.until("document.querySelectorAll('#recent .about').length == 2")
    page.browser.run("document.querySelector('#recent .about').click()")
    page.browser.shows("#trace-body", "withdrawn")
    shown = page.browser.text("#trace-body")
    assert "from web · MISP 1" in shown
    assert "sensor #1: waiting" in shown
    page.browser.press("Escape")
    assert not page.browser.run("document.querySelector('#trace').open")


def test_it_can_be_paused(page: Page) -> None:
    page.publish(indicator())
    eventually(lambda: len(page.rows()) == 1)
    page.browser.run("document.querySelector('#pause').click()")
    page.publish(indicator())
    page.browser.shows("#recent-note", "1 more have passed")
    assert len(page.rows()) == 1
    page.browser.run("document.querySelector('#pause').click()")
    eventually(lambda: len(page.rows()) == 2)


def test_it_shows_a_stalled_subscriber_and_a_lost_broker(page: Page, open_app: OpenApp) -> None:
    report = open_app.services.report
    outq = open_app.services.outq("sensor #1")
    open_app.subscribe("stix2/", outq)
    report.readers(lambda: {"sensor #1": ReaderState(True, 42.0, 7)})
    report.connection("broker").up("connected to broker.example")
    report.connection("broker").down("trying broker.example again, attempt 3: refused")
    page.browser.shows("#subscribers", "stalled for 42 s")
    page.browser.shows("#state", "Not ready")
    page.browser.shows("#plugins", "not connected")
    problems = page.browser.text("#problems")
    assert "open: broker is down: trying broker.example again, attempt 3" in problems
    assert "sensor #1 has taken nothing for 42 s although 7 messages wait" in problems
    report.connection("broker").up("connected to broker.example")
    report.readers(lambda: {"sensor #1": ReaderState(True)})
    page.browser.shows("#state", "Ready")
    page.browser.shows("#plugins", "back 1 time")
    assert page.browser.run("document.querySelector('#problems').hidden")


def test_it_shows_what_was_rejected_and_why(page: Page) -> None:
    assert page.web.ask("/api/publish", "POST", b'{"type": "indicator"}').status == 422
    page.browser.shows("#reasons", "STIX 2.0, but 2.1 is needed")
    page.browser.shows("#rejected", "#1")


def test_it_says_when_the_bus_is_gone(page: Page) -> None:
    page.web.bus.stop()
    page.browser.shows("#gone", "has not answered since")
    assert page.browser.text("#state") == "No answer"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(page: Page, open_app: OpenApp, scheme: str) -> None:
    open_app.subscribe("stix2/", open_app.services.outq("a-sensor-with-a-very-long-name" * 3))
    page.publish(indicator(f"[url:value = 'http://{'long' * 80}.example/']", name="name " * 30))
    page.web.ask("/api/publish", "POST", encode({"type": "x" * 300}))
    open_app.services.report.connection("x").down("trying " + "broker.example" * 20)
    page.browser.shows("#problems", "trying")
    eventually(page.rows)
    page.browser.scheme(scheme)
    for width in (360, 768, 1280):
        page.browser.size(width, phone=width < 500)
        assert not page.is_wider_than_its_window(), width
    page.browser.size(360, phone=True)
    page.browser.run("document.querySelector('#recent .about').click()")
    page.browser.shows("#trace-body", "a-sensor")
    assert not page.browser.run(f"({WIDER_THAN_SHOWN})(document.querySelector('#trace'))")
    page.browser.press("Escape")
    page.browser.size(1280)
    assert page.browser.run(f"({LEAST_CONTRAST})()") >= 4.5


def test_everything_that_can_be_clicked_can_be_reached_and_has_a_name(page: Page) -> None:
    page.publish(indicator())
    eventually(page.rows)
    nameless = page.browser.run(NAMELESS)
    assert nameless == []
    page.browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(5):
        page.browser.press("Tab")
        reached.append(page.browser.run(FOCUSED))
    assert reached[:3] == ["text", "type", "pause"]
    assert "about" in reached


#: Whether a part of the page has to be scrolled sideways.
WIDER_THAN_SHOWN = "(e) => e.scrollWidth > e.clientWidth"
#: What can be used and does not say what it is.
NAMELESS = """
[...document.querySelectorAll("button, input, select")]
  .filter((e) => !(e.innerText?.trim() || e.labels?.length || e.getAttribute("aria-label")))
  .map((e) => e.outerHTML)
"""
#: What has the focus.
FOCUSED = "document.activeElement.id || document.activeElement.className"

#: The least contrast, by WCAG 2, of any text that is shown with the ground behind it.
LEAST_CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  let least = 99;
  for (const element of document.querySelectorAll("main *, header *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility({ visibilityProperty: true })) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}
"""
