"""Products by oneDNN's kernels are those of torch.mm."""

import pytest
import torch
import torch.nn.functional as F

from mmsmlp.ops import products
from mmsmlp.ops.products import linear, weight_gradient

SHAPES = [((5, 3), 4), ((2, 7, 9, 16), 48), ((1, 80), 1), ((0, 8), 4), ((2, 0, 3, 8), 4)]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["onednn", "mm"])
def kernels(request, monkeypatch):
    if request.param == "mm":
        monkeypatch.setattr(products, "_ONEDNN", None)
    else:
        assert products._ONEDNN is not None, "this PyTorch has no oneDNN"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(dtype, shape, out, gelu, with_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(out, shape[-1], dtype=dtype)
    bias = torch.randn(out, dtype=dtype) if with_bias else None
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(linear(x, weight, bias, gelu), F.gelu(expected) if gelu else expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("strides", ["contiguous", "transposed", "slice of columns", "every second row", "one value"])
@pytest.mark.parametrize("tokens", [11, products.TOKENS_WORTH_A_COPY])
def test_linear_takes_weights_of_any_strides(strides, tokens):
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, 6), torch.randn(6, 6)
    wide = torch.randn(12, 18)
    weight = {
        "contiguous": weight,
        "transposed": weight.t(),
        "slice of columns": wide[:6, 6:12],
        "every second row": wide[::2, :6],
        "one value": torch.ones(1, 1).expand(4, 6),
    }[strides]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_weight_gradient(dtype, shape, out):
    torch.manual_seed(0)
    x, grad = torch.randn(shape, dtype=dtype), torch.randn(*shape[:-1], out, dtype=dtype)
    weight = torch.zeros(out, shape[-1], dtype=dtype, requires_grad=True)
    F.linear(x, weight).backward(grad)
    result = weight_gradient(grad, x)
    torch.testing.assert_close(result, weight.grad)
    assert result.is_contiguous()
