"""Runs inside the environment: does everything import, and do mmcv's operators work on the device they were built for.

`python verify.py cpu` checks mmcv; `python verify.py cpu mmdet mim` these modules, too. One line if all is well.
"""

from __future__ import annotations

import importlib
import sys


def check_operators(device: str) -> str:
    """Runs non-maximum suppression on three boxes, two of which overlap."""
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
    _, keep = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)
    if keep.tolist() != [0, 2]:
        raise RuntimeError(f"mmcv.ops.nms kept the boxes {keep.tolist()} instead of [0, 2]")
    return f"torch {torch.__version__}, mmcv.ops on {device}"


def main(device: str, *modules: str) -> None:
    """Checks OpenCV first, since everything of OpenMMLab imports it; then the operators; then the modules."""
    versions = []
    for name in ("cv2", "torchvision", *modules):
        module = importlib.import_module(name)
        versions.append(f"{name} {getattr(module, '__version__', '')}".strip())
    print(", ".join([check_operators(device), *versions]))


if __name__ == "__main__":
    main(*sys.argv[1:])
