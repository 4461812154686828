"""One training step of a Mask R-CNN on unequal images in each process; started by test_preprocessors.py.

OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node=2 tests/distributed/valid_areas.py OUT
"""

import sys
from pathlib import Path

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

sys.path.insert(0, str(Path(__file__).parents[1]))

from padded import SIZES, detection_batch, detector, recorded

from mmsmlp.valid_area import attached_valid_sizes


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = MMDistributedDataParallel(detector("demo").train(), device_ids=None, broadcast_buffers=False)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), 1e-3))
    with recorded(model.module.backbone) as calls:
        losses = model.train_step(detection_batch(SIZES[rank : rank + 2]), optimizer)
    kept = {
        "sizes": attached_valid_sizes(calls[0][0]),
        "parameters": dict(model.module.named_parameters()),
        "losses": {name: float(value) for name, value in losses.items()},
    }
    torch.save(kept, Path(sys.argv[1]) / f"rank{rank}.pth")


if __name__ == "__main__":
    main()
