"""A headless Chromium for tests of pages."""

import contextlib
import os
import pathlib

import pytest

CHROMIUM = pathlib.Path("/usr/bin/chromium")


@contextlib.contextmanager
def chromium():
    """Yields a browser; skips the test without one, except in CI."""
    if not CHROMIUM.exists():
        why = f"{CHROMIUM} is missing: install Debian's package `chromium`"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # Root cannot use the sandbox; the Projector wants WebGL, which
            # SwiftShader draws without a graphics card.
            args=[
                "--no-sandbox",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--ignore-gpu-blocklist",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()
