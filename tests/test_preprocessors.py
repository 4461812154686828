"""Our data preprocessors in the real toolboxes: one entry in the config, and a backbone sees each image alone."""

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from padded import (
    ROOT,
    SIZES,
    STRIDES,
    demo_config,
    detection_batch,
    detector,
    difference,
    one_of,
    recorded,
    segmentation_batch,
    segmentor,
)

from mmsmlp.valid_area import attached_valid_sizes, downsampled

DETECTORS = ["demo", "cascade-rcnn_r50_fpn", "retinanet_r50_fpn"]
NORMALISATION = {"mean": [127.5] * 3, "std": [64.0] * 3}


def det_preprocessor(**kwargs):
    init_default_scope("mmdet")
    return MODELS.build({"type": "mmsmlp.DetDataPreprocessor", **NORMALISATION, **kwargs})


def seg_preprocessor(**kwargs):
    init_default_scope("mmseg")
    return MODELS.build({"type": "mmsmlp.SegDataPreProcessor", **NORMALISATION, **kwargs})


def maps_of(model, run, *batches) -> list:
    """What the backbone returned for each of the batches."""
    with recorded(model.backbone) as calls, torch.no_grad():
        for batch in batches:
            run(copy.deepcopy(batch))
    return calls


def step(model, batch) -> dict[str, float]:
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0))
    return {name: float(value) for name, value in model.train().train_step(batch, optimizer).items()}


@pytest.mark.parametrize("base", DETECTORS)
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "mmdet's own"])
def test_a_detector_predicts_from_each_image_alone(base, noted):
    model, batch = detector(base, noted), detection_batch()
    together, *alone = maps_of(model, model.test_step, batch, *(one_of(batch, i) for i in range(len(SIZES))))
    error = difference(together, alone)
    assert error < 1e-5 if noted else error > 1e-2


@pytest.mark.parametrize("base", DETECTORS)
def test_a_detector_trains_on_valid_areas(base):
    model = detector(base)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    with recorded(model.backbone) as calls:
        losses = step(model, detection_batch())
    assert all(np.isfinite(value) for value in losses.values())
    assert not [name for name, p in model.backbone.named_parameters() if torch.equal(p, before[name])]
    for maps, stride in zip(calls[0], STRIDES[-len(calls[0]) :]):
        assert attached_valid_sizes(maps) == downsampled(SIZES, stride)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_a_segmentor_trains_on_valid_areas(mode):
    model = segmentor(test_cfg={"mode": mode, "crop_size": (64, 64), "stride": (32, 32)})
    with recorded(model.backbone) as calls:
        losses = step(model, segmentation_batch())
    assert np.isfinite(losses["loss"])
    assert attached_valid_sizes(calls[0][0]) == downsampled(SIZES, 4)


def test_a_segmentor_predicts_from_each_image_alone():
    model, batch = segmentor(), segmentation_batch()
    together, *alone = maps_of(model, model.test_step, batch, *(one_of(batch, i) for i in range(len(SIZES))))
    assert difference(together, alone) < 1e-5


def test_a_batch_of_unequal_test_images_gives_predictions_of_their_own_sizes():
    """mmseg's own preprocessor refuses such a batch."""
    samples = segmentor().test_step(segmentation_batch())
    assert [tuple(sample.pred_sem_seg.data.shape) for sample in samples] == [(1, *size) for size in SIZES]
    with pytest.raises(AssertionError, match="The image size in a batch should be the same"):
        segmentor(noted=False).test_step(segmentation_batch())


def test_logits_of_a_head_without_neighbours_are_those_of_each_image_alone(relative_error):
    """Of an image whose sides 4 divides, but where mmseg's bilinear stretching to pixels looks over its border."""
    head = {"num_classes": 2, "norm_cfg": {"type": "BN"}, "align_corners": False, "_delete_": True}
    head |= {"type": "FCNHead", "in_channels": 16, "in_index": 0, "channels": 8, "num_convs": 1, "kernel_size": 1}
    sizes = [(64, 96), (92, 76), (32, 60)]
    model, batch = segmentor(decode_head={**head, "concat_input": False}), segmentation_batch(sizes)
    with torch.no_grad():
        together = model.test_step(copy.deepcopy(batch))
        alone = [model.test_step(one_of(copy.deepcopy(batch), i))[0] for i in range(len(sizes))]
    for sample, own in zip(together, alone):
        logits, wanted = (s.seg_logits.data[:, :-2, :-2] for s in (sample, own))
        assert relative_error(logits, wanted) < 1e-5


def test_windows_of_a_sliding_inference_are_taken_as_full():
    model = segmentor(test_cfg={"mode": "slide", "crop_size": (64, 64), "stride": (32, 32)})
    windows = maps_of(model, model.test_step, segmentation_batch())
    assert len(windows) > 1
    assert all(attached_valid_sizes(maps) is None for window in windows for maps in window)


@pytest.mark.parametrize(
    ("augment", "training", "noted"),
    [
        ({"type": "BatchSyncRandomResize", "random_size_range": (64, 64)}, True, False),
        ({"type": "BatchSyncRandomResize", "random_size_range": (64, 64)}, False, True),
        ({"type": "BatchFixedSizePad", "size": (160, 160)}, True, True),
    ],
)
def test_batches_that_are_resized_on_the_device_are_taken_as_full(augment, training, noted):
    preprocessor = det_preprocessor(batch_augments=[augment])
    MessageHub.get_current_instance().update_info("iter", 9)  # the augment draws a size in every tenth step
    batches = [preprocessor(detection_batch(), training)["inputs"] for _ in range(2)]
    for batch in batches:
        assert attached_valid_sizes(batch) == (tuple(SIZES) if noted else None)
    assert batches[1].shape[2:] == {"BatchSyncRandomResize": (64, 64), "BatchFixedSizePad": (160, 160)}.get(
        augment["type"] if training else None, (90, 96)
    )


@pytest.mark.parametrize(
    ("build", "cfg", "make"),
    [
        (det_preprocessor, {"pad_size_divisor": 32}, detection_batch),
        (seg_preprocessor, {"test_cfg": {"size_divisor": 32}}, segmentation_batch),
    ],
    ids=["mmdet", "mmseg"],
)
def test_one_tensor_of_images_is_noted_as_far_as_it_is_padded(build, cfg, make):
    preprocessor, samples = build(**cfg), make([(50, 64)] * 2)
    batch = preprocessor({**samples, "inputs": torch.stack(samples["inputs"])})["inputs"]
    assert tuple(batch.shape) == (2, 3, 64, 64)
    assert attached_valid_sizes(batch) == ((50, 64), (50, 64))


@pytest.mark.parametrize("toolbox", ["mmdet", "mmseg"])
def test_what_a_pipeline_pads_is_taken_as_image(toolbox):
    """The preprocessor cannot see it: Pad rewrites img_shape as well."""
    from mmengine.dataset import Compose

    init_default_scope(toolbox)
    pack = {"mmdet": "PackDetInputs", "mmseg": "PackSegInputs"}[toolbox]
    pad = {"type": "Pad", "size": (112, 80)}  # width and height
    pipeline = Compose([pad, {"type": pack, "meta_keys": ("img_shape",)}])
    image = np.zeros((50, 64, 3), np.uint8)
    packed = [pipeline({"img": image, "img_shape": (50, 64), "seg_fields": []}) for _ in range(2)]
    assert packed[0]["data_samples"].img_shape[:2] == (80, 112)
    batch = {key: [p[key] for p in packed] for key in packed[0]}
    build = {"mmdet": det_preprocessor, "mmseg": seg_preprocessor}[toolbox]
    assert attached_valid_sizes(build()(batch)["inputs"]) is None


@pytest.mark.parametrize("test_cfg", [None, {"size_divisor": 32}, {"size": (64, 128)}])
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1] * 2], ids=["unequal", "equal"])
def test_test_images_are_normalised_and_padded_as_by_mmseg(test_cfg, sizes):
    batch = segmentation_batch(sizes)
    cfg = {"pad_val": 3, "bgr_to_rgb": True, "size": (160, 160), "test_cfg": test_cfg}
    images = seg_preprocessor(**cfg)(copy.deepcopy(batch))["inputs"]
    reference = MODELS.build({"type": "SegDataPreProcessor", **NORMALISATION, **cfg, "test_cfg": None})
    for image, canvas, (height, width) in zip(batch["inputs"], images, sizes):
        own = reference({"inputs": [image], "data_samples": []})["inputs"][0]
        assert torch.equal(canvas[:, :height, :width], own)
        canvas[:, :height, :width] = 3
        assert (canvas == 3).all()
    if test_cfg:
        divisor, (height, width) = test_cfg.get("size_divisor", 1), test_cfg.get("size", (1, 1))
        assert images.shape[2] >= height
        assert images.shape[3] >= width
        assert images.shape[2] % divisor == images.shape[3] % divisor == 0


def test_detections_at_test_time_augmentation_come_from_each_image_alone():
    model = detector("retinanet_r50_fpn")  # mmdet augments no masks
    cfg = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 20}
    tta = MODELS.build({"type": "DetTTAModel", "tta_cfg": cfg, "module": model})
    batch = flipped_twice(detection_batch())
    with recorded(model.backbone) as calls, torch.no_grad():
        for index in (None, 0, 1, 2):
            found = tta.test_step(taken(batch, index))
    assert len(found) == 1
    together, alone = calls[:2], [calls[2 + 2 * i : 4 + 2 * i] for i in range(3)]
    for view in range(2):
        assert difference(together[view], [own[view] for own in alone]) < 1e-5


def test_segmentations_at_test_time_augmentation_come_from_each_image_alone():
    model = segmentor()
    tta = MODELS.build({"type": "SegTTAModel", "module": model})
    batch = flipped_twice(segmentation_batch())
    with recorded(model.backbone) as calls, torch.no_grad():
        for index in (None, 0, 1, 2):
            tta.test_step(taken(batch, index))
    together, alone = calls[:2], [calls[2 + 2 * i : 4 + 2 * i] for i in range(3)]
    for view in range(2):
        assert difference(together[view], [own[view] for own in alone]) < 1e-5


def flipped_twice(batch: dict) -> dict:
    """What a TestTimeAug pipeline gives: each image as it is, and flipped."""
    views = {"inputs": [], "data_samples": []}
    for flip in (False, True):
        samples = copy.deepcopy(batch["data_samples"])
        for sample in samples:
            sample.set_metainfo({"flip": flip, "flip_direction": "horizontal" if flip else None})
        views["data_samples"].append(samples)
        views["inputs"].append([image.flip(2) if flip else image for image in batch["inputs"]])
    return views


def taken(views: dict, index: int | None) -> dict:
    """One image of each view, or all."""
    which = slice(None) if index is None else slice(index, index + 1)
    return copy.deepcopy({key: [view[which] for view in value] for key, value in views.items()})


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    from mmsmlp.photos.photographs import photograph, window

    return [window(photograph("coins"), *size) for size in SIZES]


@pytest.fixture
def checkpoint(tmp_path):
    """A function: the demo's config of a toolbox with our preprocessor on disk, and a checkpoint of it."""

    def write(toolbox: str) -> tuple[str, str]:
        cfg = demo_config(toolbox)
        pipeline = cfg.test_dataloader.dataset.pipeline
        cfg.test_dataloader.dataset.pipeline = [t for t in pipeline if t.type != "LoadAnnotations"]
        cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
        cfg.dump(tmp_path / "config.py")
        model = detector("demo") if toolbox == "mmdet" else segmentor()
        meta = {"dataset_meta": dict(cfg.coins.metainfo), "classes": cfg.coins.metainfo.classes}
        torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "model.pth")
        return str(tmp_path / "config.py"), str(tmp_path / "model.pth")

    return write


def test_the_detection_inferencer_notes_valid_areas(checkpoint, photographs):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(*checkpoint("mmdet"), device="cpu", show_progress=False)
    with recorded(inferencer.model.backbone) as calls:
        for batch_size in (3, 1):
            inferencer(photographs, batch_size=batch_size, no_save_vis=True)
    assert difference(calls[0], calls[1:]) < 1e-5


def test_inference_functions_of_mmdet_note_valid_areas(checkpoint, photographs):
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(*checkpoint("mmdet"), device="cpu")
    with recorded(model.backbone) as calls:
        inference_detector(model, photographs)
    # One by one, padded to multiples of 32.
    assert [attached_valid_sizes(maps[0]) for maps in calls] == [None, ((23, 19),), ((9, 16),)]


def test_the_segmentation_inferencer_notes_valid_areas(checkpoint, photographs):
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(*checkpoint("mmseg"), device="cpu")
    with recorded(inferencer.model.backbone) as calls:
        for batch_size in (3, 1):
            inferencer(photographs, batch_size=batch_size)
    assert difference(calls[0], calls[1:]) < 1e-5


def test_inference_functions_of_mmseg_take_images_of_different_sizes(checkpoint, photographs):
    from mmseg.apis import inference_model, init_model

    model = init_model(*checkpoint("mmseg"), device="cpu")
    with recorded(model.backbone) as calls:
        inference_model(model, photographs)
        for photograph in photographs:
            inference_model(model, photograph)
    assert difference(calls[0], calls[1:]) < 1e-5


@pytest.mark.parametrize("build", [lambda: detector("demo"), segmentor], ids=["mmdet", "mmseg"])
@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: ExponentialMovingAverage(model).module, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copied", "averaged", "pickled"],
)
def test_a_model_made_from_another_notes_valid_areas(build, again):
    model = build()
    batch = detection_batch() if hasattr(model, "rpn_head") else segmentation_batch()
    with torch.no_grad():
        inputs = again(model).eval().data_preprocessor(batch)["inputs"]
    assert attached_valid_sizes(inputs) == tuple(SIZES)


def test_the_config_entry_takes_the_toolboxs_own_arguments():
    with pytest.raises(TypeError, match="pad_size_divisors"):
        det_preprocessor(pad_size_divisors=32)
    assert det_preprocessor(pad_size_divisor=64).pad_size_divisor == 64


def test_the_entries_of_the_docs_make_a_detector_of_a_stock_config():
    cfg = Config.fromstring("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'", ".py")
    snippets = re.findall(r"```python\n(.+?)```", (ROOT / "docs/padding.md").read_text("utf-8"), re.S)
    assert len(snippets) == 2
    for snippet in snippets:
        cfg.merge_from_dict(Config.fromstring(snippet, ".py").to_dict())
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    with recorded(model.neck) as calls, torch.no_grad():
        model.test_step(detection_batch(SIZES[:2]))
    assert attached_valid_sizes(calls[0][0]) == downsampled(SIZES[:2], 4)


@pytest.mark.slow
def test_two_processes_train_on_valid_areas(tmp_path):
    """Through mmengine's DistributedDataParallel, which hands the batch on to the model."""
    script = Path(__file__).parent / "distributed" / "valid_areas.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2))
    assert first["sizes"] == downsampled(SIZES[:2], 4)
    assert second["sizes"] == downsampled(SIZES[1:], 4)
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name
    assert first["losses"] != second["losses"]


def test_unequal_test_images_are_padded_as_mmseg_pads_in_training():
    """So what docs/padding.md measures on test batches of 8 sizes holds for mmseg's own training batches, too."""
    from mmseg.structures import SegDataSample

    cfg = Config.fromfile(ROOT / "configs/demo/upernet_smlpnet-mini_coins.py").model.data_preprocessor
    init_default_scope("mmseg")
    images = [torch.randint(0, 256, (3, 40 + 9 * i, 90 - 5 * i), dtype=torch.uint8) for i in range(8)]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, *image.shape[1:]))) for image in images]
    stock = MODELS.build({**cfg, "size": None, "size_divisor": 32})
    ours = MODELS.build({**cfg, "type": "mmsmlp.SegDataPreProcessor"})
    in_training = stock({"inputs": images, "data_samples": samples}, training=True)["inputs"]
    in_testing = ours({"inputs": images, "data_samples": None}, training=False)["inputs"]
    assert torch.equal(in_testing, in_training)
