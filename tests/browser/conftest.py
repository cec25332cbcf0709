"""A browser for tests of pages: Chromium of the system, driven by playwright, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Generator

import pytest

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    *("--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a camera with a test picture
)


@pytest.fixture(scope="session")
def browser() -> Generator:
    """A running browser; tests open pages of their own in it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("needs Chromium and playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium and playwright")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Generator:
    """An empty page of 1280 x 800; an error of a script, or on its console, fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    yield page
    page.close()
    assert not complaints, complaints
