"""The documents: every relative link leads somewhere, and both READMEs say the same."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmsmlp import SMLPNet

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*/README.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_placeholder_is_left(document):
    assert not re.search("@@|TODO|closing commit", document.read_text("utf-8"))


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_snippet_makes_a_detector_of_a_stock_config(readme, tmp_path):
    snippet = re.search(r"```python\n(.+?)```", (ROOT / readme).read_text("utf-8"), re.S)[1]
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n{snippet}")
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps[:4]] == [(1, 256, 16 // 2**i, 24 // 2**i) for i in range(4)]
    assert isinstance(model.backbone, SMLPNet)


def test_the_chinese_readme_has_the_same_commands_links_and_figures():
    texts = [(ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")]
    for pattern in (r"\]\((?!README)([^)]+)\)", r"\b\d+\.\d+\b", r"^(?:make|mim|python) [\w/.-]+"):
        first, second = (sorted(re.findall(pattern, text, re.M)) for text in texts)
        assert first == second
