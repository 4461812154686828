"""What commands make of a config before it runs: the machine it is fitted to, flags, errors that name the remedy."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmsmlp.running import find_checkpoint, load_config, set_training
from mmsmlp.testing import augment_test, draw_test, dump_test

ROOT = Path(__file__).parents[1]
DETECTION = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
SEGMENTATION = ROOT / "configs/demo/upernet_smlpnet-mini_coins.py"
CLASSIFICATION = ROOT / "configs/demo/smlpnet-mini_photos.py"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens where there is no GPU")


def load(path=DETECTION, options=None, work_dir=None, launcher="none") -> Config:
    return load_config(path, options, work_dir, launcher)


def test_the_work_directory_is_that_of_the_command_then_the_configs_then_its_name():
    assert load(work_dir="here", options={"work_dir": "there"}).work_dir == "here"
    assert load(options={"work_dir": "there"}).work_dir == "there"
    assert load().work_dir == "work_dirs/mask-rcnn_smlpnet-mini_coins"


def test_options_reach_into_a_config():
    assert load(options={"train_cfg.max_iters": 7, "model.backbone.arch": "tiny"}).train_cfg.max_iters == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "none.py"}, "the config none.py does not exist"),
        ({"options": {"train_pipeline.99.type": "Resize"}}, r"train_pipeline.99.type.* do not fit .*coins.py"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load(**arguments)


@without_gpu
@pytest.mark.parametrize("launcher", ["slurm", "mpi"])
def test_launchers_that_need_gpus_say_so(launcher):
    with pytest.raises(ValueError, match=f"--launcher {launcher} needs GPUs .* --launcher pytorch"):
        load(launcher=launcher)


@without_gpu
def test_synchronised_norms_become_batch_norms_without_a_gpu_and_one_line_says_so(capsys):
    options = {"model.backbone.norm_cfg": {"type": "SyncBN", "eps": 1e-3}, "model.decode_head.norm_cfg.type": "SyncBN"}
    cfg = load(SEGMENTATION, options)
    assert cfg.model.backbone.norm_cfg == {"type": "BN", "eps": 1e-3}
    assert cfg.model.decode_head.norm_cfg.type == "BN"
    assert capsys.readouterr().out.count("\n") == 1


def test_nothing_is_said_of_norms_where_there_are_no_synchronised_ones(capsys):
    load(SEGMENTATION)
    assert not capsys.readouterr().out


@without_gpu
def test_two_processes_without_gpus_talk_by_gloo_and_name_no_device():
    cfg = load(launcher="pytorch", options={"find_unused_parameters": True})
    assert cfg.env_cfg.dist_cfg.backend == "gloo"
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters


@pytest.mark.parametrize(("workers", "persist"), [(0, False), (2, True)])
def test_a_classifiers_loaders_are_those_of_mmpretrains_scripts(workers, persist):
    options = {"train_dataloader.num_workers": workers}
    if workers:
        options["train_dataloader.persistent_workers"] = True
    loader = load(CLASSIFICATION, options).train_dataloader
    assert (loader.persistent_workers, loader.collate_fn.type) == (persist, "default_collate")
    assert loader.pin_memory == torch.cuda.is_available()


@without_gpu
def test_mixed_precision_without_a_gpu_is_refused_in_one_line():
    with pytest.raises(ValueError, match="^--amp needs a GPU .*: leave it out$"):
        set_training(load(), None, amp=True, auto_scale_lr=False)


def test_scaling_the_learning_rate_needs_the_batch_size_it_is_meant_for():
    with pytest.raises(ValueError, match=r"--cfg-options auto_scale_lr.base_batch_size=16"):
        set_training(load(), None, amp=False, auto_scale_lr=True)
    cfg = load(options={"auto_scale_lr.base_batch_size": 32})
    set_training(cfg, None, amp=False, auto_scale_lr=True)
    assert cfg.auto_scale_lr == {"base_batch_size": 32, "enable": True}


def test_resuming_takes_the_latest_checkpoint_or_a_given_one(tmp_path):
    cfg = load()
    set_training(cfg, "auto", amp=False, auto_scale_lr=False)
    assert (cfg.resume, cfg.load_from) == (True, None)
    torch.save({}, tmp_path / "iter_2.pth")
    set_training(cfg, str(tmp_path / "iter_2.pth"), amp=False, auto_scale_lr=False)
    assert cfg.load_from == str(tmp_path / "iter_2.pth")
    with pytest.raises(FileNotFoundError, match="the checkpoint none.pth does not exist"):
        set_training(cfg, "none.pth", amp=False, auto_scale_lr=False)


def test_a_checkpoint_may_be_an_address_or_a_work_directory(tmp_path):
    assert find_checkpoint("https://host/a.pth") == "https://host/a.pth"
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: train first"):
        find_checkpoint(tmp_path)
    torch.save({}, tmp_path / "iter_2.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    assert find_checkpoint(tmp_path) == str(tmp_path / "iter_2.pth")


def test_a_configs_own_augmentation_is_taken():
    cfg = load(SEGMENTATION, {"tta_model": {"type": "SegTTAModel"}, "tta_pipeline": [{"type": "Mine"}]})
    augment_test(cfg)
    assert cfg.model.type == "SegTTAModel"
    assert cfg.model.module.type == "EncoderDecoder"
    assert cfg.test_dataloader.dataset.pipeline == [{"type": "Mine"}]


def test_test_time_augmentation_of_a_mask_rcnn_leaves_its_masks_out_and_says_so(capsys):
    cfg = load()
    augment_test(cfg)
    assert "boxes only" in capsys.readouterr().out
    assert cfg.model.module.roi_head.mask_head is None
    assert cfg.test_evaluator.metric == "bbox"


@pytest.mark.parametrize(
    ("config", "out", "message"),
    [(DETECTION, "found.json", "end on .pkl"), (SEGMENTATION, "found.pkl", "name a folder")],
)
def test_predictions_of_another_kind_of_file_are_refused(config, out, message):
    with pytest.raises(ValueError, match=message):
        dump_test(load(config), out)


@pytest.mark.parametrize("change", [augment_test, lambda cfg: draw_test(cfg, "x"), lambda cfg: dump_test(cfg, "x")])
def test_a_config_of_another_toolbox_is_named(change):
    with pytest.raises(ValueError, match="default_scope mmdet, mmseg, mmpretrain; this one's is 'mmpose'"):
        change(load(options={"default_scope": "mmpose"}))
