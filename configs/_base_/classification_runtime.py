"""What the classifiers share: mmpretrain's own, with checkpoints that are always whole and resumable randomness."""

_base_ = "mmpretrain::_base_/default_runtime.py"
default_hooks = dict(checkpoint=dict(type="mmsmlp.CheckpointHook"), resume=dict(type="mmsmlp.ResumeHook"))
