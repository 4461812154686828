"""The official files: downloaded from a real server, read without running anything, loaded by every toolbox."""

import argparse
import hashlib
import io
import json
import os
import pickle
import re
import runpy
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import DATA, MINI, weights_like_official
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from mmsmlp import SMLPNet
from mmsmlp.resize import resize_axis_bias, resize_axis_weight
from mmsmlp.weights.spach import convert_spach
from mmsmlp.weights.spach_files import load_from_spach, read_official

ROOT = Path(__file__).parents[1]
OFFICIAL = json.loads((DATA / "official_keys.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of official structure for each size, and what it holds."""
    folder, weights = tmp_path_factory.mktemp("official"), {}
    for arch in OFFICIAL:
        weights[arch] = weights_like_official(arch)
        torch.save({"model": weights[arch]}, folder / f"{arch}.pth")
    yield {arch: (folder / f"{arch}.pth", weights[arch]) for arch in OFFICIAL}
    for arch in OFFICIAL:
        (folder / f"{arch}.pth").unlink()


@pytest.fixture
def mini_file(golden_group, tmp_path):
    """The golden miniature model as an official file."""
    torch.save({"model": golden_group("state_dict/")}, tmp_path / "mini.pth")
    return tmp_path / "mini.pth"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real HTTP server as the release's mirror, and an empty cache. It sends `bodies[path]`, notes `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            body = self.server.bodies.get(self.path)
            if body is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + self.server.announce_more))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies, server.requests, server.announce_more = {}, [], 0
    server.cache = tmp_path / "torch home" / "hub" / "checkpoints"
    monkeypatch.setenv("MMSMLP_SPACH_URL", f"http://127.0.0.1:{server.server_port}/v1.0/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cached(server) -> list[str]:
    return sorted(os.listdir(server.cache)) if server.cache.exists() else []


def assert_one_line(error) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", OFFICIAL)
def test_a_file_of_each_size_loads_by_path(files, arch):
    path, weights = files[arch]
    checkpoint = load_from_spach(f"spach://{path}")
    assert checkpoint["meta"] == {
        "source": f"spach://{path}",
        "arch": arch,
        "anchor": (224, 224),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    wanted = convert_spach(weights)
    assert checkpoint["state_dict"].keys() == wanted.keys()
    assert all(torch.equal(checkpoint["state_dict"][key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(("name", "arch"), [("smlp_s", "small"), ("smlp_b", "base")])
def test_a_name_is_downloaded_once(files, server, name, arch):
    path, weights = files[arch]
    server.bodies[f"/v1.0/{name}.pth"] = path.read_bytes()
    for _ in range(2):
        checkpoint = load_from_spach(f"spach://{name}")
    assert server.requests == [f"/v1.0/{name}.pth"]
    assert cached(server) == [f"{name}.pth"]
    assert (server.cache / f"{name}.pth").read_bytes() == path.read_bytes()
    assert checkpoint["meta"]["arch"] == arch
    assert checkpoint["meta"]["source"] == f"spach://{name}"
    assert torch.equal(checkpoint["state_dict"]["head.fc.weight"], weights["mlp_head.0.weight"])


@pytest.mark.slow
def test_a_file_of_full_size_is_downloaded_and_loaded(server):
    """263 MB, as large as the released one."""
    weights = {key: value.clone() for key, value in weights_like_official("base").items()}
    path = server.cache.parents[2] / "base.pth"
    torch.save({"model": weights}, path)
    assert path.stat().st_size > 260e6
    server.bodies["/v1.0/smlp_b.pth"] = path.read_bytes()
    net = SMLPNet("base", init_cfg={"type": "Pretrained", "checkpoint": "spach://smlp_b"})
    net.init_weights()
    wanted = convert_spach(weights)
    assert all(torch.equal(value, wanted[f"backbone.{key}"]) for key, value in net.state_dict().items())


def test_a_config_alone_makes_the_scheme_known():
    code = (
        "from mmengine.registry import MODELS\n"
        "MODELS.get('mmsmlp.SMLPNet')\n"
        "from mmengine.runner import CheckpointLoader\n"
        "CheckpointLoader.load_checkpoint('spach:///no/such.pth')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == (
        "FileNotFoundError: /no/such.pth: no such file (from spach:///no/such.pth)"
    )


@pytest.mark.parametrize("path", ["mini.pth", "./mini.pth", "~/mini.pth"])
def test_a_path_may_be_relative(mini_file, monkeypatch, path):
    monkeypatch.chdir(mini_file.parent)
    monkeypatch.setenv("HOME", str(mini_file.parent))
    assert load_from_spach(f"spach://{path}")["meta"]["source"] == f"spach://{mini_file}"


@pytest.mark.parametrize("name", ["smlp_t", "smlp", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown .*'spach://{name}': spach://smlp_b, spach://smlp_s, or spach:///pa"):
        load_from_spach(f"spach://{name}")


def model_with_backbone(kind: str, img_size: int | tuple[int, int], init_cfg: dict):
    """A backbone, or a real classifier, detector or segmentor around it; returns the model and its backbone."""
    backbone = {"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": img_size, "init_cfg": init_cfg}
    init_default_scope({"classifier": "mmpretrain", "detector": "mmdet", "segmentor": "mmseg"}.get(kind, "mmengine"))
    if kind == "backbone":
        model = MODELS.build(backbone)
        return model, model
    if kind == "classifier":
        head = {"type": "LinearClsHead", "num_classes": 10, "in_channels": 64}
        cfg = {"type": "ImageClassifier", "neck": {"type": "GlobalAveragePooling"}, "head": head}
    elif kind == "detector":
        cfg = Config.fromfile(ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py").model
        cfg["neck"]["in_channels"] = [8, 16, 32, 64]
    else:
        head = {"type": "FCNHead", "in_channels": 64, "channels": 8, "num_classes": 4, "norm_cfg": {"type": "BN"}}
        cfg = {"type": "EncoderDecoder", "decode_head": head}
    model = MODELS.build({**cfg, "backbone": backbone})
    return model, model.backbone


def assert_holds(backbone: SMLPNet, weights: dict) -> None:
    """Assert that a backbone holds official weights, on its own anchor grid."""
    for key, value in backbone.state_dict().items():
        wanted = weights[f"backbone.{key}"]
        if "mix_" in key:
            wanted = (resize_axis_weight if key.endswith("weight") else resize_axis_bias)(wanted, len(value))
        assert torch.equal(value, wanted), key


@pytest.mark.parametrize("img_size", [64, (80, 96)])
@pytest.mark.parametrize("prefix", [{}, {"prefix": "backbone."}], ids=["no prefix", "prefix"])
@pytest.mark.parametrize("kind", ["backbone", "classifier", "detector", "segmentor"])
def test_every_models_backbone_loads_an_official_file(mini_file, golden_group, kind, prefix, img_size):
    init_cfg = {"type": "Pretrained", "checkpoint": f"spach://{mini_file}", **prefix}
    model, backbone = model_with_backbone(kind, img_size, init_cfg)
    model.init_weights()
    assert_holds(backbone, convert_spach(golden_group("state_dict/")))


@pytest.mark.parametrize(("arch", "name"), [("small", "smlp_s"), ("base", "smlp_b")])
def test_a_named_arch_loads_by_name(files, server, arch, name):
    path, weights = files[arch]
    server.bodies[f"/v1.0/{name}.pth"] = path.read_bytes()
    net = SMLPNet(arch, img_size=256, init_cfg={"type": "Pretrained", "checkpoint": f"spach://{name}"})
    net.init_weights()
    assert_holds(net, convert_spach(weights))


def test_the_wrong_arch_is_named_in_one_line(files):
    net = SMLPNet("tiny", init_cfg={"type": "Pretrained", "checkpoint": f"spach://{files['base'][0]}"})
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"base \(embed_dims 112, .*this backbone: tiny \(embed_dims 80") as error:
        net.init_weights()
    assert_one_line(error)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("source", ["official file", "converted file"])
def test_the_classifier_reproduces_the_golden_logits(golden, mini_file, convert_tool, tmp_path, relative_error, source):
    checkpoint = f"spach://{mini_file}"
    if source == "converted file":
        convert_tool(mini_file, tmp_path / "converted.pth")
        checkpoint = str(tmp_path / "converted.pth")
    model, _ = model_with_backbone("classifier", 64, None)
    load_checkpoint(model, checkpoint, strict=True)
    with torch.no_grad():
        logits = model.double().eval()(golden["input"].double(), mode="tensor")
    assert relative_error(logits, golden["logits"]) < 1e-6


def test_a_strict_load_into_a_bare_backbone_still_names_the_head(mini_file):
    with pytest.raises(RuntimeError, match=r"unexpected key.*head\.fc\.weight, head\.fc\.bias"):
        load_checkpoint(SMLPNet(MINI, img_size=64), f"spach://{mini_file}", strict=True)


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["among the weights", "beside them", "instead of them", "in a plain pickle"])
def test_nothing_in_a_file_is_executed(golden_group, tmp_path, place):
    touch = Touch(tmp_path / "executed")
    weights = golden_group("state_dict/")
    content = {
        "among the weights": {"model": {**weights, "batch_norm.weight": touch}},
        "beside them": {"model": weights, "args": touch},
    }.get(place, touch)
    if place == "in a plain pickle":
        (tmp_path / "x.pth").write_bytes(pickle.dumps(touch, protocol=2))
    else:
        torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: refused, it asks to run \w+\.system: .*nothing was run") as error:
        load_from_spach(f"spach://{tmp_path}/x.pth")
    assert_one_line(error)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(touch))  # this does execute it: the test can fail
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("fraction", [0, 1e-5, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_with_its_length(mini_file, fraction):
    content = mini_file.read_bytes()
    mini_file.write_bytes(content[: int(len(content) * fraction)])
    message = rf"mini\.pth: damaged or cut off.*\({int(len(content) * fraction):,} bytes; .*Take the file as it was rel"
    with pytest.raises(ValueError, match=message) as error:
        load_from_spach(f"spach://{mini_file}")
    assert_one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "no tensors under the key 'model', but a list"),
        ({"weights": 1, "epoch": 2}, "but epoch, weights"),
        ({"model": {"a": "b"}}, "no tensors under the key 'model', but model"),
        ({"state_dict": {}}, "a checkpoint of mmengine: load it without spach://"),
        ({"model": {}}, "no key 'to_patch_embedding.0.0.weight' among no keys"),
    ],
    ids=str,
)
def test_another_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth: .*{message}") as error:
        load_from_spach(f"spach://{tmp_path}/x.pth")
    assert_one_line(error)


def test_a_checkpoint_of_the_official_training_loads_where_pytorch_can(golden_group, tmp_path):
    """It holds the command line and the optimiser, too."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    content = {"optimizer": optimizer.state_dict(), "epoch": 299, "args": argparse.Namespace(lr=1e-3, model="smlpnet")}
    torch.save({"model": golden_group("state_dict/"), **content}, tmp_path / "x.pth")
    if hasattr(torch.serialization, "safe_globals"):
        assert read_official(tmp_path / "x.pth")[1].img_size == (64, 64)
    else:
        with pytest.raises(ValueError, match=r"x\.pth: holds a command line .* only PyTorch >= 2\.5 reads safely"):
            read_official(tmp_path / "x.pth")


def body(weights: dict, **content) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": weights, **content}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "not found",
            r"smlp_s\.pth: HTTP Error 404.*use checkpoint='spach:///path/to/smlp_s\.pth', or set MMSMLP_SPAC",
        ),
        ("cut off", r"[\d,]+ of [\d,]+ bytes arrived.*Download it by hand"),
        (
            "a key missing",
            r"http.*smlp_s\.pth: not the keys of an official sMLPNet small .*: 1 missing \(batch_norm.bias",
        ),
        ("a key too many", r"http.*smlp_s\.pth: not the keys of an official .*: 1 unexpected \(batch_norm\.more"),
        ("another arch", r"http.*smlp_s\.pth: holds an sMLPNet base \(.*, not the small one"),
        ("a page of text", r"http.*smlp_s\.pth: damaged or cut off"),
        ("wants to run something", r"http.*smlp_s\.pth: refused, it asks to run \w+\.system"),
    ],
)
def test_a_faulty_download_leaves_nothing_behind(files, server, tmp_path, fault, message):
    weights = dict(files["small"][1])
    if fault == "a key missing":
        del weights["batch_norm.bias"]
    elif fault == "a key too many":
        weights["batch_norm.more"] = torch.zeros(1)
    content = files["base"][0].read_bytes() if fault == "another arch" else body(weights)
    content = {"a page of text": b"<html>Sign in</html>"}.get(fault, content)
    if fault == "wants to run something":
        content = body(weights, args=Touch(tmp_path / "executed"))
    if fault == "cut off":
        server.announce_more = 1000
    if fault != "not found":
        server.bodies["/v1.0/smlp_s.pth"] = content
    with pytest.raises((OSError, ValueError), match=message) as error:
        load_from_spach("spach://smlp_s")
    assert_one_line(error)
    assert cached(server) == []
    assert not (tmp_path / "executed").exists()


def test_without_a_network_the_remedy_is_said(server, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MMSMLP_SPACH_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(OSError, match="cannot download .*Connection refused.*spach:///path/to/smlp_b.pth") as error:
            load_from_spach("spach://smlp_b")
    assert_one_line(error)
    assert cached(server) == []


def test_a_folder_on_a_disk_can_be_the_mirror(files, server, tmp_path, monkeypatch):
    (tmp_path / "smlp_s.pth").write_bytes(files["small"][0].read_bytes())
    monkeypatch.setenv("MMSMLP_SPACH_URL", f"file://{tmp_path}")
    assert load_from_spach("spach://smlp_s")["meta"]["arch"] == "small"
    assert cached(server) == ["smlp_s.pth"]


def test_a_mirror_that_is_no_address_is_named(server, monkeypatch):
    monkeypatch.setenv("MMSMLP_SPACH_URL", "mirror.example.org")
    with pytest.raises(ValueError, match="MMSMLP_SPACH_URL='mirror.example.org' is no address: it must start"):
        load_from_spach("spach://smlp_b")


@pytest.mark.parametrize("damage", ["cut off", "another arch"])
def test_a_damaged_cached_file_is_named_with_the_remedy(files, server, damage):
    server.cache.mkdir(parents=True)
    content = files["base"][0].read_bytes()
    (server.cache / "smlp_s.pth").write_bytes(content if damage == "another arch" else content[:100_000])
    with pytest.raises(ValueError, match=r"smlp_s\.pth: .*Delete .*smlp_s\.pth, and it is downloaded again") as error:
        load_from_spach("spach://smlp_s")
    assert_one_line(error)
    assert server.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("found", [True, False], ids=["there", "not there"])
def test_of_several_processes_one_downloads_and_all_end_alike(files, server, found):
    if found:
        server.bodies["/v1.0/smlp_s.pth"] = files["small"][0].read_bytes()
    code = (
        "import torch.distributed as dist\n"
        "from mmsmlp.weights.spach_files import load_from_spach\n"
        "dist.init_process_group('gloo')\n"
        "print(load_from_spach('spach://smlp_s')['meta']['arch'])"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert server.requests == ["/v1.0/smlp_s.pth"]
    if found:
        assert [out.splitlines()[-1] for out, _ in outputs] == ["small", "small"]
    else:
        assert all(re.search("OSError: cannot download .* HTTP Error 404", err) for _, err in outputs)


@pytest.fixture
def convert_tool(monkeypatch):
    """Returns a function that runs the tool's file with arguments, in this process; an error is a SystemExit."""

    def run(*args) -> None:
        monkeypatch.setattr(sys, "argv", ["convert_spach.py", *map(str, args)])
        runpy.run_path(str(ROOT / "tools/convert_spach.py"), run_name="__main__")

    return run


def test_the_tool_converts_and_exports_back(mini_file, golden_group, tmp_path, convert_tool, capsys):
    converted, exported = tmp_path / "converted.pth", tmp_path / "exported.pth"
    convert_tool(mini_file, converted)
    checkpoint = torch.load(converted, weights_only=True)
    digest = hashlib.sha256(mini_file.read_bytes()).hexdigest()
    assert checkpoint["meta"] == {
        "source": f"spach://{mini_file}",
        "arch": {"embed_dims": 8, "depths": (1, 1, 2, 1), "mlp_ratio": 3, "patch_size": 4},
        "anchor": (64, 64),
        "sha256": digest,
    }
    assert digest in capsys.readouterr().out
    convert_tool(converted, exported, "--to-official")
    weights = torch.load(exported, weights_only=True)["model"]
    official = golden_group("state_dict/")
    assert list(weights) == list(official)
    assert all(torch.equal(weights[key], official[key]) for key in official)


@pytest.mark.parametrize("fault", ["cut off", "a key missing", "exists", "not there", "a checkpoint of ours"])
def test_the_tool_writes_nothing_on_an_error(mini_file, golden_group, tmp_path, convert_tool, fault):
    out = tmp_path / "out.pth"
    if fault == "cut off":
        mini_file.write_bytes(mini_file.read_bytes()[:10_000])
    elif fault == "a key missing":
        weights = golden_group("state_dict/")
        del weights["batch_norm.bias"]
        torch.save({"model": weights}, mini_file)
    elif fault == "exists":
        out.write_text("precious")
    elif fault == "not there":
        mini_file.unlink()
    else:
        torch.save({"state_dict": SMLPNet(MINI).state_dict()}, mini_file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="^convert_spach: .+$") as error:
        convert_tool(mini_file, out, *(["--to-official"] if fault == "a checkpoint of ours" else []))
    assert_one_line(error)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def readme_block(readme: str, language: str, word: str) -> str:
    blocks = re.findall(rf"```{language}\n(.+?)```", (ROOT / readme).read_text("utf-8"), re.S)
    return next(block for block in blocks if word in block)


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_config_loads_official_weights(files, server, readme):
    path, weights = files["base"]
    server.bodies["/v1.0/smlp_b.pth"] = path.read_bytes()
    names = {}
    exec(readme_block(readme, "python", "spach://"), names)
    init_default_scope("mmengine")
    net = MODELS.build(names["backbone"])
    net.init_weights()
    assert_holds(net, convert_spach(weights))


@pytest.mark.slow
def test_the_readmes_commands_convert_and_reanchor(files, tmp_path):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "smlp_b.pth").write_bytes(files["base"][0].read_bytes())
    commands = readme_block("README.md", "bash", "convert_spach")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-e"], input=commands, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "smlp_b.pth",
        *re.findall(r"smlpnet[\w-]+\.pth", commands),
    }
