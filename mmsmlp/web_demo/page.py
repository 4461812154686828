"""A page on this machine: a photograph, a slider for the size that the network sees, and what it finds.

Nothing leaves the machine: no telemetry, no fonts or scripts from elsewhere, no addresses fetched for a client.
"""

from __future__ import annotations

import html
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

# Read when gradio, and the library that it takes its telemetry from, are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.responses import PlainTextResponse

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ImportError(f"mmsmlp.web_demo.page needs gradio ({error}): pip install -e '.[web]' in its clone") from error

from mmsmlp.web_demo.predictor import SIZES, Prediction, Predictor
from mmsmlp.web_demo.uploads import FORMATS, MAX_BYTES, MAX_PIXELS, RefusedUploadError, read_upload

COMPARED = (96, 128, 192, 256, 384, 512, 768, 1024)  # sizes that can be compared
KEPT = 3600  # seconds that uploads and pictures stay on the disk; all go when the server ends
LOCAL = ("127.0.0.1", "localhost", "::1")
_WAITING = 16  # requests in the queue
_ROOM = 100_000  # bytes of a request round an upload
# What the page and gradio's client ask for. gradio serves more: a proxy, recordings, monitoring, a page of the API.
_PATHS = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static|svelte)/.*"
    r"|/gradio_api/(?:info|upload|upload_progress|queue/join|queue/data|heartbeat/\w+|startup-events|cancel|reset"
    r"|app_id|theme\.css|file=(?!\s*https?:).*)/?",
    re.IGNORECASE | re.DOTALL,
)


class Guard:
    """Turns away what the page does not need: other paths, other hosts' names, and too large bodies before they come.

    gradio's own limit is one of each file, and a request may hold a thousand. The names are checked since a page of
    somebody else could have its name lead here (DNS rebinding).

    Args:
        app (Callable): The ASGI application behind it.
        hosts (Sequence[str], optional): The names that the server may be called by. Defaults to any.
    """

    def __init__(self, app: Callable[..., Awaitable], hosts: Sequence[str] | None = None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer a request, or hand it on."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: dict) -> PlainTextResponse | None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        name = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]")
        if self.hosts is not None and name not in self.hosts:
            return PlainTextResponse(f"This server answers to {', '.join(self.hosts)} only.", 403)
        if not _PATHS.fullmatch(scope["path"]):
            return PlainTextResponse("Not found", 404)
        if scope["method"] == "POST":
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return PlainTextResponse("A length is required.", 411)
            if int(length) > MAX_BYTES + _ROOM:
                return PlainTextResponse(f"The photograph is larger than {MAX_BYTES // 10**6} MB.", 413)
        return None


def build_page(predictor: Predictor, uploads: Path) -> gr.Blocks:
    """Lay out the page.

    Values are taken as the client sends them (``preprocess=False``) and checked here: gradio's own components would
    decode an upload before its pixels are counted, and answer nonsense with a traceback.

    Args:
        predictor (Predictor): The model.
        uploads (Path): The only folder that files are taken from.

    Returns:
        gr.Blocks: With two functions for clients: ``/predict`` and ``/compare``.
    """

    def predict(upload: object, size: object) -> tuple:
        (prediction,) = _predictions(predictor, upload, [size], uploads)
        return prediction.picture, str(prediction)

    def compare(upload: object, sizes: object) -> tuple:
        if not isinstance(sizes, list) or not sizes or any(size not in COMPARED for size in sizes):
            raise _told(f"choose some of the sizes {', '.join(map(str, COMPARED))}")
        predictions = _predictions(predictor, upload, sorted(set(sizes)), uploads)
        return [(prediction.picture, str(prediction)) for prediction in predictions], _table(predictions)

    with gr.Blocks(title="mmsmlp", analytics_enabled=False, delete_cache=(KEPT // 10, KEPT)) as page:
        gr.Markdown(f"# One network at any size\n`{predictor.name}`, its weights resized to the size of its input")
        with gr.Row():
            with gr.Column():
                limits = f"{', '.join(FORMATS)}, up to {MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} million pixels"
                photo = gr.Image(label="Photograph", type="filepath", image_mode=None, sources=["upload"], buttons=[])
                gr.Markdown(limits)
                size = gr.Slider(
                    SIZES[0],
                    SIZES[-1],
                    predictor.native,
                    step=SIZES.step,
                    label="Shorter side in pixels",
                    info=f"The weights are stored for {predictor.native} pixels",
                )
            with gr.Column():
                picture = gr.Image(
                    label="What is found", interactive=False, buttons=["download", "fullscreen"], elem_id="found"
                )
                found = gr.Markdown(elem_id="words")
        sizes = gr.CheckboxGroup(list(COMPARED), value=[128, 256, 512], label="Sizes side by side")
        button = gr.Button("Compare these sizes")
        strip = gr.Gallery(
            label="The same photograph",
            columns=3,
            object_fit="contain",
            interactive=False,
            buttons=[],
            elem_id="strip",
        )
        table = gr.Markdown(elem_id="table")
        # One inference at a time, whichever of the two asks.
        shared = {"preprocess": False, "concurrency_limit": 1, "concurrency_id": "model"}
        triggers = [photo.upload, size.release]
        gr.on(
            triggers, predict, [photo, size], [picture, found], api_name="predict", trigger_mode="always_last", **shared
        )
        button.click(compare, [photo, sizes], [strip, table], api_name="compare", **shared)
        for component in (photo, size, sizes):
            _take_uploads_only(component, uploads)
    return page.queue(max_size=_WAITING, api_open=False)


def build_app(predictor: Predictor, host: str, port: int, uploads: Path) -> FastAPI:
    """Make the whole application: the page behind its :class:`Guard`, uploads in a folder of their own."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # read when the parts of a page are made
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=LOCAL if host in LOCAL else None)
    return gr.mount_gradio_app(
        app,
        build_page(predictor, uploads),
        "/",
        host,
        port,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before the time is spent that loading a model takes.

    Args:
        host (str): The address to answer at; '127.0.0.1' is seen from this machine only.
        port (int): The port; 0 takes a free one.

    Returns:
        socket.socket: Listening.

    Raises:
        OSError: If it cannot be had, with what to do about it.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"port {port} of {host} cannot be had ({reason}): choose others by --port and --host") from None


def serve(predictor: Predictor, listener: socket.socket) -> None:
    """Serve the page until Ctrl-C or SIGTERM; what was uploaded is deleted then.

    Args:
        predictor (Predictor): The model.
        listener (socket.socket): From :func:`listen`.
    """
    # uvicorn raises the signal once more after it has shut down: as an exit, so that the folder is deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, port = listener.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="mmsmlp_web_") as folder:  # closed to other users
        app = build_app(predictor, host, port, Path(folder).resolve())
        print(f"http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
        if host not in LOCAL:
            print("Everybody who reaches this machine can use the page: there is no password.", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            print()


def _predictions(predictor: Predictor, upload: object, sizes: list, uploads: Path) -> list[Prediction]:
    """Check what a client sent, and predict at each size."""
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str):
        raise _told("upload a photograph first")
    _check_uploaded(path, uploads)
    for size in sizes:
        if isinstance(size, bool) or size not in SIZES:
            raise _told(f"the size must be one of {SIZES[0]}, {SIZES[1]}, ... {SIZES[-1]} pixels")
    try:
        photograph: Image.Image = read_upload(Path(path))
    except RefusedUploadError as error:
        raise _told(str(error)) from None
    return [predictor.predict(photograph, size) for size in sizes]


def _told(message: str) -> gr.Error:
    """An error for the person at the page, not for the server's log. gradio shows it as HTML."""
    return gr.Error(html.escape(message), title="Not taken", print_exception=False)


def _take_uploads_only(component: gr.components.Component, uploads: Path) -> None:
    """Have a component refuse files that a client names, but did not upload.

    Gradio would fetch an address. And it looks where a file lies only in pages that it serves itself: in one that is
    mounted into an application, any file that the server can read would be copied among the uploads, and served.
    """
    take = component.async_move_resource_to_block_cache

    async def take_upload(path: str | Path | None) -> str | None:
        if path is not None:
            _check_uploaded(path, uploads)
        return await take(path)

    component.async_move_resource_to_block_cache = take_upload


def _check_uploaded(path: str | Path, uploads: Path) -> None:
    if "\0" in str(path) or not Path(path).resolve().is_relative_to(uploads):
        raise _told("only uploaded files are taken: upload the photograph")


def _table(predictions: list[Prediction]) -> str:
    rows = ["| shorter side | the network sees | found | score | seconds |", "|---:|---:|:---|---:|---:|"]
    for one in predictions:
        score = "" if one.score is None else f"{one.score:.2f}"
        rows.append(f"| {one.size} | {one.seen[0]} x {one.seen[1]} | {one.found} | {score} | {one.seconds:.2f} |")
    return "\n".join(rows)
