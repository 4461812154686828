"""Checkpoint files are looked at before they are loaded: checksums, and what their pickles ask for."""

import re

import pytest
import torch
from mmengine.logging import HistoryBuffer
from stress.loading import ARCH, network, whole_model, write_mmengine, write_official

from mmsmlp import SMLPNet, create_model
from mmsmlp.checkpoint import UnfitWeightsError, read_checkpoint
from mmsmlp.running import find_checkpoint, load_config, set_training
from mmsmlp.weights.checkpoint_file import CheckpointFileError, check_checkpoint_file
from mmsmlp.weights.spach_files import read_official


@pytest.fixture
def checkpoint(tmp_path):
    return write_mmengine(whole_model(network()), tmp_path / "iter_1.pth")


def flip_in_a_weight(path):
    content = bytearray(path.read_bytes())
    weight = network().state_dict()["stages.2.1.channel_mlp.fc1.weight"].numpy().tobytes()
    content[content.index(weight) + 100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_what_training_writes_is_taken(tmp_path, legacy):
    buffer = HistoryBuffer([1.0], [1])
    content = {
        "state_dict": network().state_dict(),
        "message_hub": {"log_scalars": {"loss": buffer}, "runtime_info": {"lr": torch.tensor(1.0).numpy()}},
        "optimizer": torch.optim.AdamW(network().parameters()).state_dict(),
        "dtype": torch.bfloat16,
        "shape": torch.Size([1]),
        "parameter": torch.nn.Parameter(torch.zeros(1)),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    check_checkpoint_file(tmp_path / "a.pth")


def test_pytorch_itself_does_not_see_a_flipped_bit(checkpoint):
    """Why the checksums are looked at: this fails once PyTorch does so itself."""
    flip_in_a_weight(checkpoint)
    given = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert not torch.equal(
        given["backbone.stages.2.1.channel_mlp.fc1.weight"], network().stages[2][1].channel_mlp.fc1.weight
    )


@pytest.mark.parametrize(
    "read",
    [
        check_checkpoint_file,
        read_checkpoint,
        find_checkpoint,
        lambda path: create_model(ARCH, pretrained=path),
        lambda path: SMLPNet(ARCH, init_cfg={"type": "Pretrained", "checkpoint": str(path)}).init_weights(),
    ],
    ids=["check", "read_checkpoint", "find_checkpoint", "create_model", "init_cfg"],
)
def test_a_flipped_bit_is_refused_by_the_name_of_its_record(checkpoint, read):
    flip_in_a_weight(checkpoint)
    with pytest.raises(CheckpointFileError, match=r"iter_1\.pth: damaged.*checksum of its record 'iter_1/data/\d+'"):
        read(checkpoint)


def test_a_flipped_bit_in_an_official_file_is_refused(tmp_path):
    path = write_official(whole_model(network()), tmp_path / "smlp.pth")
    flip_in_a_weight(path)
    with pytest.raises(ValueError, match=r"smlp\.pth: damaged or cut off.*checksum"):
        read_official(path)


@pytest.mark.parametrize("way", ["resume", "resume FILE", "load_from"])
def test_training_starts_from_no_damaged_checkpoint(checkpoint, tmp_path, way):
    flip_in_a_weight(checkpoint)
    (tmp_path / "last_checkpoint").write_text(str(checkpoint))
    options = {"load_from": str(checkpoint)} if way == "load_from" else {}
    cfg = load_config("configs/demo/smlpnet-mini_photos.py", options, str(tmp_path))
    resume = {"resume": "auto", "resume FILE": str(checkpoint)}.get(way)
    with pytest.raises(CheckpointFileError, match="checksum"):
        set_training(cfg, resume, amp=False, auto_scale_lr=False)


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "a.pth"))
    with pytest.raises(CheckpointFileError, match="refused, it asks to run a TorchScript program"):
        check_checkpoint_file(tmp_path / "a.pth")


def test_an_address_is_downloaded_once_and_looked_at(checkpoint, tmp_path, monkeypatch):
    """From a real server on this machine."""
    import functools
    import http.server
    import threading

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/iter_1.pth"
        assert read_checkpoint(address)["meta"]["iter"] == 3
        server.shutdown()
    assert read_checkpoint(address)["meta"]["iter"] == 3
    flip_in_a_weight(next((tmp_path / "torch").rglob("iter_1.pth")))
    with pytest.raises(CheckpointFileError, match="checksum"):
        read_checkpoint(address)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * torch.nan, r"1 of 108 tensors hold NaN or infinity \(stages.0.0.channel_mlp.fc1.weight\)"),
        (lambda w: w.double() * 1e300, "hold NaN or infinity"),
        (lambda w: w.to(torch.int8), r"no floating-point numbers.*fc1.weight is torch.int8.*Quantised"),
        (lambda w: "weights", r"fc1.weight is a str"),
    ],
    ids=["NaN", "beyond float32", "int8", "text"],
)
def test_values_that_are_of_no_use_are_refused_and_nothing_is_loaded(change, message):
    net = network(1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = network().state_dict()
    state["stages.0.0.channel_mlp.fc1.weight"] = change(state["stages.0.0.channel_mlp.fc1.weight"])
    with pytest.raises(UnfitWeightsError, match=message):
        net.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_weights_of_another_precision_are_taken_and_the_report_says_so(monkeypatch):
    lines = []
    monkeypatch.setattr("mmsmlp.checkpoint.print_log", lambda line, logger: lines.append(line))
    state = {k: v.half() if v.is_floating_point() else v for k, v in network().state_dict().items()}
    network(1).load_state_dict(state)
    assert lines == ["SMLPNet: 119 of 119 keys matched; stored as float16"]


def test_a_prefix_that_no_key_has_is_named(checkpoint):
    init_cfg = {"type": "Pretrained", "checkpoint": str(checkpoint), "prefix": "model.backbone."}
    with pytest.raises(UnfitWeightsError, match=re.escape("model.backbone.")):
        SMLPNet(ARCH, init_cfg=init_cfg).init_weights()
