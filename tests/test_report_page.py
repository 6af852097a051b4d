"""report.html in a real browser: it draws, sorts, filters, asks for nothing and runs nothing."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import break_off, edit
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from bert_infer import report
from bert_infer.report import summary

HOSTILE = "<img src=x onerror=window.ran=true><script>window.ran = true</script> \"'`${7*7} 😀"


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; without one these tests fail, for a page nobody opened is not tested."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.fail("No browser: apt-get install chromium chromium-driver.")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as started:
        yield started


@pytest.fixture(scope="module")
def page(made_sweep, tmp_path_factory):
    """The report of a sweep in which something went wrong, in words that a page might run."""
    sweep = tmp_path_factory.mktemp("page") / "a <b>sweep</b> & more"
    shutil.copytree(made_sweep, sweep)
    break_off(sweep / "5", "failed", HOSTILE)
    break_off(sweep / "6", "interrupted")
    edit(sweep / "4", status="drift_exceeded", error={"type": "D", "message": "m", "remedy": "r"})
    warning = {"code": "odd", "message": HOSTILE, "remedy": HOSTILE}
    edit(sweep / "1", choice__model=HOSTILE, warnings=[warning])
    environment = json.loads((sweep / "2" / "environment.json").read_text())
    environment["software"]["torch"] = "2.14.0"
    (sweep / "2" / "environment.json").write_text(json.dumps(environment))
    report.write(summary.of(sweep, None))
    return sweep / "report.html"


def show(browser, page, width=1200, scheme="light"):
    """Open the page, and wait until it is drawn."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    places = len(browser.find_elements(By.CSS_SELECTOR, "[data-plot]"))
    WebDriverWait(browser, 30).until(lambda b: len(drawn(b)) == places > 0)


def drawn(browser):
    return browser.find_elements(By.CSS_SELECTOR, "[data-plot] svg")


def marks(browser, name):
    found = "[role='graphics-symbol'], .mark-rect path, .mark-symbol path, .mark-line path"
    return browser.execute_script(
        "return document.querySelectorAll(arguments[0]).length",
        ", ".join(f"#plot-{name} {selector.strip()}" for selector in found.split(",")),
    )


def column(browser, number):
    rows = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr:not([hidden])")
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[number].text for row in rows]


def test_it_opens_without_errors_and_asks_for_nothing(browser, page):
    show(browser, page)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_every_plot_has_marks(browser, page):
    show(browser, page)
    places = browser.find_elements(By.CSS_SELECTOR, "[data-plot]")
    names = {place.get_attribute("data-plot") for place in places}
    assert names == {
        "latency",
        "drift",
        "option-1",
        "option-2",
        "option-3",
        "option-4",
        "lengths",
        "padding",
        "time",
    }
    for name in names:
        assert marks(browser, name) > 0, name
    assert browser.find_elements(By.CSS_SELECTOR, "#plot-latency .mark-line path")  # the front


def test_the_table_sorts_and_filters(browser, page):
    show(browser, page)
    assert len(column(browser, 0)) == 8
    headings = browser.find_elements(By.CSS_SELECTOR, "#table thead th")
    names = [heading.text for heading in headings]
    p50 = names.index("p50, ms")

    def click(number):
        headings[number].find_element(By.TAG_NAME, "button").click()
        return headings[number].get_attribute("aria-sort")

    def numbers(number):
        return [float(text.split()[0].replace(",", "")) for text in column(browser, number)[:6]]

    assert click(p50) == "descending"
    assert numbers(p50) == sorted(numbers(p50), reverse=True)
    assert click(p50) == "ascending"
    assert numbers(p50) == sorted(numbers(p50))
    assert set(column(browser, p50)[6:]) == {"–"}  # noqa: RUF001  the unknown stay last
    assert click(0) == "ascending"
    assert column(browser, 0) == list("01234567")

    field = browser.find_element(By.ID, "filter")
    for typed, expected in (
        ("dtype=bf16", "4567"),
        ("dtype=bf16 failed", "5"),
        ("batch=1", "0145"),
        ("batch=", "01234567"),
        ("nothing", ""),
    ):
        field.clear()
        field.send_keys(typed)
        assert column(browser, 0) == list(expected), typed
        assert browser.find_element(By.ID, "shown").text == f"{len(expected)} of 8"


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_it_never_scrolls_sideways(browser, page, width):
    show(browser, page, width)
    seen, content = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert content <= seen <= width


def test_dark_and_light_differ_plots_too(browser, page):
    found = {}
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        found[scheme] = browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            "getComputedStyle(document.body).color,"
            "document.querySelector('#plot-latency .role-axis-label text').getAttribute('fill')]"
        )
    for light, dark in zip(found["light"], found["dark"], strict=True):
        assert light != dark
    # And so they do while the page is open.
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "light"}]},
    )
    browser.get_screenshot_as_png()  # makes a frame, in which pages are told of the change
    label = "#plot-latency .role-axis-label text"
    WebDriverWait(browser, 10).until(
        lambda b: (
            (found_now := b.find_elements(By.CSS_SELECTOR, label))
            and found_now[0].get_attribute("fill") == found["light"][2]
        )
    )


def test_what_a_record_says_is_text_and_runs_nothing(browser, page):
    show(browser, page)
    assert browser.execute_script("return window.ran") is None
    text = browser.find_element(By.TAG_NAME, "body").text
    assert HOSTILE in text
    assert "a <b>sweep</b> & more" in text
    assert any(
        "<script>window.ran = true</script>" in code.text and "😀" in code.text
        for code in browser.find_elements(By.CSS_SELECTOR, ".commands code")
    )
    # A tooltip is the one place where a plot writes HTML.
    points = browser.find_elements(
        By.CSS_SELECTOR, "#plot-option-4 .mark-symbol [aria-label*='<img']"
    )
    webdriver.ActionChains(browser).move_to_element(points[0]).perform()
    WebDriverWait(browser, 10).until(
        lambda b: HOSTILE[:30] in b.find_element(By.ID, "vg-tooltip-element").text
    )
    assert browser.execute_script("return window.ran") is None


def test_failures_warnings_and_differences_are_told_with_their_remedies(browser, page):
    show(browser, page)
    failures = browser.find_element(By.CSS_SELECTOR, "section:has(> #failures)").text
    for says in ("Run 5", "failed", "Run 6", "interrupted", "Mend it."):
        assert says in failures
    environment = browser.find_element(By.CSS_SELECTOR, "section:has(> #environment)").text
    assert "2.14.0" in environment
    assert "software.torch" in environment
    commands = browser.find_elements(By.CSS_SELECTOR, ".commands code")
    assert len(commands) == 8
