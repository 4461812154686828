"""What a person meets, in headless Chromium: the web demo's page, and the HTML report. `make test-browser` runs it.

Screenshots go to work_dirs/browser. Both use the demo's checkpoint where `make demo` has made one (BROWSER_CHECKPOINT),
else random weights.
"""

import io
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
SHOTS = ROOT / "work_dirs/browser"
SECONDS = 120_000  # milliseconds: a CPU may be busy

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from made import make_checkpoint

    trained = Path(os.environ.get("BROWSER_CHECKPOINT", ROOT / "work_dirs/demo"))
    if (trained / "last_checkpoint").is_file():
        return trained
    return make_checkpoint(CONFIG, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def url(checkpoint, env):
    """The address of the running tool."""
    command = [sys.executable, ROOT / "tools/web_demo.py", CONFIG, checkpoint, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(list(map(str, command)), env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield next(line for line in process.stdout if line.startswith("http://")).split()[0]
        process.terminate()


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """The lower half of the coins photograph, which the demo's detector was not trained on."""
    from mmsmlp.coins import split

    path = tmp_path_factory.mktemp("photo") / "coins.png"
    Image.fromarray(split()["val"].image).save(path)
    return path


@pytest.fixture(scope="module")
def browser():
    from browser import NONE, launch
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launch(playwright)
        if chromium is None:
            pytest.skip(NONE)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page, which must not show an error, nor ask another machine for anything."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(SECONDS)
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    page.close()
    assert errors == []
    others = {urlsplit(url).netloc for url in requests if urlsplit(url).scheme in ("http", "https", "ws")}
    assert {host.partition(":")[0] for host in others} <= {"127.0.0.1"}


def shot(page, name: str) -> Image.Image:
    """Writes and gives the whole page, in 256 colours: a third of the bytes."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    SHOTS.mkdir(parents=True, exist_ok=True)
    picture.quantize(256).save(SHOTS / f"{name}.png", optimize=True)
    return picture


def upload(page, url: str, photo: Path) -> None:
    page.goto(url)
    page.locator("input[type=file]").first.set_input_files(photo)


def found(page, size: str) -> str:
    """The address of the picture for a size, once it is there with its words."""
    page.wait_for_function("size => document.querySelector('#words').innerText.startsWith(size + ' (')", arg=size)
    page.locator("#found img").first.wait_for()
    return page.locator("#found img").first.get_attribute("src")


def test_a_photograph_is_uploaded_and_a_moved_slider_changes_what_is_found(page, url, photo):
    upload(page, url, photo)
    before = found(page, "160")
    track = page.locator("input[type=range]").first.bounding_box()
    page.mouse.click(track["x"] + 0.45 * track["width"], track["y"] + track["height"] / 2)
    size = page.locator("input[type=number]").first.input_value()
    assert int(size) > 300
    assert found(page, size) != before
    page.get_by_role("button", name="Compare these sizes").click()
    page.locator("#strip img").nth(2).wait_for()
    page.locator("#table table").wait_for()
    page.wait_for_timeout(1500)  # pictures fade in
    assert len(shot(page, "web_demo").getcolors(2**24)) > 1000, "an empty page"


def test_what_is_no_photograph_is_told_to_the_person(page, url, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    upload(page, url, tmp_path / "text.png")
    page.get_by_text("this is no image that can be read here").first.wait_for()
    page.wait_for_timeout(500)  # it fades in
    shot(page, "web_demo-refused")


def test_the_html_report_opens_with_all_of_its_pictures(page, checkpoint, env, tmp_path):
    command = [sys.executable, ROOT / "tools/visualize.py", CONFIG, checkpoint, "--out", tmp_path]
    subprocess.run(list(map(str, command)), cwd=ROOT, env=env, check=True)
    page.goto((tmp_path / "report.html").as_uri())
    widths = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
    assert widths
    assert min(widths) > 0
    assert page.title()
    shot(page, "report")
