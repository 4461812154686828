"""One graph for all sizes: torch.compile(dynamic=True) and torch.export, counted, against the network as it is."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MINI
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp import create_model
from mmsmlp.symbols import is_certain, is_fixed

pytestmark = pytest.mark.needs_torch("2.11", reason="torch.compile of 2.1 gives several graphs, torch.export none")

ANCHOR = 64
# At the anchor, one pixel beside it, below, above, odd, wide, high; every map has more than one position an axis.
SIZES = [(64, 64), (65, 63), (33, 48), (90, 48), (48, 90), (40, 200), (200, 40), (61, 83), (128, 128), (64, 97)]
SIZES += [(131, 99), (224, 225)]
SMALL = {"arch": {"embed_dims": 8, "depths": (1, 1)}, "out_indices": (0, 1)}
MOST = 3  # graphs, over all sizes


def model(arch=MINI, **options) -> nn.Module:
    torch.manual_seed(0)
    net = create_model(arch, **{"img_size": ANCHOR, "features_only": True, **options})
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def images(size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def compiled(net: nn.Module, backend="eager"):
    """The network compiled for any size, and a list that grows with every graph; a graph break is an error."""
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return lookup_backend(backend)(graph, inputs)

    return torch.compile(net, fullgraph=True, dynamic=True, backend=counting), graphs


def assert_same(results, wanted, relative_error, tolerance=1e-5):
    results, wanted = ((r,) if torch.is_tensor(r) else r for r in (results, wanted))
    assert len(results) == len(wanted)
    assert max(relative_error(a, b) for a, b in zip(results, wanted)) < tolerance


def assert_few_graphs(net, relative_error, backend="eager", sizes=SIZES, tolerance=1e-5):
    run, graphs = compiled(net, backend)
    with torch.no_grad():
        for size in sizes:
            x = images(size)
            assert_same(run(x), net(x), relative_error, tolerance)
    assert 1 <= len(graphs) <= MOST
    assert not counters["graph_break"]


def test_the_sizes_are_as_the_issue_wants_them():
    assert len(set(SIZES)) == 12
    assert min(min(size) for size in SIZES) > 32
    for lengths in zip(*SIZES):
        assert {(length > ANCHOR) - (length < ANCHOR) for length in lengths} == {-1, 0, 1}


def test_a_feature_extractor_compiles_to_few_graphs(relative_error):
    assert_few_graphs(model(**SMALL), relative_error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "exact"},
        {"features_only": False, "num_classes": 7},
        {"fused_norms": True},
        {"arch": "tiny", "img_size": 224},
    ],
    ids=str,
)
def test_others_compile_to_few_graphs(options, relative_error):
    sizes = SIZES
    if options.get("arch") == "tiny":
        sizes = [(h * 2, w * 2) for h, w in SIZES[:-1]] + [(224, 225), (224, 224)]
    assert_few_graphs(model(**options), relative_error, sizes=sizes)


@pytest.mark.slow
def test_aot_eager_takes_the_graphs(relative_error):
    assert_few_graphs(model(**SMALL), relative_error, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_generated_code_gives_the_same_maps(relative_error):
    assert_few_graphs(model(), relative_error, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize(("interpolation", "backend"), [("bounded", "aot_eager"), ("exact", "eager")])
def test_a_training_step_compiles_to_few_graphs(interpolation, backend):
    net = model(**SMALL, interpolation=interpolation).double().train()
    other = copy.deepcopy(net)
    run, graphs = compiled(net, backend)
    for size in SIZES:
        x = images(size).double()
        for step in (run, other):
            sum(m.square().mean() for m in step(x)).backward()
    for a, b in zip((p.grad for p in net.parameters()), (p.grad for p in other.parameters())):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    for a, b in zip(net.buffers(), other.buffers()):
        torch.testing.assert_close(a, b)
    assert 1 <= len(graphs) <= MOST
    assert not counters["graph_break"]


def exported(net: nn.Module):
    """The exported program, as docs/deploy.md makes it."""
    height, width = (torch.export.Dim(name, min=33) for name in ("height", "width"))
    shapes = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    return torch.export.export(net, (images((90, 64)),), dynamic_shapes=shapes)


def assert_runs_at_all_sizes(net, run, relative_error, sizes=SIZES):
    with torch.no_grad():
        for count, size in zip((1, 2, 3, 5) * len(sizes), sizes):
            x = images(size, count)
            assert_same(run(x), net(x), relative_error)


def test_one_exported_program_runs_at_all_sizes_in_another_process(tmp_path, relative_error):
    net = model()
    torch.export.save(exported(net), tmp_path / "net.pt2")
    torch.save([images(size, 1 + i % 3) for i, size in enumerate(SIZES)], tmp_path / "images.pt")
    code = (
        "import torch\n"
        "run = torch.export.load('net.pt2').module()\n"
        "torch.save([run(x) for x in torch.load('images.pt')], 'maps.pt')\n"
        "import sys; assert not any(name.startswith(('mmsmlp', 'mmengine')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        for x, maps in zip(torch.load(tmp_path / "images.pt"), torch.load(tmp_path / "maps.pt")):
            assert_same(maps, net(x), relative_error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"interpolation": "exact"},
        {"interpolation": "scaled"},
        {"features_only": False, "num_classes": 7},
        {"fused_norms": True},
        {"arch": "tiny", "img_size": 224},
    ],
    ids=str,
)
def test_others_export_to_one_program(options, relative_error):
    net = model(**options)
    assert_runs_at_all_sizes(net, exported(net).module(), relative_error)


def test_sizes_that_are_numbers_are_told_from_symbols():
    assert [is_certain(answer) for answer in (True, False)] == [True, False]
    assert all(is_fixed(m, 2) for m in (1, 2, 3))
    answers = []

    def ask(x):
        answers.append(is_fixed(x.shape[1], 7))
        return x + 1

    for dynamic in (False, True):
        torch._dynamo.reset()
        torch.compile(ask, fullgraph=True, dynamic=dynamic, backend="eager")(torch.zeros(2, 5))
    assert answers == [True, False]


@pytest.mark.slow
def test_the_pages_snippets_run(tmp_path):
    page = (Path(__file__).parents[1] / "docs/deploy.md").read_text("utf-8")
    section = page.split("## torch.export and torch.compile")[1].split("\n## ")[0]
    snippets = re.findall(r"```python\n(.+?)```", section, re.S)
    snippets[0] = snippets[0].replace("dynamic=True", "dynamic=True, backend='aot_eager'")  # no compiler needed
    assert len(snippets) == 3
    for snippet in snippets:
        snippet = snippet.replace("'tiny'", "{'embed_dims': 8, 'depths': (1, 1, 1, 1)}")  # as tiny, but quick
        subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
