"""Trainings that are interrupted and go on: a small runner of mmengine's, in this process; the demo in processes of its
own is in test_stress.py."""

import itertools
import multiprocessing
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmsmlp.checkpoint_hook import is_whole

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from stress.hooks import KillHook

SAMPLES, BATCH = 10, 2
NAMES = itertools.count()  # runners of one name share their history


class Noisy(torch.utils.data.Dataset):
    """Samples that are augmented by all three generators."""

    metainfo = {"name": "noisy"}

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return {"inputs": noise + index, "index": index}


class Model(BaseModel):
    """A line, with dropout."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 1)
        self.seen = []

    def forward(self, inputs, index, mode="tensor"):
        out = self.line(nn.functional.dropout(inputs, 0.3, self.training))
        if mode == "loss":
            self.seen.append(index.tolist())
            return {"loss": (out**2).mean() * 0.01}
        return [{"score": value} for value in out.flatten()]


class Mean(BaseMetric):
    """What a validation finds: it draws random numbers, too."""

    def process(self, data_batch, data_samples):
        self.results += [float(sample["score"]) + random.random() for sample in data_samples]

    def compute_metrics(self, results):
        return {"mean": sum(results) / len(results)}


class Stop(Hook):
    """Ends the run at a moment."""

    priority = "LOWEST"

    def __init__(self, before=None, in_validation=None):
        self.before, self.in_validation, self.validated = before, in_validation, []

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.before:
            raise KeyboardInterrupt

    def before_val_epoch(self, runner):
        if runner.iter == self.in_validation:
            raise KeyboardInterrupt

    def after_val_epoch(self, runner, metrics):
        self.validated.append((runner.iter, metrics["all/mean"]))


def runner(work_dir, *, by_epoch=False, workers=0, sampler=None, interval=4, resume=False, stop=None, **options):
    cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 4, "val_interval": 1}
    if not by_epoch:
        cfg = {"type": "IterBasedTrainLoop", "max_iters": 20, "val_interval": 4}
    sampler = sampler or (DefaultSampler if by_epoch else InfiniteSampler)

    def loader(kind, shuffle, workers=0):
        return {
            "batch_size": BATCH,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "collate_fn": {"type": "default_collate"},
            "dataset": Noisy(),
            "sampler": {"type": kind, "shuffle": shuffle},
        }

    checkpoint = {"type": "mmsmlp.CheckpointHook", "interval": interval, "by_epoch": False, "max_keep_ckpts": 1}
    checkpoint |= {"save_best": "all/mean", "rule": "less", **options}
    hooks = {"resume": {"type": "mmsmlp.ResumeHook"}, "checkpoint": checkpoint}
    return Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=loader(sampler, True, workers),
        val_dataloader=loader(DefaultSampler, False),
        train_cfg=cfg,
        val_cfg={},
        val_evaluator=Evaluator(Mean(prefix="all")),
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}},
        param_scheduler={"type": "PolyLR", "by_epoch": False, "begin": 0, "end": 20},
        default_hooks=hooks,
        custom_hooks=[stop or Stop(), {"type": "EMAHook"}],
        randomness={"seed": 3},
        resume=resume,
        experiment_name=f"test_resume_{next(NAMES)}",
        log_level="WARNING",
        log_processor={"by_epoch": by_epoch},
    )


def train(work_dir, resume=False, **options):
    """The weights at the end and the results of the validations, or what was found before the interruption."""
    stop = options.setdefault("stop", Stop())
    torch.manual_seed(0)
    found = runner(work_dir, resume=resume, **options)
    try:
        found.train()
    except KeyboardInterrupt:
        return None, stop.validated
    return torch.cat([value.flatten() for value in found.model.state_dict().values()]), stop.validated


LOOPS = {
    "iterations": {},
    "iterations, a sampler of epochs": {"sampler": DefaultSampler},
    "epochs": {"by_epoch": True},
}
WORKERS = pytest.param({"workers": 2}, id="worker processes", marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [*(pytest.param(LOOPS[name], id=name) for name in LOOPS), WORKERS])
@pytest.mark.parametrize("before", [2, 7, 18])
def test_an_interrupted_training_ends_bitwise_as_another(tmp_path, options, before):
    weights, validated = train(tmp_path / "whole", **options)
    stopped, first = train(tmp_path / "stopped", stop=Stop(before=before), **options)
    assert stopped is None
    resumed, second = train(tmp_path / "stopped", resume=True, **options)
    assert torch.equal(resumed, weights)
    assert dict(first) | dict(second) == dict(validated)


# Where `kill -9` strikes -> the iteration of the checkpoint that is whole then, and named.
MOMENTS = {
    "write:4:0.5": 0,
    "write:8:0": 4,
    "write:8:0.5": 4,
    "write:20:0.999": 16,
    "renamed:8:0": 4,
    "named:8:0": 8,
    "best:4:0.5": 4,
    "validation:8:0": 8,
    "validated:20:0": 20,
    "iteration:11:0": 8,
}


def train_until_killed(work_dir, moment):
    os.environ["MMSMLP_KILL"] = moment
    train(work_dir, stop=KillHook())


@pytest.mark.parametrize(("moment", "whole"), MOMENTS.items(), ids=MOMENTS)
def test_a_killed_training_ends_bitwise_as_another(tmp_path, moment, whole):
    weights, validated = train(tmp_path / "whole")
    # Not a fork of this process: PyTorch refuses gradients in one where other tests have started autograd's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmsmlp.resume", "mmsmlp.checkpoint_hook", "mmengine.runner"])
    process = context.Process(target=train_until_killed, args=(tmp_path / "killed", moment))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    pointer = tmp_path / "killed/last_checkpoint"
    assert whole == 0 or pointer.read_text().endswith(f"/iter_{whole}.pth")
    resumed, second = train(tmp_path / "killed", resume=True)
    assert torch.equal(resumed, weights)
    assert set(second) <= set(validated)
    assert {result for result in validated if result[0] > whole} <= set(second)
    assert whole in dict(second) or whole == 0 or moment.startswith(("write", "iteration", "renamed"))
    names = [sorted(path.name for path in (tmp_path / run).glob("*.pth")) for run in ("whole", "killed")]
    assert names[0] == names[1]


@pytest.mark.parametrize("by_epoch", [False, True], ids=["iterations", "epochs"])
@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "at the end"])
def test_a_validation_that_was_cut_off_is_run_again(tmp_path, by_epoch, last):
    options = {"by_epoch": by_epoch, "interval": 5 if by_epoch else 4}
    weights, validated = train(tmp_path / "whole", **options)
    cut = 20 if last else 10 if by_epoch else 8
    _, first = train(tmp_path / "stopped", stop=Stop(in_validation=cut), **options)
    assert cut not in dict(first)
    resumed, second = train(tmp_path / "stopped", resume=True, **options)
    assert second[0] == (cut, dict(validated)[cut])
    assert torch.equal(resumed, weights)


def test_a_finished_validation_that_the_checkpoint_knows_is_not_run_again(tmp_path):
    """The checkpoint is written again with the best score."""
    _, first = train(tmp_path, stop=Stop(before=4))
    _, second = train(tmp_path, resume=True)
    assert [iteration for iteration, _ in first] == [4]
    assert [iteration for iteration, _ in second] == [8, 12, 16, 20]


def test_the_number_of_workers_does_not_matter(tmp_path):
    assert torch.equal(train(tmp_path / "none")[0], train(tmp_path / "two", workers=2)[0])


def test_samples_are_augmented_anew_each_time(tmp_path):
    from mmsmlp.seeding import Place, SeededDataset

    data = SeededDataset(Noisy())
    values = [data[Place(0, (3, 0, 3, iteration, 0))]["inputs"] for iteration in (0, 1, 0)]
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[1])
    assert data.metainfo == Noisy.metainfo


def test_every_sample_is_seen_as_often_as_without_the_hook(tmp_path):
    found = runner(tmp_path, by_epoch=True)
    found.train()
    for epoch in range(4):
        batches = found.model.seen[5 * epoch : 5 * epoch + 5]
        assert sorted(sum(batches, [])) == list(range(SAMPLES))


@pytest.mark.parametrize("damage", ["torn", "torn pointer", "no pointer", "other pointer"])
def test_a_training_goes_on_from_the_newest_whole_checkpoint(tmp_path, damage, capfd):
    weights, _ = train(tmp_path / "whole", max_keep_ckpts=-1)
    work_dir = tmp_path / "stopped"
    train(work_dir, stop=Stop(before=14), max_keep_ckpts=-1)
    last, pointer = work_dir / "iter_12.pth", work_dir / "last_checkpoint"
    expected = 12
    if damage == "torn":
        last.write_bytes(last.read_bytes()[:-100])
        expected = 8
    elif damage == "no pointer":
        pointer.unlink()
    else:
        pointer.write_text("" if damage == "torn pointer" else "/elsewhere/iter_16.pth")
    found = runner(work_dir, resume=True, max_keep_ckpts=-1)
    found.call_hook("before_run")
    assert pointer.read_text() == str(work_dir / f"iter_{expected}.pth")
    assert f"resuming from the newest whole checkpoint, {work_dir}/iter_{expected}.pth" in capfd.readouterr().out
    assert torch.equal(train(work_dir, resume=True, max_keep_ckpts=-1)[0], weights)


def test_without_a_whole_checkpoint_a_training_starts_anew_and_says_so(tmp_path, capfd):
    weights, _ = train(tmp_path / "whole")
    work_dir = tmp_path / "stopped"
    train(work_dir, stop=Stop(before=6))
    (work_dir / "iter_4.pth").write_bytes(b"torn")
    assert torch.equal(train(work_dir, resume=True)[0], weights)
    assert "training starts from the beginning" in capfd.readouterr().out


def test_going_on_from_a_named_file_that_is_torn_is_refused(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"PK")
    found = runner(tmp_path / "run", resume=True)
    found._load_from = str(tmp_path / "torn.pth")
    with pytest.raises(OSError, match="torn.pth is damaged or was not written to its end: resume without naming"):
        found.train()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    class Full(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            if runner.iter == 7:  # the second one; its folder takes its place
                (tmp_path / ".iter_8.pth.partial").mkdir()

    train(tmp_path, stop=Stop(before=5))
    before = (tmp_path / "iter_4.pth").read_bytes()
    found = runner(tmp_path, resume=True)
    found.register_hook(Full())
    with pytest.raises(OSError, match=r"iter_8.pth cannot be written \(Is a directory\); those before it are whole"):
        found.train()
    assert (tmp_path / "iter_4.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_4.pth")
    assert not (tmp_path / ".iter_8.pth.partial").exists()


def test_what_is_no_longer_kept_is_deleted(tmp_path):
    (tmp_path / ".iter_2.pth.partial").write_bytes(b"half")
    train(tmp_path, max_keep_ckpts=2)
    assert sorted(path.name for path in tmp_path.glob("iter*")) == ["iter_16.pth", "iter_20.pth"]
    assert len(list(tmp_path.glob("best_*"))) == 1
    assert not list(tmp_path.glob(".*"))
    assert all(is_whole(path) for path in tmp_path.glob("*.pth"))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda content: content[:-1], lambda content: content[: len(content) // 2], lambda content: b""],
    ids=["one bit", "last byte", "half", "empty"],
)
def test_a_damaged_file_is_not_whole(tmp_path, damage):
    path = tmp_path / "a.pth"
    torch.save({"x": torch.randn(1000)}, path)
    assert is_whole(path)
    path.write_bytes(damage(path.read_bytes()))
    assert not is_whole(path)
