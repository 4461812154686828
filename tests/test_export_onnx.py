"""ONNX files: equal to PyTorch at sizes that nobody traced, described, replaced whole or not at all; refusals."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MINI
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmsmlp
from mmsmlp import SMLPNet
from mmsmlp.onnx_export import write
from mmsmlp.onnx_export.layers import MATRICES, averaging_matrix, make_exportable
from mmsmlp.onnx_export.parts import backbone_part, read_part
from mmsmlp.onnx_export.write import compare, export_onnx
from mmsmlp.resize import METHODS, resize_axis_bias, resize_axis_weight
from mmsmlp.running import read_config

pytestmark = pytest.mark.needs_torch("2.11", reason="the ONNX exporter of 2.1 fixes sizes that a network computes with")

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
UPERNET = CONFIGS / "demo/upernet_smlpnet-mini_coins.py"
# (N, H, W): the anchor, below and above it, one position off it, odd, not square, a single pixel; the traced one is
# 2 x 90 x 122.
SIZES = (
    (1, 64, 64),
    (3, 64, 64),
    (3, 32, 32),
    (1, 33, 47),
    (1, 5, 5),
    (1, 1, 1),
    (2, 65, 67),
    (1, 68, 60),
    (1, 225, 228),
    (1, 100, 640),
    (3, 63, 31),
    (1, 301, 299),
    (3, 127, 129),
    (1, 4, 400),
)
TOLERANCE = 1e-4


def with_statistics(module: nn.Module) -> nn.Module:
    """Running statistics as after training: those of new norms would hide a norm that was left out."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return module


def mini(**arguments) -> SMLPNet:
    torch.manual_seed(0)
    return with_statistics(SMLPNet(MINI, img_size=64, out_norm=True, **arguments)).eval()


@pytest.fixture(scope="module")
def part():
    return backbone_part(mini())


@pytest.fixture(scope="module")
def file(part, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "mini.onnx"
    export_onnx(part, path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_the_graphs_formula_resizes_as_the_package_does(method, relative_error):
    for n in (1, 2, 7, 14, 56):
        weight, bias = torch.rand(n, n), torch.rand(n)
        for m in (1, 2, 6, 7, 8, 13, 14, 15, 29, 55, 56, 57, 100, 336):
            write_, read = MATRICES[method](n, m)
            # Near m = n the pseudo-inverse amplifies what float32 rounds; PyTorch's bicubic rounds its positions.
            bar = {"exact": 1e-4, "bounded": 5e-6}.get(method, 2e-5)
            assert relative_error(write_ @ weight @ read, resize_axis_weight(weight, m, method)) < bar, (n, m)
            assert relative_error(write_ @ bias, resize_axis_bias(bias, m, method)) < bar, (n, m)


@pytest.mark.parametrize("cells", [1, 2, 3, 6, 7])
def test_two_averaging_matrices_are_adaptive_average_pooling(cells, relative_error):
    for height, width in ((1, 1), (2, 5), (6, 7), (13, 4), (25, 42), (3, 31)):
        x = torch.rand(2, 3, height, width)
        pooled = averaging_matrix(height, cells) @ x @ averaging_matrix(width, cells).T
        assert relative_error(pooled, F.adaptive_avg_pool2d(x, cells)) < 1e-6


@pytest.mark.parametrize("size", [1, 3, (2, 1), (None, 3)])
def test_a_pooling_layer_is_replaced_by_one_that_gives_the_same(size, relative_error):
    x = torch.rand(2, 3, 7, 10)
    layer = nn.Sequential(nn.AdaptiveAvgPool2d(size))
    assert relative_error(make_exportable(copy.deepcopy(layer))(x), layer(x)) < 1e-6


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_one_file_runs_at_every_size_and_equals_pytorch(part, file, size):
    assert compare(part, file, [size])[size] < TOLERANCE


def test_the_file_tells_what_it_is_of(file):
    import onnx

    model = onnx.load(file)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about == {
        "arch": json.dumps({"embed_dims": 8, "depths": [1, 1, 2, 1]}),
        "anchor": "[64, 64]",
        "interpolation": "bounded",
        "mmsmlp_version": mmsmlp.__version__,
        "part": "backbone",
        "precision": "fp32",
        "opset": "20",
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert axes == {"images": ["batch", 3, "height", "width"]}
    assert [output.name for output in model.graph.output] == ["stage0", "stage1", "stage2", "stage3"]


def test_the_graph_holds_plain_operators_and_no_matrix_of_a_size(part, file):
    import onnx

    model = onnx.load(file)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    # All that is as large as an axis matrix of the traced size is a weight of the network.
    parameters = {tuple(p.shape) for p in part.module.parameters()}
    shapes = {tuple(t.dims) for t in model.graph.initializer if np.prod(t.dims) > 64}
    assert all(s in parameters or s[::-1] in parameters for s in shapes)


def test_a_file_that_differs_does_not_replace_the_old_one(part, file, monkeypatch):
    monkeypatch.setitem(write.TOLERANCES, "fp32", 0.0)
    monkeypatch.setattr(write, "to_onnx", lambda *_, **__: __import__("onnx").load(file))  # exporting takes seconds
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"differs from PyTorch by .* and was not kept"):
        export_onnx(part, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("demo/upernet_smlpnet-mini_coins.py", {"model.backbone.type": "ResNet"}, "its backbone is no mmsmlp.SMLPNet"),
        (
            "segmentation/mask2former_smlpnet-tiny_8xb2-160k_ade20k-512x512.py",
            None,
            r"EncoderDecoder with a Mask2FormerHead was not tried: .*--part backbone",
        ),
        (
            "detection/mask2former_smlpnet-tiny_8xb2-lsj-50e_coco.py",
            None,
            r"Mask2Former has none of the heads RPNHead.*--part backbone",
        ),
        (
            "demo/smlpnet-mini_photos.py",
            {"model.head.type": "VisionTransformerClsHead"},
            "a VisionTransformerClsHead was not tried: take LinearClsHead",
        ),
        ("_base_/schedules/upernet_160k_adamw.py", None, "has no model"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(config, options, message):
    with pytest.raises(ValueError, match=message) as error:
        read_part(read_config(CONFIGS / config, options))
    assert "\n" not in str(error.value)


def own_outputs(part, x: torch.Tensor) -> list[torch.Tensor]:
    """What the toolbox's own model gives, by the interface that its tests use."""
    model, shape = part.model, tuple(x.shape[2:])
    if hasattr(model, "encode_decode"):
        return [model.encode_decode(x, [{"img_shape": shape}] * len(x))]
    if hasattr(model, "rpn_head"):
        maps = model.extract_feat(x)
        return [*maps, *sum(model.rpn_head(maps), [])]
    return [model(x, mode="tensor")]


@pytest.mark.parametrize(
    "config", ["upernet_smlpnet-mini_coins.py", "mask-rcnn_smlpnet-mini_coins.py", "smlpnet-mini_photos.py"]
)
def test_what_is_exported_is_what_the_toolboxes_compute(config):
    part = read_part(CONFIGS / "demo" / config)
    x = torch.rand(2, 3, 65, 97)
    with torch.no_grad():
        given, wanted = part.module(x), own_outputs(part, x)
    assert len(given) == len(wanted) == len(part.outputs)
    assert all(torch.equal(a, b) for a, b in zip(given, wanted))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save({"state_dict": mini().state_dict()}, tmp_path / "mini.pth")
    with pytest.raises(ValueError, match=r"mini.pth does not fit the config"):
        read_part(UPERNET, tmp_path / "mini.pth")


def test_int8_without_images_and_unknown_precisions_are_refused(part, tmp_path):
    with pytest.raises(ValueError, match="unknown precision 'fp8', choose one of 'fp32', 'fp16', 'int8'"):
        export_onnx(part, tmp_path / "x.onnx", "fp8")
    with pytest.raises(ValueError, match="int8 needs images of the training set"):
        export_onnx(part, tmp_path / "x.onnx", "int8")
    assert not list(tmp_path.iterdir())


# Slow from here on: an export each, of networks as people have them.

LARGE = ((1, 224, 224), (3, 65, 97), (1, 225, 228), (1, 33, 47), (2, 100, 300), (1, 31, 31), (1, 257, 255))
LARGE += ((1, 160, 160), (3, 64, 128), (1, 5, 9), (1, 129, 350), (1, 288, 96), (1, 320, 416))


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in METHODS if method != "bounded"])
def test_every_interpolation_is_exported(method, tmp_path):
    part = backbone_part(mini(interpolation=method))
    export_onnx(part, tmp_path / "mini.onnx")
    errors = compare(part, tmp_path / "mini.onnx", SIZES)
    assert len(errors) >= 12
    assert max(errors.values()) < TOLERANCE, errors


SHORT = {"embed_dims": 80, "depths": (1, 1, 2, 1)}  # the widths of tiny with fewer blocks: exporting one takes seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "arch"),
    [
        ("segmentation/upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py", "tiny"),
        ("segmentation/fpn_smlpnet-tiny_8xb4-40k_ade20k-512x512.py", SHORT),
        ("classification/smlpnet-tiny_8xb128_in1k.py", "tiny"),
        ("detection/mask-rcnn_smlpnet-tiny_fpn_1x_coco.py", SHORT),
        ("detection/retinanet_smlpnet-tiny_fpn_1x_coco.py", SHORT),
        ("detection/atss_smlpnet-tiny_fpn_1x_coco.py", SHORT),
    ],
)
def test_whole_models_equal_pytorch_at_other_sizes(config, arch, tmp_path):
    cfg = read_config(CONFIGS / config)
    cfg.model.backbone.arch = arch
    part = read_part(cfg)
    with_statistics(part.module)
    export_onnx(part, tmp_path / "model.onnx")
    errors = compare(part, tmp_path / "model.onnx", LARGE)
    assert len(errors) >= 12
    assert max(errors.values()) < TOLERANCE, errors


def run_tool(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/export_onnx.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tool_refuses_in_one_line(tmp_path):
    out = tmp_path / "x.onnx"
    result = run_tool(CONFIGS / "detection/mask2former_smlpnet-tiny_8xb2-lsj-50e_coco.py", "--out", out)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("export_onnx: a Mask2Former has none of the heads")
    assert not out.exists()


@pytest.mark.slow
def test_the_tool_exports_a_trained_upernet_in_every_precision_and_the_pages_snippet_runs_it(tmp_path):
    """The docs' way: a checkpoint with its classes, three files, and a real photograph through one of them."""
    from skimage import data

    from mmsmlp.coins import write_coins

    write_coins(tmp_path / "coins")
    model = read_part(UPERNET).model
    checkpoint = {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": ["background", "coin"]}}}
    torch.save(checkpoint, tmp_path / "upernet.pth")
    Image.fromarray(data.coffee()[:181, :283]).save(tmp_path / "photo.png")
    options = ("--cfg-options", f"train_dataloader.dataset.data_root={tmp_path}/coins")
    outputs = {}
    for precision in ("fp32", "fp16", "int8"):
        out = tmp_path / f"{precision}.onnx"
        result = run_tool(UPERNET, tmp_path / "upernet.pth", "--out", out, "--precision", precision, *options)
        assert f"wrote {out}: model in {precision}, opset 20, outputs logits" in result.stdout, result.stderr
        assert len(re.findall(r"differs from PyTorch by", result.stdout)) == 2
        snippet = re.search(
            r"```python\n(import json, numpy.+?)```", (ROOT / "docs/deploy.md").read_text("utf-8"), re.S
        )[1]
        names = {"upernet.onnx": str(out), "photo.png": str(tmp_path / "photo.png")}
        for name, path in names.items():
            assert name in snippet
            snippet = snippet.replace(name, path)
        space = {}
        exec(snippet, space)
        assert space["labels"].shape == (181, 283)
        assert json.loads(space["about"]["classes"]) == ["background", "coin"]
        assert json.loads(space["about"]["mean"]) == [123.675, 116.28, 103.53]
        assert space["about"]["size_divisor"] == "32"
        assert space["about"]["precision"] == precision
        outputs[precision] = torch.from_numpy(space["logits"])
        if precision == "fp32":
            with torch.no_grad():
                wanted = model.eval().encode_decode(torch.from_numpy(space["images"]), [{"img_shape": (181, 283)}])
    for precision, bar in (("fp32", TOLERANCE), ("fp16", 2e-2), ("int8", 0.8)):
        assert (outputs[precision] - wanted).abs().max() < bar * wanted.abs().max()
