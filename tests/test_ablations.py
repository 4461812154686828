"""The paper's ablations as config switches: what each of them takes away, what it costs, and the script's rows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import ablations
import pytest
import torch
from conftest import MINI

from mmsmlp import SMLPNet
from mmsmlp.blocks import SMLPBlock
from mmsmlp.flops import count_macs, mixer_token_macs, sparse_mlp_macs
from mmsmlp.layers import LocalMixer, SparseMLP

ROOT = Path(__file__).parents[1]


def sparse_mlp(**kwargs) -> SparseMLP:
    return SparseMLP(6, (4, 5), **kwargs).double().eval()


def branches(layer: SparseMLP, x: torch.Tensor) -> list[torch.Tensor]:
    """The layer's identity, row and column branch, (N, C, H, W) each."""
    y = layer.act(layer.norm(x)).permute(0, 2, 3, 1)
    return [branch.permute(0, 3, 1, 2) for branch in (y, layer.mix_w(y), layer.mix_h(y))]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 6, 4, 5, dtype=torch.float64)


def test_fusion_by_a_sum_adds_the_branches(x):
    layer = sparse_mlp(fusion="sum")
    torch.testing.assert_close(layer(x), sum(branches(layer, x)))


def test_fusion_by_a_weighted_sum_starts_as_the_sum(x):
    layer = sparse_mlp(fusion="weighted")
    torch.testing.assert_close(layer(x), sum(branches(layer, x)))


def test_fusion_by_a_weighted_sum_weighs_branches_per_channel(x):
    layer = sparse_mlp(fusion="weighted")
    layer.branch_weights.data = torch.randn_like(layer.branch_weights)
    wanted = sum(w[:, None, None] * b for w, b in zip(layer.branch_weights, branches(layer, x)))
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("fusion", ["concat", "sum", "weighted"])
def test_without_the_identity_branch_the_two_axes_are_left(fusion, x):
    layer = sparse_mlp(fusion=fusion, identity_branch=False)
    _, rows, columns = branches(layer, x)
    if fusion == "concat":
        assert layer.fuse.weight.shape == (6, 12)
        wanted = torch.einsum("ock,nckhw->nohw", layer.fuse.weight.view(6, 2, 6).transpose(1, 2),
                              torch.stack((rows, columns), 2))  # fmt: skip
    else:
        wanted = rows + columns
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(
    ("switch", "local", "sparse"),
    [({}, 5, 5), ({"local_mixing": False}, 0, 5), ({"global_mixing": False}, 5, 0)]
    + [({"global_mixing": [i != stage for i in range(4)]}, 5, 5 - MINI["depths"][stage]) for stage in range(4)],
)
def test_mixing_is_taken_out_where_it_is_said(switch, local, sparse):
    net = SMLPNet(MINI, img_size=64, **switch)
    count = {kind: sum(isinstance(m, kind) for m in net.modules()) for kind in (LocalMixer, SparseMLP)}
    assert count == {LocalMixer: local, SparseMLP: sparse}
    if isinstance(switch.get("global_mixing"), list):
        stage = switch["global_mixing"].index(False)
        assert not any(isinstance(m, SparseMLP) for m in net.stages[stage].modules())


def test_without_global_mixing_a_block_sees_3_by_3_positions():
    block = SMLPBlock(6, (9, 9), global_mixing=False).double().eval()
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    block(x)[0, :, 4, 4].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen.sum() == 9
    assert seen[3:6, 3:6].all()


def test_without_local_mixing_a_block_sees_its_row_and_column():
    block = SMLPBlock(6, (9, 9), local_mixing=False).double().eval()
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    block(x)[0, :, 2, 4].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen[2].all()
    assert seen[:, 4].all()
    assert seen.sum() == 17


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fusion": "mean"}, "unknown fusion 'mean', choose one of 'concat', 'sum', 'weighted'"),
        ({"local_mixing": False, "global_mixing": False}, "does not mix tokens"),
        ({"local_mixing": False, "global_mixing": [True, True, False, True]}, "does not mix tokens"),
        ({"global_mixing": [True, False]}, r"one per stage \(4\), got \[True, False\]"),
        ({"global_mixing": [1, 1, 0, 1]}, r"one per stage \(4\), got \[1, 1, 0, 1\]"),
        ({"global_mixing": None}, r"one per stage \(4\), got None"),
        ({"global_mixing": False, "fusion": "mean"}, "unknown fusion 'mean'"),
        ({"arch": {**MINI, "patch_size": 0}}, "patch_size.* must be positive"),
        ({"arch": {**MINI, "mlp_ratio": "3"}}, "mlp_ratio leave a hidden channel.*'3'"),
        ({"arch": {**MINI, "mlp_ratio": 0.01}}, "mlp_ratio leave a hidden channel"),
        ({"drop_path_rate": "0.1"}, r"drop_path_rate must be in \[0, 1\), got '0.1'"),
    ],
)
def test_a_bad_switch_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SMLPNet(**{"arch": MINI, **kwargs})


@pytest.mark.parametrize(("size", "shape"), [((64, 64), (8, 8)), ((50, 70), (7, 9)), ((1, 1), (1, 1))])
def test_a_single_stage_with_a_patch_size_is_isotropic(size, shape):
    net = SMLPNet({"embed_dims": 12, "depths": (3,), "patch_size": 8}, img_size=64, out_indices=-1).eval()
    (out,) = net(torch.randn(1, 3, *size))
    assert out.shape == (1, 12, *shape)
    assert (net.strides, net.grids) == ([8], [(8, 8)])


@pytest.mark.parametrize("switch", [{"local_mixing": False}, {"global_mixing": False}, {"fusion": "weighted"}])
def test_an_ablated_network_trains_and_loads_its_checkpoint_on_another_grid(switch):
    net = SMLPNet(MINI, img_size=64, **switch)
    sum(m.square().mean() for m in net(torch.randn(2, 3, 64, 96))).backward()
    assert all(p.grad is not None for p in net.parameters())
    other = SMLPNet(MINI, img_size=96, **switch)
    other.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 96, 96)
    for a, b in zip(other.eval()(x), net.eval()(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width", "channels"), [(14, 14, 320), (7, 11, 40)])
def test_the_formula_of_a_sparse_mlps_cost_is_what_it_runs(height, width, channels):
    layer = SparseMLP(channels, (height, width))
    parts = count_macs(layer, lambda: layer(torch.zeros(1, channels, height, width)))
    assert sum(parts.values()) == sparse_mlp_macs(height, width, channels)


@pytest.mark.parametrize(("height", "width", "channels", "ratio"), [(14, 14, 320, 0.5), (7, 11, 40, 3)])
def test_the_formula_of_a_mixers_token_mixing_is_what_mmpretrains_runs(height, width, channels, ratio):
    from mmpretrain.models.backbones.mlp_mixer import MixerBlock

    tokens = height * width
    mix = MixerBlock(tokens, channels, int(ratio * tokens), channels).token_mix
    parts = count_macs(mix, lambda: mix(torch.zeros(1, channels, tokens)))
    assert sum(parts.values()) == mixer_token_macs(height, width, channels, ratio)


def test_the_pages_table_of_costs_is_what_layers_have_and_run():
    """Weights of real layers; operations by the formulas, which the two tests above hold against counted ones."""
    from mmpretrain.models.backbones.mlp_mixer import MixerBlock

    page = (ROOT / "docs/ablations.md").read_text("utf-8")
    pattern = r"^\| \d \| (\d+) x \d+, (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \|$"
    found = re.findall(pattern, page, re.M)
    assert len(found) == 4
    for grid, channels, sparse, axes, mixer, sparse_weights, mixer_weights in found:
        n, c = int(grid), int(channels)
        cost = sparse_mlp_macs(n, n, c)
        wanted = [cost, cost - 3 * n * n * c * c, mixer_token_macs(n, n, c, 3)]
        assert [sparse, axes, mixer] == [f"{value / 1e6:.1f}" for value in wanted]
        layer = SparseMLP(c, n)
        count = sum(p.numel() for name, p in layer.named_parameters() if not name.startswith("norm"))
        assert sparse_weights == f"{count:,}"
        with torch.device("meta"):  # 59 M weights need not exist
            mix = MixerBlock(n * n, c, 3 * n * n, c).token_mix
        assert mixer_weights == f"{sum(p.numel() for p in mix.parameters()):,}"


def table_of_ablations() -> dict[str, list[str]]:
    page = (ROOT / "docs/ablations.md").read_text("utf-8")
    lines = re.findall(
        r"^\| ([\w ]+) \| ([\d,]+) \| ([\d.]+) \| [\d.]+ ± [\d.]+ \| ([\d.]*) \| ([\d.]*) \|", page, re.M
    )
    return {name: cells for name, *cells in lines}


def test_the_page_has_a_row_for_every_ablation():
    assert list(table_of_ablations()) == list(ablations.VARIANTS)


QUICK = ("full", "fusion by a sum", "single stage")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ablations.VARIANTS]
)
def test_the_pages_costs_of_an_ablation_are_counted(name):
    row = ablations.row(name, [0.5], [0], 600)
    wanted = [f"{row['parameters']:,}", f"{row['macs'] / 1e6:.2f}", "", ""]
    if "tiny_macs" in row:
        wanted[2:] = f"{row['tiny_parameters'] / 1e6:.2f}", f"{row['tiny_macs'] / 1e9:.3f}"
    assert table_of_ablations()[name] == wanted


@pytest.mark.slow
def test_too_short_a_training_is_refused_in_one_line():
    command = [sys.executable, "benchmarks/ablations.py", "--iterations", "20"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--iterations must be more than the 20 of the warm-up, got 20" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_script_trains_counts_and_does_not_repeat_a_run(tmp_path):
    if not (ROOT / "data/photos").exists():
        subprocess.run([sys.executable, "tools/make_photos.py", "data/photos"], cwd=ROOT, check=True)
    command = [sys.executable, "benchmarks/ablations.py", "--seeds", "0", "--iterations", "21", "--out", str(tmp_path)]
    command += ["--only", "no local mixing", "single stage"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in rows] == ["no local mixing", "single stage"]
    assert all(0 <= row["top1"][0] <= 1 for row in rows)
    assert rows[0]["tiny_parameters"] == 24_044_384
    assert (tmp_path / "ablations.png").stat().st_size > 5000
    checkpoint = next(tmp_path.glob("no-local-mixing/*/*.pth"))
    written = checkpoint.stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert checkpoint.stat().st_mtime_ns == written
