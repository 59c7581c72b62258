"""The report in a real browser: closed to the outside, silent, quick, and switched by mouse, finger and keys."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.xdist_train.evidence.made_up_run import write_cam, write_run
from xdist_train.evidence.report.writing import write_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_HOSTILE = "<img src=x onerror=alert(1)>"
_CLASSES = ("CNV", f"DME{_HOSTILE}", "NORMAL")
_OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with its console and network logged."""
    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if None in paths:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(paths[0])
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(paths[1])))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose names are hostile, with a gallery."""
    folder = tmp_path_factory.mktemp("report") / "run"
    run = write_run(folder, classes=_CLASSES, sources=[f"{_HOSTILE}.jpeg"] * 300, notes=[_HOSTILE])
    write_cam(run, range(10_000, 10_036), classes=_CLASSES)
    write_report(run.uri, real_names=True)
    return folder / "report.html"


def _open(browser: Any, page: Path, width: int = 1280) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())


def _requested(browser: Any) -> set[str]:
    """Addresses that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    return {address for address in sent if not address.startswith("data:")}


@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_asks_for_nothing_and_fits_the_screen(browser: Any, page: Path, width: int) -> None:
    """No request, no word on the console, no alert from a hostile name, no sideways scrolling."""
    _open(browser, page, width)
    assert [] == browser.get_log("browser")
    assert {page.as_uri()} == _requested(browser)
    assert 0 == browser.execute_script("return document.querySelectorAll('img[src=\"x\"]').length")
    assert f"{_HOSTILE}.jpeg" in browser.execute_script("return document.body.innerText")
    wide, screen = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= screen == width
    assert browser.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")


def test_maps_come_and_go_by_click_and_by_key(browser: Any, page: Path) -> None:
    """A button as any other."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _open(browser, page)
    shot = browser.find_element(By.CSS_SELECTOR, ".shots button")
    shown = lambda: (shot.get_attribute("aria-pressed"), _opacity(browser, shot))  # noqa: E731
    assert ("false", 0.0) == shown()
    browser.execute_script("arguments[0].scrollIntoView()", shot)
    shot.send_keys(Keys.ENTER)
    assert ("true", 1.0) == shown()
    shot.send_keys(Keys.SPACE)
    assert ("false", 0.0) == shown()
    browser.execute_script("arguments[0].click()", shot)
    assert ("true", 1.0) == shown()


def _opacity(browser: Any, shot: Any) -> float:
    time.sleep(0.3)  # the style's own transition
    return float(browser.execute_script("return getComputedStyle(arguments[0].querySelector('.over')).opacity", shot))


def test_the_slider_moves_the_thresholds(browser: Any, page: Path) -> None:
    """Less sensitivity wished for is a higher threshold and more specificity."""
    _open(browser, page)
    move = (
        "const box = document.querySelector('[data-operating]'), slider = box.querySelector('input');"
        "slider.value = arguments[0]; slider.dispatchEvent(new Event('input'));"
        "return [...box.querySelector('tbody').rows[0].cells].slice(1).map(cell => Number(cell.textContent))"
    )
    (strict, _, less, _), (loose, sensitivity, more, _) = (browser.execute_script(move, wish) for wish in (99, 60))
    assert loose > strict
    assert more > less
    assert 0.4 < sensitivity < 0.9


def test_a_report_of_20000_predictions_is_small_and_quick(browser: Any, tmp_path: Path) -> None:
    """Under 5 MB, and there in under 2 s."""
    run = write_run(tmp_path / "run", num_images=20_000)
    write_cam(run, range(10_000, 10_072))
    write_report(run.uri)
    page = tmp_path / "run" / "report.html"
    assert page.stat().st_size < 5 * 2**20
    _open(browser, page)
    timing = "const [entry] = performance.getEntriesByType('navigation'); return entry.loadEventEnd"
    assert 0 < browser.execute_script(timing) < 2000
    assert [] == browser.get_log("browser")
