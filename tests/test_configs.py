"""Every config builds its whole model, and the classifiers are the paper's networks to the last parameter."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmsmlp import SMLPNet
from mmsmlp.flops import count_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts)
# Small and base are a few lines over tiny; of each size one is trained in tests/test_zoo_runs.py.
LARGER = [p for p in CONFIGS if "-tiny" not in p.stem and "-mini" not in p.stem]


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.slow) if p in LARGER else p for p in CONFIGS], ids=lambda p: p.stem
)
def test_a_config_builds_its_model_around_the_backbone(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    assert isinstance(MODELS.build(cfg.model).backbone, SMLPNet)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_resumes_where_it_was_interrupted(path):
    hooks = Config.fromfile(path).default_hooks
    assert (hooks.checkpoint.type, hooks.resume.type) == ("mmsmlp.CheckpointHook", "mmsmlp.ResumeHook")


@pytest.mark.parametrize(
    ("arch", "parameters", "gmacs"),
    [("tiny", 24_123_584, 4.989), ("small", 48_558_136, 10.312), ("base", 65_880_408, 13.987)],
)
def test_the_classifiers_are_the_papers(arch, parameters, gmacs):
    count = count_config(ROOT / f"configs/classification/smlpnet-{arch}_8xb128_in1k.py", (224, 224))
    assert count.parameters == parameters
    assert round(count.total_macs / 1e9, 3) == gmacs
