"""The ImageNet configs: every item of the recipe in what they build, and a dry run of each on real images."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from mmsmlp.photos import write_imagenet_format
from mmsmlp.resize import resize_axis_weight

CONFIGS = Path(__file__).parents[1] / "configs" / "classification"
ARCHS = ("tiny", "small", "base")
NAMES = {224: "smlpnet-{}_8xb128_in1k", 384: "smlpnet-{}_8xb64_in1k-384px"}
EACH = pytest.mark.parametrize(("arch", "size"), [(arch, size) for size in NAMES for arch in ARCHS])
SIZES = pytest.mark.parametrize("size", NAMES)
# What only the schedule of 300 or 30 epochs needs is tested with the smallest network.
RECIPES = {
    224: {"gpus": 8, "lr": 5e-4 * 1024 / 512, "weight_decay": 0.05, "epochs": 300, "warmup": 20, "end": 1e-5},
    384: {"gpus": 8, "lr": 2e-5 * 512 / 512, "weight_decay": 1e-8, "epochs": 30, "warmup": 5, "end": 2e-7},
}
STEPS = 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Real photographs in ImageNet's layout: 5 to train on, 5 to test on."""
    return write_imagenet_format(tmp_path_factory.mktemp("data") / "imagenet", (300, 400), train=1, val=1)


def load(arch: str, size: int) -> Config:
    return Config.fromfile(CONFIGS / f"{NAMES[size].format(arch)}.py")


def runner_of(cfg: Config, images: Path, work_dir: Path, hook: Hook | None = None) -> Runner:
    """The config's own runner, but for the folders, two images at a time, and no files of 300 MB."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(work_dir)
    for name in ("train", "val", "test"):
        loader = cfg[f"{name}_dataloader"]
        loader.update(batch_size=2, num_workers=0)
        loader.dataset.data_root = str(images)
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 1
    cfg.visualizer = None
    cfg.experiment_name = work_dir.name
    runner = Runner.from_cfg(cfg)
    if hook is not None:
        runner.register_hook(hook)
    return runner


class DryRun(Hook):
    """Stops after the first validation, and keeps what was seen on the way."""

    def __init__(self):
        self.losses, self.rates, self.start = [], [], None

    def before_train(self, runner):
        self.start = {key: value.clone() for key, value in runner.model.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())
        self.sizes = {tuple(image.shape) for image in data_batch["inputs"]}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])

    def after_val_epoch(self, runner, metrics=None):
        self.scores = metrics
        runner.train_loop.stop_training = True


def dry_run(cfg: Config, images: Path, work_dir: Path) -> DryRun:
    seen = DryRun()
    runner_of(cfg, images, work_dir, seen).train()
    return seen


def check_dry_run(seen: DryRun, size: int) -> None:
    assert len(seen.losses) == STEPS
    assert seen.losses[0] == pytest.approx(np.log(1000), rel=0.2)  # an untrained classifier of 1000 classes
    assert np.isfinite(seen.losses).all()
    assert seen.sizes == {(3, size, size)}
    assert seen.rates[0] == pytest.approx(1e-3 * RECIPES[size]["lr"])
    assert seen.scores.keys() == {"accuracy/top1", "accuracy/top5"}


SLOW = pytest.mark.slow


@pytest.mark.parametrize("arch", ["tiny", pytest.param("small", marks=SLOW), pytest.param("base", marks=SLOW)])
def test_two_steps_and_a_validation_at_224(images, tmp_path, arch):
    check_dry_run(dry_run(load(arch, 224), images, tmp_path), 224)


@pytest.mark.parametrize("arch", ["tiny", pytest.param("small", marks=SLOW), pytest.param("base", marks=SLOW)])
def test_two_steps_and_a_validation_at_384_from_the_224_checkpoint(images, tmp_path, arch):
    """The checkpoint's axis weights are those of 224 pixels, resized; all else is as it was."""
    model = runner_of(load(arch, 224), images, tmp_path / "first").model
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_300.pth")
    cfg = load(arch, 384)
    cfg.load_from = str(tmp_path / "epoch_300.pth")
    seen = dry_run(cfg, images, tmp_path / "second")
    check_dry_run(seen, 384)
    for key, value in model.state_dict().items():
        if "sparse_mlp.mix_" not in key:
            assert torch.equal(seen.start[key], value), key
    for stage, anchor in enumerate((96, 48, 24, 12)):
        for axis in "hw":
            key = f"backbone.stages.{stage}.0.sparse_mlp.mix_{axis}.weight"
            assert torch.equal(seen.start[key], resize_axis_weight(model.state_dict()[key], anchor))


@EACH
def test_load_from_is_what_the_224_config_leaves(arch, size):
    """`mim train` and mmpretrain's train.py write to work_dirs/NAME, one checkpoint an epoch."""
    wanted = f"work_dirs/{NAMES[224].format(arch)}/epoch_300.pth" if size == 384 else None
    assert load(arch, size).load_from == wanted


# The recipe, item by item (see the configs' docstrings for its sources).


@pytest.fixture(scope="module")
def runners(images, tmp_path_factory):
    """size -> the runner of the tiny config, its optimiser and schedules built."""
    built = {}
    for size in NAMES:
        runner = runner_of(load("tiny", size), images, tmp_path_factory.mktemp(f"recipe{size}"))
        runner.train_loop  # noqa: B018  (builds the loop, which the schedules need)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        built[size] = runner
    return built


@EACH
def test_the_learning_rate_is_that_of_the_batch(arch, size):
    cfg, recipe = load(arch, size), RECIPES[size]
    batch = recipe["gpus"] * cfg.train_dataloader.batch_size
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(recipe["lr"])
    assert cfg.auto_scale_lr.base_batch_size == batch == {224: 1024, 384: 512}[size]


@SIZES
def test_the_optimiser_is_the_recipes(runners, size):
    optimizer = runners[size].optim_wrapper.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    assert optimizer.defaults["weight_decay"] == RECIPES[size]["weight_decay"]
    assert runners[size].optim_wrapper.clip_grad_kwargs == {224: None, 384: {"max_norm": 5.0}}[size]


@SIZES
def test_norms_and_biases_do_not_decay_and_all_else_does(runners, size):
    """As timm: no decay for one-dimensional parameters and those called bias."""
    groups = runners[size].optim_wrapper.optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in runners[size].model.named_parameters():
        free = parameter.ndim <= 1 or name.endswith(".bias")
        assert decay[id(parameter)] == (0 if free else RECIPES[size]["weight_decay"]), name


@SIZES
def test_the_learning_rate_follows_the_recipe_over_all_epochs(runners, size):
    """The built schedules, stepped as mmengine steps them, through the whole training."""
    runner, recipe = runners[size], RECIPES[size]
    optimizer = runner.optim_wrapper.optimizer
    assert runner.max_epochs == recipe["epochs"]
    rates = []
    for _ in range(runner.max_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        for by_epoch in [False] * STEPS + [True]:
            optimizer.zero_grad()
            for scheduler in runner.param_schedulers:
                if scheduler.by_epoch is by_epoch:
                    scheduler.step()
    warmup, epochs, peak, end = (recipe[key] for key in ("warmup", "epochs", "lr", "end"))
    assert rates[0] == pytest.approx(1e-3 * peak)
    assert (np.diff(rates[: warmup + 1]) > 0).all()
    assert rates[warmup] == pytest.approx(peak, rel=1e-3)
    cosine = [end + (peak - end) / 2 * (1 + np.cos(np.pi * t / (epochs - warmup))) for t in range(epochs - warmup)]
    np.testing.assert_allclose(rates[warmup:], cosine, rtol=1e-3)


@SIZES
def test_mixup_cutmix_and_smoothing_are_the_recipes(runners, size):
    model = runners[size].model
    mixing = model.data_preprocessor.batch_augments
    assert {type(augment).__name__: augment.alpha for augment in mixing.augments} == {"Mixup": 0.8, "CutMix": 1.0}
    assert mixing.probs is None  # equal chances
    loss = model.head.loss_module
    assert (loss.label_smooth_val, loss.mode) == (0.1, "original")


@SIZES
def test_mixed_targets_are_what_the_loss_gets(runners, size):
    """Two labels in a batch: mixing makes soft targets of them."""
    runner = runners[size]
    batch = next(iter(runner.train_dataloader))
    samples = runner.model.data_preprocessor(batch, training=True)["data_samples"]
    scores = torch.stack([sample.gt_score for sample in samples])
    assert scores.shape == (2, 1000)
    assert scores.sum(dim=1) == pytest.approx(1)
    if batch["data_samples"][0].gt_label != batch["data_samples"][1].gt_label:
        assert ((scores > 0).sum(dim=1) == 2).all()


def built_pipeline(size: int, part: str, images: Path) -> dict:
    """The transforms of the data set that the config builds, by the names of their classes."""
    init_default_scope("mmpretrain")
    cfg = load("tiny", size)[f"{part}_dataloader"].dataset
    cfg.data_root = str(images)
    dataset = DATASETS.build(cfg)
    return {type(transform).__name__: transform for transform in dataset.pipeline.transforms}


@SIZES
def test_the_training_pipeline_is_the_recipes(images, size):
    steps = built_pipeline(size, "train", images)
    assert list(steps) == [
        "LoadImageFromFile",
        "RandomResizedCrop",
        "RandomFlip",
        "RandAugment",
        "RandomErasing",
        "PackInputs",
    ]
    crop, erasing = steps["RandomResizedCrop"], steps["RandomErasing"]
    assert (crop.scale, crop.crop_ratio_range, crop.interpolation) == ((size, size), (0.08, 1.0), "bicubic")
    assert (erasing.erase_prob, erasing.mode) == (0.25, "rand")


@SIZES
def test_randaugment_is_m9_mstd05_inc1(images, size):
    """Two operations of timm's increasing policy, each with probability 0.5, at magnitude 9 of 10, deviation 0.5."""
    augment = built_pipeline(size, "train", images)["RandAugment"]
    assert (augment.num_policies, augment.magnitude_level, augment.total_level) == (2, 9, 10)
    assert augment.magnitude_std == 0.5
    assert len(augment.policies) == 15
    image = np.random.randint(0, 256, (64, 64, 3), np.uint8)
    changed = [not np.array_equal(augment({"img": image.copy()})["img"], image) for _ in range(60)]
    assert 0.5 < np.mean(changed) < 0.95  # 1 - 0.5 ** 2, less the identities among the operations


@pytest.mark.parametrize(("size", "steps"), [(224, ["ResizeEdge", "CenterCrop"]), (384, ["Resize"])])
def test_images_are_tested_as_the_recipe_says(images, size, steps):
    pipeline = built_pipeline(size, "val", images)
    assert list(pipeline) == ["LoadImageFromFile", *steps, "PackInputs"]
    assert pipeline[steps[0]].interpolation == "bicubic"
    if size == 224:
        assert (pipeline["ResizeEdge"].scale, pipeline["CenterCrop"].crop_size) == (256, (224, 224))
    else:
        assert pipeline["Resize"].scale == (384, 384)


def test_each_image_comes_three_times_where_augmentation_is_repeated(runners):
    """Repeated augmentation: an epoch of 5 draws shows 2 of the 5 images; the fine-tuning shows all."""
    draws = {size: list(runners[size].train_dataloader.sampler) for size in NAMES}
    assert draws[224][0] == draws[224][1] == draws[224][2] != draws[224][3]
    assert sorted(draws[384]) == list(range(5))
