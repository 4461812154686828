"""tools/web_demo.py: the real server as a process, asked by gradio's own client and by whoever sends what he likes."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from made import few_objects, make_checkpoint
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
REFUSED = {
    "text.png": "no image that can be read here",
    "cut.jpg": "damaged or was not uploaded to its end",
    "bomb.png": "at most 40 million are taken",
    "strip.png": "more than 4 times the other",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with a photograph, and with uploads that are none."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.coffee()[:200, :300]).save(folder / "coffee.jpg")
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "coffee.jpg").read_bytes()[:4000])
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    Image.new("RGB", (2000, 20)).save(folder / "strip.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The running tool: its process, address, folder for uploads, and the files of its output and its connections."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "tmp").mkdir()
    config = few_objects(folder)
    checkpoint = make_checkpoint(config, folder)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    env.pop("GRADIO_ANALYTICS_ENABLED", None)
    tool = [ROOT / "tools/web_demo.py", config, checkpoint, "--port", "0", "--score", "0", "--device", "cpu"]
    command = [sys.executable, ROOT / "tests/watched.py", folder / "connections", *tool]
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
    line = next((line for line in process.stdout if line.startswith("http://")), None)
    assert line, (folder / "errors").read_text()[-3000:]
    url = line.split()[0]
    for _ in range(100):  # the port is taken before the page is ready
        if _answers(url):
            break
    uploads = next((folder / "tmp").glob("mmsmlp_web_*"))
    yield SimpleNamespace(process=process, url=url, folder=folder, uploads=uploads, port=int(url.rpartition(":")[2]))
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    from gradio_client import Client

    downloads = tmp_path_factory.mktemp("downloads")
    return Client(server.url, download_files=downloads, verbose=False, analytics_enabled=False)


def predict(client, photo: Path, size: object = 64) -> tuple[np.ndarray, str]:
    from gradio_client import handle_file

    path, found = client.predict(handle_file(photo), size, api_name="/predict")
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=float), found


def refusal(client, *values, function: str = "/predict") -> str:
    """The message that a client gets who sends these values."""
    with pytest.raises(Exception) as error:  # noqa: PT011 (the client has several types for it)
        client.predict(*values, api_name=function)
    return str(error.value)


def ask(url: str, values: list, function: int) -> dict:
    """What the server answers to values as they are: gradio's client would upload the files that they name."""
    with httpx.Client(base_url=f"{url}/gradio_api", timeout=60) as session:
        call = {"data": values, "fn_index": function, "session_hash": "session"}
        session.post("/queue/join", json=call).raise_for_status()
        with session.stream("GET", "/queue/data", params={"session_hash": "session"}) as lines:
            answers = (json.loads(line.removeprefix("data: ")) for line in lines.iter_lines() if line)
            return next(answer for answer in answers if answer["msg"] == "process_completed")


def test_an_uploaded_photograph_comes_back_drawn_and_differs_between_sizes(client, photos):
    (small, found_small), (large, found_large) = (predict(client, photos / "coffee.jpg", size) for size in (64, 160))
    with Image.open(photos / "coffee.jpg") as photo:
        plain = np.asarray(photo.resize(small.shape[1::-1]), dtype=float)
    assert small.shape == large.shape == (480, 720, 3)
    assert np.abs(small - plain).max() > 100, "nothing is drawn"
    assert np.abs(small - large).max() > 100, "the size changes nothing"
    assert re.fullmatch(r"64 \(96 x 64\): \d+ objects, score 0\.\d\d", found_small)
    assert found_large.startswith("160 (240 x 160): ")


def test_one_photograph_at_several_sizes_side_by_side(client, photos):
    from gradio_client import handle_file

    strip, table = client.predict(handle_file(photos / "coffee.jpg"), [128, 96, 96], api_name="/compare")
    assert [entry["caption"].partition(":")[0] for entry in strip] == ["96 (144 x 96)", "128 (192 x 128)"]
    pictures = [np.asarray(Image.open(entry["image"]).convert("RGB"), dtype=float) for entry in strip]
    assert np.abs(pictures[0] - pictures[1]).max() > 100
    assert re.search(r"^\| 128 \| 192 x 128 \| \d+ objects \| 0\.\d\d \| \d+\.\d\d \|$", table, re.M)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photograph_is_refused_with_the_reason_and_the_server_goes_on(client, photos, name):
    from gradio_client import handle_file

    assert REFUSED[name] in refusal(client, handle_file(photos / name), 64)
    assert REFUSED[name] in refusal(client, handle_file(photos / name), [96], function="/compare")
    assert predict(client, photos / "coffee.jpg")[0].shape == (480, 720, 3)


@pytest.mark.parametrize("megabytes", [20.05, 30], ids=["a little", "far"])
def test_an_oversized_upload_is_turned_away(server, client, photos, megabytes):
    body = b"\xff\xd8" + bytes(int(megabytes * 1e6))
    answer = httpx.post(f"{server.url}/gradio_api/upload", files={"files": ("photo.jpg", body)}, timeout=60)
    assert answer.status_code == 413
    assert re.search("larger than 20 MB|maximum allowed size", answer.text)
    assert not [path for path in server.uploads.rglob("*") if path.is_file() and path.stat().st_size > 10e6]
    assert predict(client, photos / "coffee.jpg")[0].shape == (480, 720, 3)


def test_gradios_client_says_that_a_file_is_too_large(client, tmp_path):
    from gradio_client import handle_file

    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" + bytes(20_000_000))
    assert "exceeds the maximum file size" in refusal(client, handle_file(tmp_path / "photo.jpg"), 64)


@pytest.mark.parametrize("size", [32, 1056, 100, 1e9, -64, "64", "<b>", None, True, [64], {"a": 1}])
def test_a_size_outside_the_sliders_is_refused_by_the_server(client, photos, size):
    from gradio_client import handle_file

    assert "the size must be one of 64, 96, ... 1024" in refusal(client, handle_file(photos / "coffee.jpg"), size)


@pytest.mark.parametrize("sizes", [[], [96, 100], 96, None, [[96]], ["96"], [96, {}]])
def test_sizes_that_cannot_be_compared_are_refused_by_the_server(client, photos, sizes):
    from gradio_client import handle_file

    message = refusal(client, handle_file(photos / "coffee.jpg"), sizes, function="/compare")
    assert "choose some of the sizes 96, 128" in message


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:1/photo.jpg",
        "https://example.org/photo.jpg",
        str(CONFIG),
        "/etc/passwd",
        "UPLOADS/../errors",
        "x\0y",
    ],
)
def test_neither_addresses_nor_files_of_the_server_are_read_for_a_client(server, path):
    given = {"path": path.replace("UPLOADS", str(server.uploads)), "meta": {"_type": "gradio.FileData"}}
    before = sorted(server.uploads.rglob("*"))
    for values, function in (([given, 64], 0), ([None, given], 0), ([given, [96]], 1), ([{"path": path}, 64], 0)):
        answer = ask(server.url, values, function)
        assert not answer["success"]
        assert answer["output"]["error"] == "only uploaded files are taken: upload the photograph"
    assert sorted(server.uploads.rglob("*")) == before, "a file was copied among the uploads"


def test_without_a_photograph_one_is_asked_for(client):
    assert "upload a photograph first" in refusal(client, None, 64)


def test_two_at_once_are_served_one_after_the_other(client, photos):
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda size: predict(client, photos / "coffee.jpg", size), (64, 96)))
    assert [found.partition(" ")[0] for _, found in answers] == ["64", "96"]


@pytest.mark.parametrize(
    "path",
    [
        "docs",
        "openapi.json",
        "monitoring",
        "gradio_api/openapi.json",
        "gradio_api/runs",
        "gradio_api/proxy=http://x.hf.space",
    ]
    + ["gradio_api/file=http://127.0.0.1:1/x", "gradio_api/file=HTTPS://127.0.0.1/x", "login_check", "svelte"],
)
def test_what_the_page_does_not_need_is_not_served(server, path):
    assert httpx.get(f"{server.url}/{path}").status_code == 404


@pytest.mark.parametrize("path", ["gradio_api/process_recording", "gradio_api/run/predict", "gradio_api/call/predict"])
def test_no_way_leads_round_the_queue(server, path):
    assert httpx.post(f"{server.url}/{path}", json={"data": [None, 64]}).status_code == 404


def test_no_file_outside_its_folder_is_served(server):
    assert httpx.get(f"{server.url}/gradio_api/file={CONFIG}").status_code in (403, 404)


def test_a_body_of_unknown_length_is_refused(server):
    assert httpx.post(f"{server.url}/gradio_api/upload", content=iter([b"x"])).status_code == 411


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example"])
def test_another_name_that_leads_here_is_refused(server, host):
    assert httpx.get(server.url, headers={"Host": host}).status_code == 403


def test_the_server_is_seen_from_this_machine_only(server):
    socket.create_connection(("127.0.0.1", server.port)).close()
    with pytest.raises(ConnectionRefusedError):  # another address of the same machine, which 0.0.0.0 would take in
        socket.create_connection(("127.0.0.2", server.port)).close()


def test_the_page_asks_no_other_machine_for_anything(server):
    page = httpx.get(server.url).text + json.dumps(httpx.get(f"{server.url}/config").json())
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//(?!127\.0\.0\.1)[^"']+""", page)


def test_a_port_that_is_taken_is_named():
    from mmsmlp.web_demo.page import listen

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} of 127.0.0.1 cannot be had .*choose others by --port"):
            listen("127.0.0.1", port)
    with pytest.raises(OSError, match="port 99999 of 127.0.0.1 cannot be had"):
        listen("127.0.0.1", 99999)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none.py", "none.pth"], "web_demo: the config none.py does not exist"),
        ([str(CONFIG), "none.pth"], "web_demo: the checkpoint none.pth does not exist"),
        ([str(CONFIG), "none.pth", "--score", "2"], "web_demo: the score must be from 0 to 1, got 2.0"),
    ],
)
def test_a_mistake_ends_the_tool_with_one_line(monkeypatch, arguments, line):
    monkeypatch.setattr(sys, "argv", ["web_demo.py", *arguments, "--port", "0"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools/web_demo.py"), run_name="__main__")
    assert end.value.code == line


def test_without_a_browser_test_browser_says_so_in_one_line_and_is_content(tmp_path):
    env = {**os.environ, "PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}
    command = [sys.executable, ROOT / "tests/browser.py"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith("no browser found: ")
    assert "`playwright install chromium`" in line


def test_no_connection_left_the_machine(server, client, photos):
    predict(client, photos / "coffee.jpg")
    connections = server.folder / "connections"
    lines = connections.read_text().splitlines() if connections.exists() else []
    others = {tuple(json.loads(line)) for line in lines}
    assert not {(event, to) for event, to in others if to not in ("127.0.0.1", "localhost", "::1", "a file", "None")}


def test_a_terminated_server_leaves_no_uploads_and_has_shown_no_traceback(server, client, photos):
    predict(client, photos / "coffee.jpg")
    assert [path for path in server.uploads.rglob("*") if path.is_file()]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert not server.uploads.exists()
    assert "Traceback" not in (server.folder / "errors").read_text()
