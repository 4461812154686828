"""The report on loading, what is refused, every loading path, and the refusal to resume on another grid."""

import re

import pytest
import torch
from conftest import MINI
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner, load_checkpoint, load_state_dict
from torch import nn

from mmsmlp import SMLPNet
from mmsmlp.resize import resize_axis_bias, resize_axis_weight


@pytest.fixture
def log_lines(monkeypatch):
    """Lines that the backbone logs, in order."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "callHandlers", lambda record: lines.append(record.msg))
    return lines


def test_loading_logs_one_line_that_all_matched(log_lines):
    SMLPNet(MINI, img_size=64).load_state_dict(SMLPNet(MINI, img_size=64).state_dict())
    assert log_lines == ["SMLPNet: 119 of 119 keys matched"]


def test_loading_logs_what_was_resized_from_what_to_what(log_lines):
    SMLPNet(MINI, img_size=64).load_state_dict(SMLPNet(MINI, img_size=96).state_dict())
    assert log_lines == [
        "SMLPNet: 119 of 119 keys matched; 20 axis weights and biases resized (24 -> 16, 12 -> 8, 6 -> 4, 3 -> 2)"
    ]


def test_loading_logs_what_is_missing_and_unexpected(log_lines):
    state = SMLPNet(MINI, img_size=64).state_dict()
    del state["norm3.weight"], state["norm3.bias"]
    state["head.fc.weight"] = torch.zeros(1)
    net = nn.ModuleDict({"backbone": SMLPNet(MINI, img_size=64)})
    net.load_state_dict({"backbone." + key: value for key, value in state.items()}, strict=False)
    assert log_lines == [
        "SMLPNet: 117 of 119 keys matched; 2 missing (norm3.bias, norm3.weight); 1 unexpected (head.fc.weight)"
    ]


@pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_state_dict], ids=["torch", "mmengine"])
def test_a_bare_backbone_takes_its_part_of_a_whole_models_weights(load, log_lines):
    given, net = SMLPNet(MINI, img_size=96), SMLPNet(MINI, img_size=64)
    state = {f"backbone.{key}": value for key, value in given.state_dict().items()}
    state["head.fc.weight"] = torch.zeros(1)
    keys = list(state)
    load(net, state, strict=False)
    assert log_lines[0] == (
        "SMLPNet: 119 of 119 keys matched below 'backbone.'; 20 axis weights and biases resized "
        "(24 -> 16, 12 -> 8, 6 -> 4, 3 -> 2); 1 unexpected (head.fc.weight)"
    )
    assert torch.equal(net.stages[2][1].channel_mlp.fc1.weight, given.stages[2][1].channel_mlp.fc1.weight)
    assert list(state) == keys, "the caller's dict was changed"


def test_a_strict_load_of_a_whole_models_weights_still_names_the_rest():
    state = {f"backbone.{key}": value for key, value in SMLPNet(MINI).state_dict().items()}
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "head.fc.weight"\.'):
        SMLPNet(MINI).load_state_dict({**state, "head.fc.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("given", "own", "message"),
    [
        (
            "base",
            "tiny",
            r"\(112, 3, 4, 4\) instead of \(80, 3, 4, 4\), and \d+ more keys .*, stage 1 has 10 blocks instead of 8\. "
            r"Given: base \(embed_dims 112, .*\); this backbone: tiny \(embed_dims 80",
        ),
        ({**MINI, "depths": (1, 1, 3, 1)}, MINI, r"stage 2 has 3 blocks instead of 2\. Given: .* \(1, 1, 3, 1\); this"),
        ({**MINI, "depths": (1, 1, 1, 1)}, MINI, r"stage 2 has 1 blocks instead of 2\. Given: .* \(1, 1, 1, 1\); this"),
        ({**MINI, "mlp_ratio": 2}, MINI, r"fc1\.weight is \(16, 8\) instead of \(24, 8\), and \d+ more keys"),
        (
            {**MINI, "patch_size": 2},
            MINI,
            r"downsample_layers\.0\.weight is \(8, 3, 2, 2\) instead of \(8, 3, 4, 4\)\.",
        ),
    ],
    ids=["base into tiny", "deeper", "shallower", "mlp_ratio", "patch_size"],
)
def test_another_arch_is_refused_on_a_load_that_is_not_strict(given, own, message):
    """mmengine, which loads init_cfg and load_from so, would only warn, and load the keys of equal shape."""
    with torch.device("meta"):
        state = SMLPNet(given).state_dict()
    net = SMLPNet(own)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match=message) as error:
        load_state_dict(net, state, strict=False)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("own", [{"out_indices": (0, 1)}, {"out_norm": True}], ids=str)
def test_stages_not_built_and_norms_not_given_are_no_other_arch(own):
    SMLPNet(MINI, **own).load_state_dict(SMLPNet(MINI).state_dict(), strict=False)


def test_stages_not_given_are_reported_as_missing(log_lines):
    SMLPNet(MINI).load_state_dict(SMLPNet(MINI, out_indices=(0, 1)).state_dict(), strict=False)
    assert re.match(r"SMLPNet: 46 of 119 keys matched; 66 missing \(downsample_layers\.2", log_lines[0])


def test_a_four_dimensional_axis_weight_is_refused_as_of_another_shape():
    """The likely mistake with weights converted by hand: the official 1x1 convolutions over an axis."""
    state = SMLPNet(MINI, img_size=64).state_dict()
    key = "stages.0.0.sparse_mlp.mix_w.weight"
    state[key] = state[key][:, :, None, None]
    with pytest.raises(RuntimeError, match=rf"{key} is \(16, 16, 1, 1\) instead of \(16, 16\)\. Given"):
        SMLPNet(MINI, img_size=64).load_state_dict(state)


@pytest.mark.parametrize("given", ["a prefix too many", "another model", "another model's backbone", "nothing"])
def test_loading_nothing_is_an_error(given):
    state = {
        "a prefix too many": {f"model.{key}": v for key, v in SMLPNet(MINI).state_dict().items()},
        "another model": {"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(3)},
        "another model's backbone": {"backbone.stages.0.0.norm.weight": torch.zeros(8)},
        "nothing": {},
    }[given]
    with pytest.raises(RuntimeError, match=r"none of the \d+ given keys fits.*prefix='backbone\.'"):
        SMLPNet(MINI).load_state_dict(state, strict=False)


def mini(img_size: int = 64, **kwargs) -> SMLPNet:
    return SMLPNet(MINI, img_size=img_size, **kwargs)


def checkpoint_of(net: nn.Module, path, prefix: str = "") -> str:
    torch.save({"state_dict": {prefix + key: value for key, value in net.state_dict().items()}, "meta": {}}, path)
    return str(path)


@pytest.mark.parametrize("way", ["load_state_dict", "init_cfg", "init_cfg with prefix", "load_checkpoint"])
def test_every_loading_path_resizes_to_the_own_anchor(way, tmp_path):
    """`load_checkpoint` is what mmengine's `load_from` calls."""
    given = mini(img_size=96)
    if way == "load_state_dict":
        net = mini()
        net.load_state_dict(given.state_dict())
    elif way == "load_checkpoint":
        net = mini()
        load_checkpoint(net, checkpoint_of(given, tmp_path / "given.pth"))
    else:
        prefix = "backbone." if "prefix" in way else ""
        init_cfg = {"type": "Pretrained", "checkpoint": checkpoint_of(given, tmp_path / "given.pth", prefix)}
        net = mini(init_cfg={**init_cfg, "prefix": prefix} if prefix else init_cfg)
        net.init_weights()
    own = net.state_dict()
    assert own["stages.0.0.sparse_mlp.mix_w.weight"].shape == (16, 16)
    for key, value in given.state_dict().items():
        if "mix_" in key:
            resize = resize_axis_weight if key.endswith("weight") else resize_axis_bias
            value = resize(value, len(own[key]))
        assert torch.equal(own[key], value), key


def test_a_resized_checkpoint_equals_the_original_at_the_new_anchor():
    given, net = mini(img_size=64).double().eval(), mini(img_size=96).double().eval()
    net.load_state_dict(given.state_dict())
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    for a, b in zip(net(x), given(x)):
        torch.testing.assert_close(a, b)


class Regressor(nn.Module):
    """A trainable model around the backbone, as small as mmengine's Runner takes it."""

    def __init__(self, img_size):
        super().__init__()
        self.backbone = SMLPNet(MINI, img_size=img_size)

    def train_step(self, data, optim_wrapper):
        loss = self.backbone(torch.stack(data))[-1].square().mean()
        optim_wrapper.update_params(loss)
        return {"loss": loss.detach()}


def train(work_dir, img_size, max_iters, hook=None, **kwargs) -> Runner:
    """Train through mmengine's real Runner, with AdamW and an exponential moving average."""
    runner = Runner(
        model=Regressor(img_size),
        work_dir=str(work_dir),
        train_dataloader={
            "dataset": [torch.randn(3, 64, 64) for _ in range(4)],
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "pseudo_collate"},
            "batch_size": 2,
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": max_iters},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-3}},
        custom_hooks=[{"type": "EMAHook"}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 2, "by_epoch": False}},
        default_scope="mmengine",
        experiment_name=f"{work_dir.name}_{img_size}_{max_iters}",
        **kwargs,
    )
    if hook:
        runner.register_hook(hook)
    runner.train()
    return runner


def test_resuming_on_another_grid_is_refused_before_the_first_step(tmp_path):
    train(tmp_path, 64, 2)
    saved = (tmp_path / "iter_2.pth").read_bytes()
    with pytest.raises(RuntimeError, match=r"belongs to axis weights of 16 positions.*have 24.*load_from=CHECKPOINT"):
        train(tmp_path, 96, 4, resume=True)
    assert (tmp_path / "iter_2.pth").read_bytes() == saved
    assert not (tmp_path / "iter_4.pth").exists()


def test_resuming_on_the_same_grid_goes_on(tmp_path):
    train(tmp_path, 64, 2)
    assert train(tmp_path, 64, 4, resume=True).iter == 4


class Keep(Hook):
    """Keeps the weights that training starts from, the moving average's too."""

    def before_train(self, runner):
        ema = next(hook for hook in runner.hooks if type(hook).__name__ == "EMAHook").ema_model
        self.weights = {k: v.clone() for k, v in runner.model.state_dict().items()}
        self.averaged = {k: v.clone() for k, v in ema.module.state_dict().items()}


def test_load_from_is_the_remedy_for_another_grid(tmp_path):
    train(tmp_path / "first", 64, 2)
    keep = Keep()
    train(tmp_path / "second", 96, 2, load_from=str(tmp_path / "first" / "iter_2.pth"), hook=keep)
    given = torch.load(tmp_path / "first" / "iter_2.pth", weights_only=False)["state_dict"]
    key = "backbone.stages.0.0.sparse_mlp.mix_w.weight"
    wanted = resize_axis_weight(given[key], 24)
    assert torch.equal(keep.weights[key], wanted)
    assert torch.equal(keep.averaged[key], wanted)


# Adafactor keeps state of other shapes than the parameters': no sign of a resumed run. It came with torch 2.5.
OPTIMIZERS = [getattr(torch.optim, name) for name in ("AdamW", "SGD", "Adafactor") if hasattr(torch.optim, name)]


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_a_fresh_optimizer_trains_resized_weights(optimizer_type):
    net = SMLPNet(MINI, img_size=96)
    net.load_state_dict(SMLPNet(MINI, img_size=64).state_dict())
    optimizer = optimizer_type(net.parameters(), lr=1e-3)
    before = net.stages[0][0].sparse_mlp.mix_w.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
        optimizer.step()
    assert not torch.equal(net.stages[0][0].sparse_mlp.mix_w.weight, before)


@pytest.mark.parametrize(
    ("given", "own", "message"),
    [
        ({"fusion": "sum"}, {}, r"lacks stages.*fuse.weight.*Given: .*fusion='sum'"),
        ({}, {"fusion": "sum"}, r"also has stages.*fuse.weight.*this backbone: .*fusion='sum'"),
        ({"local_mixing": False}, {}, r"lacks stages.*local.*Given: .*local_mixing=False"),
        (
            {"global_mixing": (True, True, False, True)},
            {},
            r"lacks stages.2.*global_mixing=\[True, True, F",
        ),
        ({"in_channels": 1}, {}, r"downsample_layers.0.weight is .*Given: .*in_channels 1; this backbone"),
    ],
    ids=str,
)
def test_weights_of_an_ablated_network_are_refused(given, own, message):
    """With strict=False, too, which would leave what is missing random without a word."""
    weights = SMLPNet(MINI, img_size=64, **given).state_dict()
    with pytest.raises(RuntimeError, match=message):
        SMLPNet(MINI, img_size=64, **own).load_state_dict(weights, strict=False)
