"""Which set of OpenMMLab packages the tests run with: the import names are the same, those for pip and mim are not."""

from importlib.util import find_spec
from pathlib import Path

UPSTREAM = any(Path(find_spec("mim").origin).parents[1].glob("openmim-*.dist-info"))
SET, OTHER_SET = ("openmmlab", "onedl") if UPSTREAM else ("onedl", "openmmlab")
MMDET = "mmdet" if UPSTREAM else "mmdetection"  # what mim calls it
