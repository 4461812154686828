"""The configs of the zoo: their conventions, what is listed of them, and the tables (they run in test_zoo_runs.py)."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import zoo
import zoo_measure
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmsmlp import SMLPNet

ROOT = Path(__file__).parents[1]
FOLDERS = {"classification": "mmpretrain", "detection": "mmdetection", "segmentation": "mmseg"}
ZOO = sorted(p for folder in FOLDERS for p in (ROOT / "configs" / folder).glob("*.py"))
DENSE = [p for p in ZOO if p.parent.name != "classification"]
NAME = re.compile(
    r"([a-z0-9-]+_)?smlpnet-(tiny|small|base)(_fpn)?"  # method_backbone_neck
    r"_(8xb\d+|(8xb\d+-)?(ms-crop-|lsj-)?(\dx|\d+e|\d+k))"  # GPUs x batch, augmentation, schedule
    r"_(coco|in1k|in1k-384px|ade20k-\d+x\d+|cityscapes-\d+x\d+)"  # data, size
)
each_config = pytest.mark.parametrize("path", ZOO, ids=lambda p: p.stem)
each_dense = pytest.mark.parametrize("path", DENSE, ids=lambda p: p.stem)
load = cache(Config.fromfile)  # for tests that only read


def docstring(path: Path) -> str:
    """A config's header, in one line."""
    header = re.match(r'r?"""(.+?)"""', path.read_text("utf-8"), re.S)[1]
    return " ".join(header.replace("\\\n", " ").split())


# Conventions.


@each_config
def test_a_config_is_named_as_openmmlabs(path):
    assert NAME.fullmatch(path.stem)


@each_config
def test_the_header_says_the_command_the_hardware_and_that_it_is_not_trained(path):
    command = f"mim train {FOLDERS[path.parent.name]} {path.relative_to(ROOT)} --gpus 8 --launcher pytorch"
    header = docstring(path)
    assert header.endswith(command)
    batch = load(path).train_dataloader.batch_size
    assert re.search(rf"\b8 GPUs x {batch} (images|crops)\b", header)
    assert "Not trained by us" in header


@each_config
def test_the_learning_rate_is_that_of_8_gpus(path):
    cfg = load(path)
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    named = re.search(r"8xb(\d+)", path.stem)
    assert named is None or int(named[1]) == cfg.train_dataloader.batch_size


@each_config
def test_a_leaf_is_short(path):
    """Small and base name what differs from tiny: arch, weights, channels. One line for each, and no more."""
    code = re.sub(r'^r?""".+?"""', "", path.read_text("utf-8"), count=1, flags=re.S)
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= (45 if "tiny" in path.stem else 12 if "640x640" in path.stem else 6)


@each_dense
def test_weights_are_the_official_ones_or_the_users(path):
    backbone = load(path).model.backbone
    wanted = {
        "tiny": "work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
        "small": "spach://smlp_s",
        "base": "spach://smlp_b",
    }
    assert backbone.init_cfg == {"type": "Pretrained", "checkpoint": wanted[backbone.arch], "prefix": "backbone."}
    assert backbone.arch in path.stem


@each_dense
def test_the_header_of_a_tiny_config_states_the_policy_of_norms_that_its_model_has(path):
    model = load(path).model
    policy = "norm_eval=True" if path.parent.name == "detection" else "SyncBN"
    if policy == "SyncBN":
        assert model.backbone.norm_cfg.type == "SyncBN"
        assert model.backbone.out_norm
    else:
        assert model.backbone.norm_eval
        assert "out_norm" not in model.backbone
    assert "tiny" not in path.stem or policy in docstring(path)


@each_dense
def test_batches_are_padding_aware(path):
    model = load(path).model
    assert model.data_preprocessor.type.startswith("mmsmlp.")
    if path.parent.name == "segmentation":
        assert model.data_preprocessor.test_cfg == {"size_divisor": 32}


@pytest.mark.parametrize(("schedule", "stem"), [("ms-crop-3x_coco", 0.70), ("160k_ade20k-512x512", 0.48)])
def test_layer_decay_gives_the_stem_the_rate_of_convnexts(schedule, stem):
    (path,) = (p for p in DENSE if re.fullmatch(rf"(mask-rcnn|upernet)_smlpnet-tiny.*{schedule}", p.stem))
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    optimizer = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper)
    scales = [group["lr"] / cfg.optim_wrapper.optimizer.lr for group in optimizer.param_groups]
    assert min(scales) == pytest.approx(stem, abs=0.005)
    assert max(scales) == 1


@pytest.mark.parametrize("path", [p for p in DENSE if "mask2former" in p.stem], ids=lambda p: p.stem)
def test_mask2formers_backbone_learns_at_a_tenth_and_its_norms_do_not_decay(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    settings = {}
    for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups:
        settings |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    for name, parameter in model.backbone.named_parameters():
        assert settings[id(parameter)] == (pytest.approx(1e-5), 0 if "norm" in name else 0.05), name


# What `mim search` reads, and the tables.


def test_mim_finds_every_config_in_the_model_index():
    from mim.commands.search import convert2df
    from modelindex.load_model_index import load

    frame = convert2df(load(str(ROOT / "model-index.yml")))
    listed = frame.loc[[path.stem for path in ZOO]]
    assert list(listed.config) == [str(path.relative_to(ROOT)) for path in ZOO]
    assert (listed.parameters > 24e6).all()
    assert (listed.flops > 4e9).all()
    assert set(listed.training_data) == {"imagenet-1k", "coco", "ade20k", "cityscapes"}


def test_the_documents_have_the_tables_of_the_metafiles():
    rows = zoo.listed()
    assert [row["config"] for row in rows] == zoo.configs()
    for document, text in zoo.documents(rows).items():
        assert (ROOT / document).read_text("utf-8") == text, f"{document}: run `python benchmarks/zoo.py --write`"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_metafiles_say_what_the_configs_say(folder):
    rows = [row for row in zoo.listed() if f"/{folder}/" in row["config"]]
    assert (ROOT / "configs" / folder / "metafile.yml").read_text("utf-8") == zoo.metafile(folder, rows)


def test_figures_come_back_from_the_metafiles_as_they_were_written(tmp_path):
    """With and without what is measured."""
    rows = [row | dict.fromkeys(zoo.MEASURED) for row in zoo.listed()]
    rows[1] |= {"seconds": 1.234, "memory": 5_600_000_000, "images": 8, "hardware": "a processor, 2 threads"}
    for folder in FOLDERS:
        path = tmp_path / "configs" / folder / "metafile.yml"
        path.parent.mkdir(parents=True)
        path.write_text(zoo.metafile(folder, [r for r in rows if f"/{folder}/" in r["config"]]), "utf-8")
    assert zoo.listed(tmp_path) == rows
    table = zoo.markdown(rows[:2], "configs/classification/README.md").splitlines()
    assert table[2].endswith("| not measured | not measured | not trained |")
    assert table[3].endswith("| 1.23 | 5.6 (8) | not trained |")


def test_configs_with_the_same_model_share_their_figures():
    keys = {path.stem: zoo.key(str(path.relative_to(ROOT))) for path in ZOO}
    assert keys["mask-rcnn_smlpnet-tiny_fpn_1x_coco"] == keys["mask-rcnn_smlpnet-tiny_fpn_ms-crop-3x_coco"]
    assert len(set(keys.values())) == len(ZOO) - 3  # 1x and 3x of Mask R-CNN, three sizes


COUNTED = ["configs/segmentation/fpn_smlpnet-tiny_8xb4-40k_ade20k-512x512.py"]


@pytest.mark.parametrize(
    "config", [c if c in COUNTED else pytest.param(c, marks=pytest.mark.slow) for c in zoo.configs()], ids=lambda c: c
)
def test_the_figures_are_counted(config):
    listed = {row["config"]: row for row in zoo.listed()}[config]
    assert zoo.count(config) == {name: listed[name] for name in zoo.COUNTED}


MEASURED = {
    "configs/classification/smlpnet-tiny_8xb128_in1k.py": (64, 64),
    "configs/detection/mask-rcnn_smlpnet-tiny_fpn_1x_coco.py": (64, 96),
    "configs/segmentation/upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py": (64, 96),
    "configs/segmentation/mask2former_smlpnet-tiny_8xb2-160k_ade20k-512x512.py": (64, 96),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", MEASURED)
def test_measuring_takes_one_fresh_process(config):
    """At a size where most of the memory is weights, gradients and AdamW's two moments."""
    command = [sys.executable, zoo_measure.__file__, config, *map(str, MEASURED[config]), "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == set(zoo.MEASURED)
    assert figures["seconds"] > 0
    parameters = {row["config"]: row for row in zoo.listed()}[config]["parameters"]
    assert 12 * parameters < figures["memory"] < 16 * parameters + 4e9


def test_read_base_takes_the_backbone_by_its_class(tmp_path):
    """The snippet of docs/training.md beside a stock config, as a user of mmengine's Python-style configs has it."""
    stock = Config.fromstring("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'", ".py")
    stock.dump(tmp_path / "my_detector.py")
    page = (ROOT / "docs/training.md").read_text("utf-8")
    (snippet,) = (s for s in re.findall(r"```python\n(.+?)```", page, re.S) if "read_base" in s)
    (tmp_path / "config.py").write_text(snippet)
    cfg = Config.fromfile(tmp_path / "config.py")
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert type(model.backbone) is SMLPNet
    assert model.backbone.channels == [conv.in_channels for conv in model.neck.lateral_convs]
