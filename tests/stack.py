"""Names that the sets of OpenMMLab packages do not share; import names are the same, those for pip and mim are not."""

from conftest import STACK as SET

UPSTREAM = SET == "openmmlab"
OTHER_SET = "onedl" if UPSTREAM else "openmmlab"
MMDET = "mmdet" if UPSTREAM else "mmdetection"  # what mim calls it
