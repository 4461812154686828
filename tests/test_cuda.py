"""On a GPU, where there is one: half precision, and the same outputs as on the CPU."""

import copy

import pytest
import torch
from conftest import MINI

from mmsmlp import SMLPNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("interpolation", ["exact", "bounded", "scaled"])
@pytest.mark.parametrize("size", [(64, 64), (50, 90)], ids=str)
def test_outputs_equal_those_of_the_cpu(size, interpolation, relative_error):
    net = SMLPNet(MINI, img_size=64, interpolation=interpolation).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for ours, wanted in zip(copy.deepcopy(net).cuda()(x.cuda()), net(x)):
            assert relative_error(ours.cpu(), wanted) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_training_step_in_half_precision_is_finite(dtype):
    net = SMLPNet(MINI, img_size=64).cuda().train()
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    with torch.autocast("cuda", dtype):
        loss = sum(maps.square().mean() for maps in net(torch.randn(2, 3, 50, 90, device="cuda")))
    scaler.scale(loss).backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters())
