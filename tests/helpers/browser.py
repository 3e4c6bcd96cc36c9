"""A browser without a window: Debian's chromium, driven by playwright. Without one of them the test is skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SHOTS = "DESK_SHOTS"  # a folder for pictures of the pages, to be looked at
WAIT = 60_000.0  # milliseconds, on a busy machine
# without a sandbox, as root of a container; without requests that chromium makes of itself
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield playwright's browser. Skips the test if playwright or chromium is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


def new_page(browser: Any, width: int = 1500, height: int = 1000, **options: Any) -> Any:
    """Return a page whose waits end after a minute. options: of playwright's `new_page`, such as color_scheme."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.set_default_timeout(WAIT)
    return page


def shoot(page: Any, name: str, whole: bool = False) -> None:
    """Save a picture of a page in the folder of the variable DESK_SHOTS, if it is set. whole: with what is below."""
    if folder := os.environ.get(SHOTS):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=whole)
