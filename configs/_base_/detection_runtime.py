"""What the detectors share: mmdet's own, with checkpoints that are always whole and resumable randomness."""

_base_ = "mmdet::_base_/default_runtime.py"
default_hooks = dict(checkpoint=dict(type="mmsmlp.CheckpointHook"), resume=dict(type="mmsmlp.ResumeHook"))
