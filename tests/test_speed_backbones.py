"""The backbones that the benchmark of speed compares are what they are said to be, and run as its tables say."""

import pytest
import torch
from conftest import MINI
from speed import backbones
from speed.backbones import OURS, PAPER
from speed.cyclemlp import CycleFC, CycleMLP
from speed.paper import PaperSMLPNet

from mmsmlp import SMLPNet
from mmsmlp.flops import count_macs
from mmsmlp.weights.spach import convert_spach


def backbone_part(state_dict: dict) -> dict:
    return {key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")}


def linear(name: str, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient of the paper's formulation in the shape of ours."""
    return gradient[..., 0, 0] if name.endswith(("mix_h.weight", "mix_w.weight", "fuse.weight")) else gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=str)
def test_the_papers_formulation_passes_the_golden_test(golden, golden_group, relative_error, dtype, tolerance):
    net = PaperSMLPNet(**MINI, img_size=64).eval()
    weights = convert_spach(golden_group("state_dict/"))
    net.load_smlpnet(backbone_part(weights))
    net.to(dtype)
    maps = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, args, out: maps.append(out))
    x = golden["input"].to(dtype).clone().requires_grad_()
    head = torch.nn.functional.linear
    logits = head(net(x)[0].mean((2, 3)), weights["head.fc.weight"].to(dtype), weights["head.fc.bias"].to(dtype))
    logits.square().sum().backward()
    errors = {f"stage{i}": relative_error(m, golden[f"stage{i}"]) for i, m in enumerate(maps)}
    errors |= {
        "logits": relative_error(logits, golden["logits"]),
        "input": relative_error(x.grad, golden["input_grad"]),
    }
    wanted = backbone_part(convert_spach(golden_group("grad/")))
    gradients = {name: linear(name, parameter.grad) for name, parameter in net.named_parameters()}
    assert gradients.keys() == wanted.keys()
    errors |= {name: relative_error(gradients[name], wanted[name]) for name in wanted}
    assert len(maps) == 4
    assert max(errors.values()) < tolerance, errors


def test_in_training_its_gradients_equal_ours(relative_error):
    ours = SMLPNet(MINI, img_size=64, out_indices=(3,)).double()
    papers = PaperSMLPNet(**MINI, img_size=64).double()
    papers.load_smlpnet(ours.state_dict())
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    for net in (ours, papers):
        (maps,) = net(x)
        maps.backward(torch.linspace(-1, 1, maps.numel(), dtype=torch.float64).view_as(maps))
    for (name, parameter), (same, other) in zip(ours.named_parameters(), papers.named_parameters()):
        assert name == same
        # The last block's shift is taken away by the norm that follows: its gradients are zero but for rounding.
        if name != "stages.3.0.channel_mlp.fc2.bias":
            assert relative_error(linear(name, other.grad), parameter.grad) < 1e-9, name


def test_the_timed_one_has_the_shapes_of_the_tiny_size_and_its_maps_are_contiguous():
    with torch.device("meta"):
        papers, ours = backbones.build(PAPER, (224, 224)), backbones.build(OURS, (224, 224))
        papers.load_smlpnet(ours.state_dict())
        maps = []
        for stage in papers.stages:
            stage.register_forward_hook(lambda module, args, out: maps.append(out))
        papers(torch.zeros(2, 3, 224, 224))
    assert len(maps) == 4
    assert all(m.is_contiguous() for m in maps)


def test_the_papers_formulation_takes_its_own_size_only():
    net = PaperSMLPNet(**MINI, img_size=64)
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, 64, 96))


def test_cyclemlp_has_its_published_parameters_and_cost():
    network = CycleMLP((3,)).eval()
    parameters = sum(p.numel() for p in network.parameters()) + 1000 * (512 + 1)  # with the classifier
    assert round(parameters / 1e6, 1) == 26.8
    macs = count_macs(network, lambda: network(torch.zeros(1, 3, 224, 224)))
    assert round(sum(macs.values()) / 1e9, 1) == 3.9


@pytest.mark.parametrize("along_w", [False, True])
def test_a_cycle_fc_reads_its_channels_at_offsets_that_go_round(along_w, relative_error):
    layer = CycleFC(7, along_w).double()
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64)
    axis = 3 if along_w else 2
    read = torch.zeros_like(x)
    for channel, offset in enumerate([0, 1, -1, 0, 1, -1, 0]):  # zeros from outside of the map
        size = x.shape[axis]
        inside = slice(max(-offset, 0), size - max(offset, 0)), slice(max(offset, 0), size + min(offset, 0))
        source = x[:, channel].narrow(axis - 1, inside[1].start, size - abs(offset))
        read[:, channel].narrow(axis - 1, inside[0].start, size - abs(offset)).copy_(source)
    wanted = torch.einsum("oc,nchw->nohw", layer.weight[..., 0, 0], read)
    assert relative_error(layer(x), wanted) < 1e-12


@pytest.mark.parametrize("name", list(backbones.BACKBONES))
def test_every_backbone_makes_the_maps_that_are_timed(name):
    sizes = [(224, 224), (96, 160)] if backbones.BACKBONES[name].any_size else [(224, 224)]
    for size in sizes:
        net = backbones.build(name, size)
        net.train(False)
        with torch.inference_mode():
            maps = net(torch.zeros(1, 3, *size))
        wanted = [32] if size == (224, 224) else [4, 8, 16, 32]
        grids = [tuple(m.shape[2:]) for m in maps if m.ndim == 4]
        if name != "MLP-Mixer-S/16" and grids:  # ConvNeXt pools, Mixer has one stride
            assert grids == [tuple(-(-side // stride) for side in size) for stride in wanted]


def test_counting_without_computing_gives_the_same():
    net = backbones.build(OURS, (96, 64)).eval()
    images = torch.zeros(2, 3, 96, 64)
    assert backbones.macs(OURS, (2, 96, 64)) == sum(count_macs(net, lambda: net(images)).values())


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_runs_in_its_mode_and_type(mode, dtype):
    net = SMLPNet(MINI, img_size=64)
    seen = []
    fuse = net.stages[0][0].sparse_mlp.fuse
    fuse.register_forward_hook(lambda module, args, out: seen.append((out.dtype, out.requires_grad, net.training)))
    backbones.pass_or_step(net, torch.zeros(2, 3, 64, 64), mode, dtype)()
    training = mode == "train"
    if seen:  # a path that folds layers does not call them
        assert seen == [(torch.bfloat16 if dtype == "bf16" else torch.float32, training, training)]
    assert all((p.grad is not None) == training for p in net.parameters())
