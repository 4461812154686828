"""The configs of the zoo: conventions, and a dry run of each at small sizes on data in the target's own format."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmsmlp import SMLPNet
from mmsmlp.photos import write_ade20k_format, write_cityscapes_format, write_coco_format
from mmsmlp.spach import export_spach

ROOT = Path(__file__).parents[1]
FOLDERS = {"classification": "mmpretrain", "detection": "mmdetection", "segmentation": "mmseg"}
ZOO = sorted(p for folder in FOLDERS for p in (ROOT / "configs" / folder).glob("*.py"))
DENSE = [p for p in ZOO if p.parent.name != "classification"]
# Each base with its smallest config; the others run in `make test-all` only.
QUICK = [p for p in DENSE if "tiny" in p.stem and not p.stem.startswith("mask-rcnn_smlpnet-tiny_fpn_ms-crop")]
DATA = {"data/coco": write_coco_format, "data/ade/": write_ade20k_format, "data/cityscapes": write_cityscapes_format}
NAME = re.compile(
    r"([a-z0-9-]+_)?smlpnet-(tiny|small|base)(_fpn)?"  # method_backbone_neck
    r"_(8xb\d+|(8xb\d+-)?(ms-crop-|lsj-)?(\dx|\d+e|\d+k))"  # GPUs x batch, augmentation, schedule
    r"_(coco|in1k|in1k-384px|ade20k-\d+x\d+|cityscapes-\d+x\d+)"  # data, size
)
each_config = pytest.mark.parametrize("path", ZOO, ids=lambda p: p.stem)
each_dense = pytest.mark.parametrize("path", DENSE, ids=lambda p: p.stem)


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
    batch = Config.fromfile(path).train_dataloader.batch_size
    assert re.search(rf"\b8 GPUs x {batch} (images|crops)\b", header)
    assert "Not trained by us" in header


@each_config
def test_the_learning_rate_is_that_of_8_gpus(path):
    cfg = Config.fromfile(path)
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
    backbone = Config.fromfile(path).model.backbone
    wanted = {
        "tiny": "work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
        "small": "spach://smlp_s",
        "base": "spach://smlp_b",
    }
    assert backbone.init_cfg == {"type": "Pretrained", "checkpoint": wanted[backbone.arch], "prefix": "backbone."}
    assert backbone.arch in path.stem


@each_dense
def test_the_header_of_a_tiny_config_states_the_policy_of_norms_that_its_model_has(path):
    model = Config.fromfile(path).model
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
    model = Config.fromfile(path).model
    assert model.data_preprocessor.type.startswith("mmsmlp.")
    if path.parent.name == "segmentation":
        assert model.data_preprocessor.test_cfg == {"size_divisor": 32}


@pytest.mark.parametrize(("schedule", "stem"), [("ms-crop-3x_coco", 0.70), ("160k_ade20k-512x512", 0.48)])
def test_layer_decay_gives_the_stem_the_rate_of_convnexts(schedule, stem):
    (path,) = (p for p in DENSE if re.fullmatch(rf"(mask-rcnn|upernet)_smlpnet-tiny.*{schedule}", p.stem))
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    optimizer = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper)
    scales = [group["lr"] / cfg.optim_wrapper.optimizer.lr for group in optimizer.param_groups]
    assert min(scales) == pytest.approx(stem, abs=0.005)
    assert max(scales) == 1


@pytest.mark.parametrize("path", [p for p in DENSE if "mask2former" in p.stem], ids=lambda p: p.stem)
def test_mask2formers_backbone_learns_at_a_tenth_and_its_norms_do_not_decay(path):
    cfg = Config.fromfile(path)
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
    assert set(frame.config) == {str(path.relative_to(ROOT)) for path in ZOO}
    assert set(frame.index) == {path.stem for path in ZOO}
    assert {"parameters", "flops", "training_data", "architecture"} <= set(frame.columns)
    assert (frame.parameters > 24e6).all()


def test_the_documents_have_the_tables_of_the_metafiles():
    rows = zoo.listed()
    assert [row["config"] for row in rows] == zoo.configs()
    for document, text in zoo.documents(rows).items():
        assert (ROOT / document).read_text("utf-8") == text, f"{document}: run `python benchmarks/zoo.py --write`"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_metafiles_say_what_the_configs_say(folder):
    rows = [row for row in zoo.listed() if f"/{folder}/" in row["config"]]
    assert (ROOT / "configs" / folder / "metafile.yml").read_text("utf-8") == zoo.metafile(folder, rows)


COUNTED = ["configs/segmentation/fpn_smlpnet-tiny_8xb4-40k_ade20k-512x512.py"]


@pytest.mark.parametrize(
    "config", [c if c in COUNTED else pytest.param(c, marks=pytest.mark.slow) for c in zoo.configs()], ids=lambda c: c
)
def test_the_figures_are_counted(config):
    listed = {row["config"]: row for row in zoo.listed()}
    assert zoo.row(config) == listed[config]


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


# Dry runs.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A function: the folder that stands for a config's data set, of small real images in the same format."""
    written = {}

    def folder(cfg: Config) -> tuple[str, Path]:
        root = cfg.train_dataloader.dataset.data_root
        key = next(key for key in DATA if root.startswith(key))
        if key not in written:
            size = (128, 256) if "cityscapes" in key else (120, 160)
            written[key] = DATA[key](tmp_path_factory.mktemp("data") / "set", size)
        return root, written[key]

    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A function: weights of an arch, and a file of them with the official structure."""
    files = {}

    def of(arch: str) -> tuple[dict[str, torch.Tensor], Path]:
        if arch not in files:
            torch.manual_seed(0)
            weights = SMLPNet(arch).state_dict()
            head = torch.nn.Linear(weights["norm3.weight"].numel(), 1000).state_dict()
            classifier = {f"backbone.{k}": v for k, v in weights.items()} | {f"head.fc.{k}": v for k, v in head.items()}
            path = tmp_path_factory.mktemp("official") / f"{arch}.pth"
            torch.save({"model": export_spach(classifier)}, path)
            files[arch] = weights, path
        return files[arch]

    return of


SIZES = ("scale", "scales", "crop_size", "size", "stride", "max_size")


def shrink(cfg, divisor: int = 4):
    """Divide every size in a part of a config, in place."""

    def smaller(value):
        return [smaller(v) for v in value] if isinstance(value, (list, tuple)) else value // divisor

    for item in cfg if isinstance(cfg, list) else [cfg]:
        for key, value in item.items() if isinstance(item, dict) else ():
            if key in SIZES and value is not None:
                shrunk = smaller(value)
                item[key] = tuple(shrunk) if isinstance(value, tuple) else shrunk
                if key == "scales" and isinstance(value[0], (list, tuple)):
                    item[key] = [tuple(scale) for scale in shrunk]
            elif isinstance(value, (dict, list)):
                for inner in value if isinstance(value, list) else [value]:
                    shrink(inner, divisor)
        if isinstance(item, list):
            shrink(item, divisor)


def moved(cfg, old: str, new: str):
    """A part of a config, paths below ``old`` replaced."""
    if isinstance(cfg, dict):
        return {key: moved(value, old, new) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(moved(value, old, new) for value in cfg)
    return f"{new}/{cfg[len(old) :].lstrip('/')}" if isinstance(cfg, str) and cfg.startswith(old) else cfg


def any_score(test_cfg) -> None:
    """Keep a few detections whatever their score, in place: before training there are none else."""
    few = {"score_thr": 0.0, "nms_pre": 50, "max_per_img": 20}
    for key, value in test_cfg.items():
        if isinstance(value, dict):
            any_score(value)
        elif key in few:
            test_cfg[key] = few[key]


def small_run(path: Path, data, checkpoint: str, work_dir: Path) -> Runner:
    """The config's own runner: its whole model, on small images, two at a time, for two steps."""
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg.checkpoint = checkpoint
    old, new = data(cfg)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset = moved(loader.dataset, old, str(new))
        shrink(loader.dataset.pipeline)
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.test_evaluator = moved(cfg.test_evaluator, old, str(new))
    shrink(cfg.model.data_preprocessor)
    if cfg.model.get("test_cfg"):
        shrink(cfg.model.test_cfg)
        any_score(cfg.model.test_cfg)
    cfg.train_cfg.pop("dynamic_intervals", None)
    cfg.train_cfg.update({"max_epochs": 1} if "max_epochs" in cfg.train_cfg else {"max_iters": 2})
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    del cfg.default_hooks.visualization
    cfg.visualizer = None
    cfg.log_level = "ERROR"
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.randomness = dict(seed=0)
    return Runner.from_cfg(cfg)


class Seen(Hook):
    """What a training began with, and its losses."""

    def __init__(self):
        self.losses = []

    def before_train(self, runner):
        self.start = copy.deepcopy(runner.model.backbone.state_dict())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())


def slow_unless(quick: list[Path]) -> list:
    return [p if p in quick else pytest.param(p, marks=pytest.mark.slow) for p in DENSE]


@pytest.mark.parametrize("path", slow_unless(QUICK), ids=lambda p: p.stem)
def test_two_steps_and_a_test_from_official_weights(path, data, official, tmp_path):
    weights, file = official(Config.fromfile(path).model.backbone.arch)
    runner, seen = small_run(path, data, f"spach://{file}", tmp_path), Seen()
    runner.register_hook(seen)
    runner.train()
    assert all(torch.equal(seen.start[key], value) for key, value in weights.items())
    assert len(seen.losses) == 2
    assert np.isfinite(seen.losses).all()
    end = runner.model.backbone.state_dict()
    statistics = [key for key in end if key.endswith("running_mean")]
    changed = [not torch.equal(end[key], seen.start[key]) for key in statistics]
    assert not any(changed) if runner.model.backbone.norm_eval else all(changed)
    metrics = runner.test()
    wanted = {"detection": "coco/bbox_mAP", "segmentation": "mIoU"}[path.parent.name]
    assert np.isfinite(metrics[wanted])


def test_tiny_starts_from_a_classifiers_checkpoint(data, official, tmp_path):
    """As training with our ImageNet config leaves it; a missing one is an error, not a start from random weights."""
    weights, _ = official("tiny")
    path = ROOT / "configs/detection/mask-rcnn_smlpnet-tiny_fpn_1x_coco.py"
    state = {f"backbone.{key}": value for key, value in weights.items()} | {"head.fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": state}, tmp_path / "epoch_300.pth")
    model = small_run(path, data, str(tmp_path / "epoch_300.pth"), tmp_path / "run").model
    model.init_weights()
    assert all(torch.equal(model.backbone.state_dict()[key], value) for key, value in weights.items())
    missing = small_run(path, data, str(tmp_path / "missing.pth"), tmp_path / "another").model
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        missing.init_weights()
