"""`make test-browser`: runs tests/test_browser.py in headless Chromium, or says in one line that there is none."""

import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable", "chrome")
NONE = "no browser found: neither playwright's own nor one on the PATH works; `playwright install chromium` gets one"


def launch(playwright):
    """Starts the first Chromium that works: playwright's own, else one on the PATH. None without any."""
    from playwright.sync_api import Error

    for executable in (None, *filter(None, map(shutil.which, NAMES))):
        try:
            return playwright.chromium.launch(executable_path=executable, args=["--no-zygote", "--disable-gpu"])
        except Error:  # not there, or not for this system
            continue
    return None


def main() -> int:
    """Look for a browser, and run the tests in it; their exit status."""
    import pytest
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            print(NONE)
            return 0
        browser.close()
    return pytest.main(["-m", "browser", str(Path(__file__).with_name("test_browser.py")), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
