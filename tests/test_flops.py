"""Operation counts: the paper's figures at 224, what each part is, and agreement with PyTorch's counter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MINI
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmsmlp import SMLPNet
from mmsmlp.flops import PARTS, build_pass, count_config, count_macs
from mmsmlp.ops.axis_mixing import choose_path
from mmsmlp.resize import DEFAULT_METHOD, antialiased_matrix, interpolation_matrix

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"


class Classifier(nn.Module):
    """Backbone, global average pooling and a linear head: what the official counts are of."""

    def __init__(self, classes=1000, **kwargs):
        super().__init__()
        self.backbone = SMLPNet(**kwargs)
        self.fc = nn.Linear(self.backbone.channels[-1], classes)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


@pytest.mark.parametrize(("arch", "gmacs"), [("tiny", 4.989), ("small", 10.312), ("base", 13.987)])
def test_macs_at_224_equal_the_official_ones(arch, gmacs):
    net = Classifier(arch=arch).eval()
    macs = count_macs(net, lambda: net(torch.zeros(1, 3, 224, 224)))
    assert round(sum(macs.values()) / 1e9, 3) == gmacs


def test_parts_equal_the_formulas_at_the_anchor():
    net = Classifier(classes=10, arch=MINI, img_size=64).eval()
    macs = count_macs(net, lambda: net(torch.zeros(1, 3, 64, 64)))
    blocks = [(8, 16), (16, 8), (32, 4), (32, 4), (64, 2)]  # channels C, positions n along an axis
    assert macs == {
        "stem and merging": 16 * 16 * 8 * 3 * 16
        + sum((n * n) * c * (c // 2) * 4 for c, n in ((16, 8), (32, 4), (64, 2))),
        "local mixing": sum(n * n * c * 9 for c, n in blocks),
        "axis mixing": sum(2 * n * n * n * c for c, n in blocks),
        "fusion": sum(n * n * 3 * c * c for c, n in blocks),
        "channel MLP": sum(n * n * 6 * c * c for c, n in blocks),
        "head": 64 * 10,
    }


def left_out(n: int, m: int, other: int, channels: int) -> int:
    """What PyTorch's counter leaves out of a layer of n positions on m, along one axis of a map."""
    path = choose_path(n, m, DEFAULT_METHOD, "cpu")
    if path != "two_tap":
        return n * m if path == "dense" and m != n else 0  # resizing the bias
    # Rows are filled up to the fullest one.
    taps = sum(
        len(matrix) * int((matrix != 0).sum(1).max())
        for matrix in (interpolation_matrix(n, m), antialiased_matrix(m, n))
    )
    return taps * other * channels


@pytest.mark.parametrize("size", [(256, 256), (360, 280), (160, 800), (600, 400)])
def test_without_taps_and_matrix_vector_products_the_sum_is_torchs_own_count(size, monkeypatch):
    """What PyTorch's counter leaves out is taps and the resizing of the biases, and nothing at the anchor."""
    monkeypatch.setattr("mmsmlp.blocks.can_fuse", lambda block, x: False)  # as in count_macs, which hooks layers
    net = Classifier(arch=MINI, img_size=256).eval()
    x = torch.zeros(1, 3, *size)
    ours = sum(count_macs(net, lambda: net(x)).values())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    grids = [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 16, 32)]
    added = sum(
        left_out(n, height, width, channels) + left_out(n, width, height, channels)
        for (height, width), n, channels in zip(grids, (64, 32, 16, 16, 8), (8, 16, 32, 32, 64))
    )
    assert ours == counter.get_total_flops() // 2 + added


@pytest.mark.parametrize("method", ["exact", "scaled"])
def test_resizing_the_axis_weights_is_counted_as_axis_mixing(method):
    counts = []
    for img_size in (64, 96):
        net = SMLPNet(MINI, img_size=img_size, interpolation=method).eval()
        counts.append(count_macs(net, lambda net=net: net(torch.zeros(1, 3, 64, 64))))
    own, resized = counts
    assert resized["axis mixing"] > own["axis mixing"]
    assert all(own[part] == resized[part] for part in PARTS if part != "axis mixing")


def test_counting_removes_its_hooks():
    net = Classifier(arch=MINI, img_size=64).eval()
    count_macs(net, lambda: net(torch.zeros(1, 3, 64, 64)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_config_is_counted_with_its_heads_and_its_padding():
    count = count_config(CONFIG, (150, 200))
    assert count.input_shape == (1, 3, 160, 224)  # pad_size_divisor=32
    assert all(count.macs[part] > 0 for part in PARTS)
    assert count.total_macs == sum(count.macs.values())
    assert count.parameters > 500_000


@pytest.mark.slow
def test_a_cascade_computes_as_many_masks_as_in_a_test():
    """mmdet's own pass in mode 'tensor' would compute one of each proposal."""
    config = ROOT / "configs/detection/cascade-mask-rcnn_smlpnet-tiny_fpn_ms-crop-3x_coco.py"
    model, data, mode = build_pass(config, (128, 128))
    seen = []
    for head in model.roi_head.mask_head:
        head.register_forward_hook(lambda _, inputs, masks: seen.append((len(inputs[0]), len(masks))))
    with torch.no_grad():
        model(**data, mode=mode)
    (computed, proposals), *others = seen
    assert computed == 100 < proposals
    assert others == [(computed, proposals)] * 2


def run_tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/get_flops.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_tool_prints_the_papers_count():
    result = run_tool("configs/classification/smlpnet-tiny_8xb128_in1k.py")
    assert "24,123,584 parameters" in " ".join(result.stdout.split())
    assert re.search(r"all\s+│\s+4\.989", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["none.py"], "none.py", marks=pytest.mark.slow),
        pytest.param([CONFIG, "--shape", 0], "positive", marks=pytest.mark.slow),
        pytest.param([CONFIG, "--shape", 1, 2, 3], "one or two", marks=pytest.mark.slow),
        ([CONFIG, "--cfg-options", "model.backbone.arch=huge"], "unknown arch 'huge'"),
    ],
)
def test_a_bad_call_of_the_tool_is_one_clear_line(arguments, message):
    result = run_tool(*arguments)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert message in result.stderr.strip().splitlines()[-1]
