"""The study's other answers to "any resolution": what they share with the backbone, and what they compute."""

import pytest
import torch
from conftest import MINI
from mmengine.registry import MODELS, init_default_scope
from study.rivals import RIVALS, use_rival

from mmsmlp import SMLPNet
from mmsmlp.blocks import SMLPBlock
from mmsmlp.valid_area import attach_valid_sizes

STRIDES = (4, 8, 16, 32)
SIZES = [(64, 64), (1, 1), (65, 40), (97, 150), (130, 33)]


def backbone(img_size=64, **settings) -> SMLPNet:
    """A float64 backbone in eval mode whose batch norms have seen something."""
    net = SMLPNet(MINI, img_size=img_size, **settings).double()
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return net.eval()


def images(height, width, count=2):
    return torch.randn(count, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("img_size", [64, (32, 96), 40, 62])
def test_at_the_anchor_a_rival_equals_the_backbone(name, img_size):
    net = backbone(img_size).float()
    height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    x = images(height, width, 3).float()
    for ours, plain in zip(use_rival(net, name)(x), net(x), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (2, 0), (1,)])
def test_maps_have_the_backbones_sizes_and_are_contiguous(name, size, out_indices):
    net = backbone(out_indices=out_indices)
    x = images(*size)
    maps = use_rival(net, name)(x)
    assert isinstance(maps, tuple)
    assert [m.shape for m in maps] == [m.shape for m in net(x)]
    assert all(m.is_contiguous() and m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", RIVALS)
def test_away_from_the_anchor_a_rival_is_another_network(name):
    net, x = backbone(), images(97, 150)
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(use_rival(net, name)(x), net(x)))


@pytest.mark.parametrize("name", RIVALS)
def test_tensors_are_shared_under_their_names(name):
    net = backbone()
    state, rivals = net.state_dict(keep_vars=True), use_rival(net, name).state_dict(keep_vars=True)
    assert list(state) == list(rivals)
    assert all(state[key] is rivals[key] for key in state)


@pytest.mark.parametrize("name", RIVALS)
def test_the_backbone_stays_as_it_is(name):
    net, x = backbone(), images(97, 150)
    before = net(x)
    use_rival(net, name).train()
    assert not net.training
    assert all(torch.equal(a, b) for a, b in zip(net(x), before))


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_gives_every_image_what_it_has_alone(name):
    rival, x = use_rival(backbone(), name), images(97, 150, 3)
    for together, alone in zip(rival(x), rival(x[1:2])):
        torch.testing.assert_close(together[1:2], alone)


def bicubic_matrix(src: int, dst: int) -> torch.Tensor:
    """(dst, src): Keys' kernel with a = -0.75, half-pixel centres, four taps whatever the ratio, edges repeated."""

    def kernel(t: float, a: float = -0.75) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    matrix = torch.zeros(dst, src, dtype=torch.float64)
    for row in range(dst):
        centre = (row + 0.5) * src / dst - 0.5
        for tap in range(int(centre // 1) - 1, int(centre // 1) + 3):
            matrix[row, min(max(tap, 0), src - 1)] += kernel(centre - tap)
    return matrix


@pytest.mark.parametrize("fusion", ["concat", "sum", "weighted"])
@pytest.mark.parametrize("identity_branch", [True, False])
@pytest.mark.parametrize("size", [(11, 23), (5, 7), (3, 20), (8, 9), (11, 12)])
def test_features_are_resized_around_the_mixing_and_nowhere_else(fusion, identity_branch, size):
    """Anchor grid 8 x 12; the formula has matrices for everything."""
    net = backbone((32, 48), fusion=fusion, identity_branch=identity_branch)
    net.stages[0][0].sparse_mlp.act = torch.nn.Identity()
    mlp = use_rival(net, "features").stages[0][0].sparse_mlp
    x = torch.randn(2, 8, *size, dtype=torch.float64)

    z = mlp.norm(x)
    down = [bicubic_matrix(s, n) for s, n in zip(size, (8, 12))]
    up = [bicubic_matrix(n, s) for s, n in zip(size, (8, 12))]
    anchored = down[0] @ z @ down[1].T
    along_w = up[0] @ (anchored @ mlp.mix_w.weight.T + mlp.mix_w.bias) @ up[1].T
    along_h = up[0] @ (mlp.mix_h.weight @ anchored + mlp.mix_h.bias[:, None]) @ up[1].T
    branches = torch.stack([z, along_w, along_h][0 if identity_branch else 1 :])  # (branches, N, C, H, W)
    if fusion == "concat":
        wanted = torch.einsum("obc,bnchw->nohw", mlp.fuse.weight.view(8, len(branches), 8), branches)
    elif fusion == "sum":
        wanted = branches.sum(0)
    else:
        wanted = (branches * mlp.branch_weights[:, None, :, None, None]).sum(0)
    torch.testing.assert_close(mlp(x), wanted)


def test_the_rest_of_a_features_block_is_the_backbones():
    net = backbone()
    rival, x = use_rival(net, "features"), torch.randn(2, 8, 23, 30, dtype=torch.float64)
    block, theirs = net.stages[0][0], rival.stages[0][0]
    assert type(theirs) is SMLPBlock
    x1 = x + theirs.sparse_mlp(block.local(x))
    torch.testing.assert_close(theirs(x), x1 + block.channel_mlp(x1))


@pytest.mark.parametrize("size", [(40, 23), (5, 7), (17, 16)])
def test_a_constant_map_stays_constant_through_features_with_row_stochastic_weights(size):
    mlp = use_rival(backbone(), "features").stages[0][0].sparse_mlp
    x = torch.full((1, *size, 3), 0.7, dtype=torch.float64)
    for layer in (mlp.mix_w, mlp.mix_h):
        layer.weight.data, layer.bias.data = layer.weight.data.softmax(1), torch.zeros_like(layer.bias)
        torch.testing.assert_close(layer(x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_cp", [False, True])
def test_features_train_the_shared_parameters_and_statistics(with_cp):
    net = backbone(with_cp=with_cp)
    mean = net.norm3.running_mean.clone()
    sum(m.square().mean() for m in use_rival(net, "features").train()(images(97, 150))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    assert not torch.equal(net.norm3.running_mean, mean)


# Anchor, image -> where windows start in rows and in columns, by hand.
WINDOWS = [
    (64, (97, 150), [0, 32, 64], [0, 32, 64, 96]),
    (64, (33, 20), [0], [0]),
    (64, (20, 65), [0], [0, 32]),
    (160, (161, 285), [0, 32], [0, 64, 128]),
    (160, (160, 190), [0], [0, 32]),
    ((32, 96), (70, 128), [0, 32, 64], [0, 32]),
    (40, (41, 107), [0, 32], [0, 32, 64, 96]),
]


@pytest.mark.parametrize(("img_size", "size", "tops", "lefts"), WINDOWS)
def test_windows_are_stitched_as_a_loop_over_windows_and_tokens_does_it(img_size, size, tops, lefts):
    net = backbone(img_size)
    height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    x = images(*size)
    canvas = x.new_zeros(2, 3, tops[-1] + height, lefts[-1] + width)
    canvas[:, :, : size[0], : size[1]] = x
    windows = {(t, l): net(canvas[:, :, t : t + height, l : l + width]) for t in tops for l in lefts}  # noqa: E741
    for level, stitched in enumerate(use_rival(net, "windows")(x)):
        stride = STRIDES[level]
        assert stitched.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        wanted = torch.empty_like(stitched)
        for row in range(stitched.shape[2]):
            for column in range(stitched.shape[3]):
                tokens = []
                for (top, left), maps in windows.items():
                    r, c = row - top // stride, column - left // stride
                    if 0 <= r < maps[level].shape[2] and 0 <= c < maps[level].shape[3]:
                        tokens.append(maps[level][:, :, r, c])
                wanted[:, :, row, column] = torch.stack(tokens).mean(0)
        torch.testing.assert_close(stitched, wanted)


def test_many_images_and_many_windows_go_through_in_bounded_batches():
    net = backbone(out_indices=(3,))
    seen = []
    rival = use_rival(net, "windows")
    rival.downsample_layers[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for count, batches in [(1, [16, 16, 3]), (5, [15] * 11 + [10]), (17, [17] * 35)]:
        rival(images(64 + 4 * 32, 64 + 6 * 32, count))  # 5 x 7 windows
        assert seen == batches
        seen.clear()


def test_a_token_under_one_window_is_that_windows():
    net, x = backbone(), images(64, 256)
    stitched = use_rival(net, "windows")(x)
    for level, alone in enumerate(net(x[..., :64])):
        first = 32 // STRIDES[level]  # the second window starts at 32 pixels
        torch.testing.assert_close(stitched[level][..., :first], alone[..., :first])


@pytest.mark.parametrize(("name", "first", "last"), [("windows", 32, 127), ("features", 0, 255)])
def test_how_far_a_token_sees(name, first, last):
    """The token at pixel 64 of 256 is in the windows that start at 32 and 64; features know no such border."""
    x = images(64, 256, 1).requires_grad_()
    use_rival(backbone(), name)(x)[2][:, :, :, 64 // 16].sum().backward()
    seen = x.grad.abs().amax((0, 1, 2)).nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (first, last)


@pytest.mark.parametrize("name", RIVALS)
def test_a_classifier_pools_the_rivals_map(name):
    init_default_scope("mmpretrain")
    model = MODELS.build(
        {
            "type": "ImageClassifier",
            "backbone": {"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 64, "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 4, "in_channels": 64},
        }
    )
    model.eval().double()
    x = images(97, 150)
    model.backbone = use_rival(model.backbone, name)
    (last,) = model.backbone(x)
    torch.testing.assert_close(model(x, mode="tensor"), model.head.fc(last.mean((2, 3))))


@pytest.mark.parametrize("name", RIVALS)
def test_valid_sizes_are_refused_unless_they_are_the_canvas(name):
    rival, x = use_rival(backbone(), name), images(64, 64)
    rival(attach_valid_sizes(x, [(64, 64), (64, 64)]))
    with pytest.raises(ValueError, match="do not know valid areas: use the toolbox's own data_preprocessor"):
        rival(attach_valid_sizes(x, [(64, 64), (64, 50)]))


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 0, 64), (1, 4, 64, 64)])
def test_what_is_no_batch_of_images_is_named(name, shape):
    with pytest.raises(ValueError, match=r"images \(N, .*got \("):
        use_rival(backbone(), name)(torch.zeros(shape, dtype=torch.float64))


def test_windows_do_not_train():
    with pytest.raises(ValueError, match="call eval"):
        use_rival(backbone(), "windows").train()(images(64, 64))


def test_an_unknown_rival_is_named():
    with pytest.raises(ValueError, match="unknown rival 'shifts', choose one of 'features', 'windows'"):
        use_rival(backbone(), "shifts")


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_not_made_from_a_rival(name):
    with pytest.raises(ValueError, match="made from an SMLPNet, got FeatureResizing"):
        use_rival(use_rival(backbone(), "features"), name)
