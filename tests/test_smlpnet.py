"""The backbone: parity with the official model, any size, the OpenMMLab dialect, loading."""

import copy
import json
import warnings

import pytest
import torch
from conftest import DATA, MINI
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import kept_for_backward
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmsmlp import SMLPNet
from mmsmlp.resize import METHODS
from mmsmlp.weights.spach import convert_spach

OFFICIAL = json.loads((DATA / "official_keys.json").read_text())


def mini(**kwargs) -> SMLPNet:
    return SMLPNet(MINI, **{"img_size": 64, **kwargs})


def backbone_part(state_dict: dict) -> dict:
    return {key[len("backbone.") :]: value for key, value in state_dict.items() if key.startswith("backbone.")}


class GoldenNet(nn.Module):
    """The miniature classifier of the golden data, with its official weights."""

    def __init__(self, weights, dtype):
        super().__init__()
        self.backbone = mini()
        self.head = nn.ModuleDict({"fc": nn.Linear(64, 10)})
        self.load_state_dict(convert_spach(weights))
        self.to(dtype).eval()

    def forward(self, x):
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def parity(request, golden, golden_group):
    """A golden network in one precision, its input, and that precision's tolerance."""
    net = GoldenNet(golden_group("state_dict/"), request.param)
    x = golden["input"].to(request.param).clone().requires_grad_()
    return net, x, 1e-6 if request.param == torch.float64 else 1e-5


@pytest.mark.parametrize("stage", range(4))
def test_every_stage_equals_the_official_one(parity, golden, relative_error, stage):
    net, x, tolerance = parity
    maps = {}
    net.backbone.stages[stage].register_forward_hook(lambda module, args, out: maps.update(out=out))
    net(x)
    assert relative_error(maps["out"], golden[f"stage{stage}"]) < tolerance


def test_logits_equal_the_official_ones(parity, golden, relative_error):
    net, x, tolerance = parity
    assert relative_error(net(x), golden["logits"]) < tolerance


def test_every_gradient_equals_the_official_one(parity, golden, golden_group, relative_error):
    net, x, tolerance = parity
    net(x).square().sum().backward()
    wanted = convert_spach(golden_group("grad/"))
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert gradients.keys() == wanted.keys()
    errors = {name: relative_error(gradients[name], wanted[name]) for name in wanted}
    errors["input"] = relative_error(x.grad, golden["input_grad"])
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("arch", OFFICIAL)
def test_parameters_equal_the_official_count_and_keys(arch):
    with torch.device("meta"):
        net = nn.ModuleDict({"backbone": SMLPNet(arch), "head": nn.ModuleDict({"fc": None})})
        net["head"]["fc"] = nn.Linear(net["backbone"].channels[-1], 1000)
        official = convert_spach({key: torch.empty(shape) for key, shape in OFFICIAL[arch]["keys"].items()})
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in official.items()}
    counts = {"tiny": 24_123_584, "small": 48_558_136, "base": 65_880_408}
    assert sum(p.numel() for p in net.parameters()) == OFFICIAL[arch]["params"] == counts[arch]


STANDING_SIZES = [(1, 1), (1, 70), (70, 1), (3, 5), (31, 33), (61, 83), (64, 64), (65, 68), (128, 40)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("height", "width"), STANDING_SIZES)
def test_maps_have_ceil_sizes_and_finite_values_at_any_size(height, width, method):
    net = mini(interpolation=method).eval()
    maps = net(torch.randn(2, 3, height, width))
    wanted = [(2, 8 * 2**i, -(-height // 2 ** (i + 2)), -(-width // 2 ** (i + 2))) for i in range(4)]
    assert [tuple(m.shape) for m in maps] == wanted
    assert all(m.isfinite().all() for m in maps)


ONE_OFF = [(225, 225), (226, 227), (225, 228), (228, 228)]  # every grid one position off the anchor


@pytest.mark.parametrize("size", ONE_OFF)
def test_sizes_one_off_the_anchor_put_every_grid_one_off(size):
    net = SMLPNet({**MINI, "depths": (1, 1, 1, 1)}).eval()
    grids = [tuple(m.shape[2:]) for m in net(torch.randn(1, 3, *size))]
    assert grids == [(height + 1, width + 1) for height, width in net.grids]


@pytest.mark.parametrize("size", ONE_OFF)
@pytest.mark.parametrize("method", METHODS)
def test_float32_equals_float64_one_off_the_anchor(size, method, relative_error):
    net = SMLPNet(MINI, interpolation=method).eval()
    x = torch.randn(1, 3, *size)
    single = net(x)
    for a, b in zip(single, net.double()(x.double())):
        assert relative_error(a, b) < 1e-5


def test_a_training_step_one_off_the_anchor_has_the_gradients_of_float64(relative_error):
    net = SMLPNet(MINI)
    x = torch.randn(2, 3, 225, 228)
    gradients = []
    for module, dtype in ((copy.deepcopy(net), torch.float32), (net.double(), torch.float64)):
        sum(m.square().mean() for m in module(x.to(dtype))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert relative_error(*gradients) < 1e-4


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 150), width=st.integers(1, 150), batch=st.integers(1, 3))
def test_any_size_gives_the_same_for_an_image_alone_and_in_a_batch(height, width, batch):
    torch.manual_seed(height * 151 + width)
    net = mini().double().eval()
    x = torch.randn(batch, 3, height, width, dtype=torch.float64)
    for together, alone in zip(net(x), net(x[-1:])):
        torch.testing.assert_close(together[-1:], alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (65, 97)])
def test_transposing_map_axis_weights_and_kernels_transposes_the_output(height, width, method):
    net = mini(interpolation=method).double().eval()
    mirrored = copy.deepcopy(net)
    for module in mirrored.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3)
        if hasattr(module, "mix_w"):
            module.mix_w.weight, module.mix_h.weight = module.mix_h.weight, module.mix_w.weight
            module.mix_w.bias, module.mix_h.bias = module.mix_h.bias, module.mix_w.bias
            fused = module.fuse.weight.data.chunk(3, 1)
            module.fuse.weight.data = torch.cat((fused[0], fused[2], fused[1]), 1)
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    for a, b in zip(mirrored(x.transpose(2, 3)), net(x)):
        torch.testing.assert_close(a, b.transpose(2, 3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("out_norm", [False, True])
def test_maps_are_contiguous(out_norm, memory_format):
    """mmcv's RoIAlign ignores strides: channels-last maps would reach a detector's heads scrambled, silently."""
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=memory_format)
    assert all(m.is_contiguous() for m in mini(out_norm=out_norm).eval()(x))


def test_forward_leaves_no_state_behind():
    net = mini().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    x = torch.randn(1, 3, 64, 64)
    first = net(x)
    net(torch.randn(2, 3, 90, 33))
    assert all(torch.equal(a, b) for a, b in zip(first, net(x)))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert attributes == {name: set(vars(module)) for name, module in net.named_modules()}


@pytest.mark.parametrize("size", [(64, 64), (90, 48)])
def test_tracing_works(size):
    """The toolboxes' own get_flops.py and TensorBoard's graphs trace the model."""
    net = mini().eval()
    x = torch.randn(1, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer says that sizes become constants: they do
        traced = torch.jit.trace(net, x, check_trace=False)  # the first call also builds the resize matrices
    for a, b in zip(traced(x), net(x)):
        torch.testing.assert_close(a, b)


@pytest.mark.needs_torch("2.11", reason="torch.export of 2.1 traces no functools.lru_cache")
def test_exporting_leaves_no_fake_tensors_behind():
    net = mini().eval()
    x = torch.randn(1, 3, 148, 148)  # a size that no other test uses: nothing about it is cached yet
    exported = torch.export.export(net, (x,))
    assert all(type(m) is torch.Tensor for m in net(x))
    for a, b in zip(exported.module()(x), net(x)):
        torch.testing.assert_close(a, b)


def test_training_steps_take_a_different_size_every_time():
    net = mini(drop_path_rate=0.1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for size in ((64, 64), (40, 90), (97, 33), (65, 65)):
        optimizer.zero_grad()
        sum(m.mean() for m in net(torch.randn(2, 3, *size))).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (3, 0), (2, 1), (-1,), (-1, -3), 1, -2])
def test_out_indices_select_maps_in_any_order(out_indices):
    every, net = mini().eval(), mini(out_indices=out_indices).eval()
    net.load_state_dict({k: v for k, v in every.state_dict().items() if k in net.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    maps = every(x)
    indices = (out_indices,) if isinstance(out_indices, int) else out_indices
    got = net(x)
    assert len(got) == len(indices)
    assert all(torch.equal(got[k], maps[i]) for k, i in enumerate(indices))


@pytest.mark.parametrize(("out_indices", "built"), [((0,), 1), ((1, 0), 2), (-2, 3), ((3,), 4)])
def test_unused_stages_are_not_built(out_indices, built):
    net = mini(out_indices=out_indices)
    assert len(net.stages) == len(net.downsample_layers) == built
    assert hasattr(net, "norm3") == (built == 4)


def test_out_norm_adds_norms_that_start_as_the_identity():
    plain, normed = mini().eval(), mini(out_norm=True).eval()
    result = normed.load_state_dict(plain.state_dict(), strict=False)
    assert {key.split(".")[0] for key in result.missing_keys} == {"norm0", "norm1", "norm2"}
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(normed(x), plain(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # eps of the batch norms


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 3, 4])
def test_frozen_stages_get_no_gradients_and_stay_in_eval_mode_after_train(frozen_stages):
    net = mini(frozen_stages=frozen_stages, out_norm=True).eval().train()
    frozen = [net.downsample_layers[0]] if frozen_stages >= 0 else []
    for i in range(max(frozen_stages, 0)):
        frozen += [net.downsample_layers[i], net.stages[i], getattr(net, f"norm{i}")]
    frozen_ids = {id(p) for module in frozen for p in module.parameters()}
    assert all(p.requires_grad == (id(p) not in frozen_ids) for p in net.parameters())
    assert not any(m.training for module in frozen for m in module.modules())
    assert all(stage.training for stage in net.stages[max(frozen_stages, 0) :])


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("frozen_stages", [0, 1, 2, 3])
def test_frozen_stages_are_unchanged_by_a_step(frozen_stages, with_cp):
    """Parameters and buffers."""
    net = mini(frozen_stages=frozen_stages, with_cp=with_cp, out_norm=True, drop_path_rate=0.2).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=0.1)
    sum((m * torch.randn_like(m)).sum() for m in net(torch.randn(8, 3, 64, 64))).backward()
    optimizer.step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    free = [f"{part}{i}." for part in ("stages.", "downsample_layers.", "norm") for i in range(frozen_stages, 4)]
    if frozen_stages == 0:
        free.remove("downsample_layers.0.")
    assert changed == {key for key in before if key.startswith(tuple(free))}


@pytest.mark.parametrize("norm_eval", [False, True])
def test_norm_eval_keeps_batch_norms_in_eval_mode_after_train(norm_eval):
    net = mini(norm_eval=norm_eval).train()
    assert {m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {not norm_eval}
    assert net.training


@pytest.mark.parametrize("with_cp", [False, True])
def test_norm_eval_keeps_the_running_statistics_in_training(with_cp):
    net = mini(norm_eval=True, with_cp=with_cp).train()
    before = [buffer.clone() for buffer in net.buffers()]
    sum(m.square().mean() for m in net(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before))
    assert all(p.grad is not None for p in net.parameters())  # the norms' own weights go on learning


@pytest.mark.parametrize(("norm_type", "wanted"), [("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm)])
def test_norm_cfg_is_that_of_every_batch_norm(norm_type, wanted):
    net = mini(norm_cfg={"type": norm_type, "momentum": 0.03}, out_norm=True)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 2 * 5 + 4
    assert all(type(norm) is wanted and norm.momentum == 0.03 for norm in norms)


@pytest.mark.parametrize("call", ["train", "eval"])
def test_train_and_eval_return_the_module(call):
    net = mini()
    assert getattr(net, call)() is net


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"drop_path_rate": 0.5},
        {"frozen_stages": 2},
        {"norm_eval": True},
        {"norm_cfg": {"type": "BN", "momentum": None}},  # the cumulative average
    ],
    ids=str,
)
def test_with_cp_gives_the_same_maps_gradients_and_statistics(kwargs, autocast):
    plain, recomputed = mini(**kwargs), mini(with_cp=True, **kwargs)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 70, 50)
    results = []
    for net in (plain.train(), recomputed.train()):
        for step in range(2):  # the second one shows what the first one left behind
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                maps = net(x)
            sum(m.float().square().mean() for m in maps).backward()
        gradients = [p.grad for p in net.parameters() if p.requires_grad]
        results.append([*maps, *gradients, *net.buffers()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(64, 64), (90, 70)])
def test_with_cp_keeps_less_for_the_backward_pass(size):
    x = torch.randn(2, 3, *size)
    assert all(maps.requires_grad for maps in mini(with_cp=True)(x))
    assert kept_for_backward(mini(with_cp=True), x) < 0.45 * kept_for_backward(mini(), x)


def test_bf16_autocast_stays_close_to_float32():
    net = mini().eval()
    x = torch.randn(1, 3, 90, 70)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    for a, b in zip(low, net(x)):
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max()


def test_training_under_bf16_autocast_has_float32_gradients_close_to_those_without():
    """In the direction of the whole gradient; single small ones are noise in bf16."""
    net = mini().train()
    x, weights = torch.randn(4, 3, 90, 70), None
    gradients = []
    for autocast in (True, False):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            maps = net(x)
        weights = weights or [torch.randn_like(m, dtype=torch.float32) for m in maps]
        sum((m.float() * w).sum() for m, w in zip(maps, weights)).backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())
        gradients.append(torch.cat([p.grad.flatten().clone() for p in net.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize(("arch", "rate", "blocks"), [("tiny", 0.0, 26), ("small", 0.2, 38), ("base", 0.3, 38)])
def test_drop_path_rates_grow_linearly_over_all_blocks(arch, rate, blocks):
    with torch.device("meta"):
        rates = [block.drop_path.rate for stage in SMLPNet(arch).stages for block in stage]
    assert rates == pytest.approx(torch.linspace(0, rate, blocks).tolist())


DEPTHS = [
    ("downsample_layers.0.weight", 0),
    ("stages.0.0.local.norm.bias", 1),
    ("downsample_layers.1.weight", 2),
    ("stages.1.0.sparse_mlp.mix_w.weight", 2),
    ("downsample_layers.2.weight", 3),
    ("stages.2.0.sparse_mlp.fuse.weight", 3),
    ("stages.2.1.channel_mlp.fc1.weight", 4),
    ("downsample_layers.3.weight", 5),
    ("stages.3.0.local.conv.weight", 5),
    ("norm0.weight", 6),
    ("norm3.bias", 6),
]


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_layer_depth_counts_blocks(name, depth, prefix):
    assert mini(out_norm=True).get_layer_depth(prefix + name, prefix) == (depth, 7)


@pytest.mark.parametrize("name", ["head.fc.weight", "neck.stages.0.0.conv.weight"])
def test_what_is_not_the_backbones_is_the_last_layer(name):
    assert mini().get_layer_depth(name, "backbone.") == (6, 7)


def test_layers_that_are_not_built_do_not_count():
    assert mini(out_indices=(1,)).get_layer_depth("stages.1.0.local.conv.weight") == (2, 4)


@pytest.mark.needs_torch("2.11", reason="a whole graph of torch.compile holds no hasattr of a tensor in 2.1")
@pytest.mark.parametrize(
    ("size", "kwargs"), [((64, 64), {"drop_path_rate": 0.3}), ((90, 48), {}), ((90, 48), {"interpolation": "scaled"})]
)
def test_tracing_by_torch_compile_has_no_graph_breaks(size, kwargs):
    """`fullgraph` makes a break an error; the slow test below also generates code."""
    torch._dynamo.reset()  # it compiles a function a few times, then gives up: other tests count, too
    net = mini(**kwargs).train()
    compiled = torch.compile(net, fullgraph=True, dynamic=False, backend="eager")
    x = torch.randn(2, 3, *size)
    torch.manual_seed(1)
    maps = compiled(x)
    torch.manual_seed(1)
    for a, b in zip(maps, net(x)):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.needs_torch("2.11", reason="a whole graph of torch.compile holds no hasattr of a tensor in 2.1")
@pytest.mark.parametrize("size", [(32, 32), (45, 24)])
def test_a_compiled_network_gives_the_same_maps_gradients_and_statistics(size):
    torch._dynamo.reset()
    net = SMLPNet({"embed_dims": 8, "depths": (1, 1)}, img_size=32, out_indices=(0, 1)).double()
    other = copy.deepcopy(net)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weights = [torch.randn_like(m) for m in net.eval()(x)]
    results = []
    for module in (torch.compile(net.train(), fullgraph=True, dynamic=False), other.train()):
        maps = module(x)
        sum((m * w).sum() for m, w in zip(maps, weights)).backward()
        results.append([*maps, *(p.grad for p in module.parameters()), *module.buffers()])
    # relative to 1, too: a bias right before a norm has no gradient but rounding
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("img_size", "grids"), [(64, (16, 8, 4, 2)), (100, (25, 13, 7, 4))])
def test_img_size_sets_the_anchor_grids(img_size, grids):
    assert mini(img_size=img_size).grids == [(g, g) for g in grids]


def test_a_rectangular_img_size_is_height_then_width():
    block = mini(img_size=(64, 96)).stages[0][0].sparse_mlp
    assert (block.mix_h.length, block.mix_w.length) == (16, 24)


@pytest.mark.parametrize("name", ["mmsmlp.SMLPNet", "mmsmlp.sMLPNet", SMLPNet])
def test_the_registry_builds_it_by_name_and_by_class(name):
    assert type(ROOT_MODELS.build({"type": name, "arch": MINI, "img_size": 64})) is SMLPNet


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"arch": "huge"}, "unknown arch 'huge', choose one of 'tiny', 'small', 'base'"),
        ({"arch": {"depths": (1, 1)}}, "an arch dict has the keys embed_dims and depths"),
        ({"arch": {**MINI, "heads": 4}}, "got 'embed_dims', 'depths', 'heads'"),
        ({"arch": {"embed_dims": 8, "depths": (1, 0)}}, "must be positive"),
        ({"interpolation": "nearest"}, "unknown interpolation 'nearest'"),
        ({"out_indices": (0, 4)}, r"from -4 to 3, got \(0, 4\)"),
        ({"out_indices": (0, -4)}, "distinct"),
        ({"out_indices": ()}, "distinct"),
        ({"img_size": 0}, "img_size must be a positive int or"),
        ({"img_size": (64, 64, 3)}, r"got \(64, 64, 3\)"),
        ({"frozen_stages": 5}, "frozen_stages must be -1 .* to 4, got 5"),
        ({"drop_path_rate": 1.5}, r"drop_path_rate must be in \[0, 1\), got 1.5"),
        ({"drop_path_rate": -0.1}, "got -0.1"),
        ({"in_channels": 0}, "in_channels must be a positive int, got 0"),
        ({"arch": None}, "unknown arch None"),
        ({"arch": {"embed_dims": 8.5, "depths": (1,)}}, "must be positive"),
        ({"arch": {"embed_dims": 8, "depths": 4}}, "depths a list"),
        ({"arch": {**MINI, "mlp_ratio": 0}}, "must be positive"),
        ({"out_indices": None}, "got None"),
        ({"img_size": 224.0}, "got 224.0"),
        ({"norm_cfg": {"type": "GN"}}, "'BN', 'SyncBN', got 'GN'"),
    ],
)
def test_a_wrong_argument_is_named_with_the_good_ones(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SMLPNet(**{"arch": MINI, **kwargs})


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64), (0, 3, 64, 64), (1, 3, 64, 64, 1)])
def test_a_wrong_input_is_named_with_what_was_expected(shape):
    with pytest.raises(ValueError, match=r"takes images \(N, 3, H, W\) with N, H, W >= 1, got"):
        mini()(torch.zeros(shape))


def test_a_state_dict_makes_the_round_trip():
    given, net = mini(), mini()
    net.load_state_dict(copy.deepcopy(given.state_dict()))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in given.state_dict().items())
