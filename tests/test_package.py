"""The package as others meet it: what importing it loads, how configs find it, and what it says without mmengine."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmsmlp

ROOT = Path(__file__).parents[1]
TOOLBOXES = ("mmcv", "mmdet", "mmseg", "mmpretrain")


def run_python(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "statement",
    ["import mmsmlp", "from mmengine.registry import MODELS; MODELS.get('mmsmlp.SMLPNet')"],
    ids=["import", "registry"],
)
def test_importing_loads_torch_and_mmengine_only(statement):
    others = (*TOOLBOXES, "timm", "skimage", "matplotlib")
    code = f"import sys; {statement}; print([m for m in {others} if m in sys.modules])"
    result = run_python(code)
    # matplotlib is loaded by mmengine itself (its visualiser), nothing else of ours may be
    assert result.stdout.strip() in ("[]", "['matplotlib']"), result.stderr


def test_a_config_needs_no_custom_imports():
    code = (
        "from mmengine.registry import MODELS, init_default_scope\n"
        "init_default_scope('mmengine')\n"
        "net = MODELS.build(dict(type='mmsmlp.SMLPNet', arch='tiny'))\n"
        "print(type(net).__module__, type(net).__name__)"
    )
    assert run_python(code).stdout.split() == ["mmsmlp.smlpnet", "SMLPNet"]


def test_without_mmengine_one_line_names_the_extras(tmp_path):
    """A real interpreter in which mmengine cannot be found, everything else can."""
    code = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'mmengine': raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import mmsmlp"
    )
    result = run_python(code)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(r"mmsmlp needs mmengine: .*pip install -e '\.\[onedl\]'.*'openmmlab'", last)
    assert "During handling" not in result.stderr


def test_the_public_names():
    assert set(mmsmlp.__all__) == {"SMLPNet", "SparseMLP", "__version__", "create_model", "fuse_norms"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", mmsmlp.__version__)


# A module imports only from those before it.
GROUPS = [
    ["symbols", "resize", "ops.parts", "ops.taps", "ops.axis_mixing", "ops.products", "registry", "files"],
    ["valid_area", "weights.arch", "weights.checkpoint_file", "weights.spach", "weights.spach_files"],
    ["layers", "ops.in_place", "ops.fused", "blocks"],
    ["folding", "checkpoint", "smlpnet", "sharding", "deploy"],
    ["models", "timm"],
    ["preprocessors.detection", "preprocessors.segmentation", "necks"],
    ["weights.anchors", "optim", "flops"],
    ["seeding", "checkpoint_hook", "resume"],
    ["data.coco", "data.coco_check", "data.filesets", "coins"],
    ["photos.photographs", "photos.patches", "photos.formats"],
    ["running", "testing", "inference", "web_demo.uploads", "web_demo.predictor", "web_demo.page"],
    ["data.scenes", "tasks", "sweep", "drawing", "plots"],
    [
        *(f"visualize.{name}" for name in ("inputs", "network", "weights", "receptive_field", "fields", "features")),
        *(f"visualize.{name}" for name in ("report", "overview")),
    ],
    ["onnx_export.layers", "onnx_export.parts", "onnx_export.quantize", "onnx_export.write"],
]
ORDER = sum(GROUPS, [])


def test_every_module_has_its_place_in_the_order():
    paths = (p.relative_to(ROOT / "mmsmlp").with_suffix("") for p in (ROOT / "mmsmlp").rglob("*.py"))
    assert {".".join(p.parts) for p in paths if p.name != "__init__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module):
    tree = ast.parse((ROOT / "mmsmlp" / f"{module.replace('.', '/')}.py").read_text())
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            # `from mmsmlp.ops import in_place` imports a module, `from mmsmlp.resize import resize_axis` a name of one
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name.removeprefix("mmsmlp.") in ORDER else node.module for name in modules]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    imported = {name.removeprefix("mmsmlp.") for name in names if name.startswith("mmsmlp.")}
    assert imported <= set(ORDER[: ORDER.index(module)])
