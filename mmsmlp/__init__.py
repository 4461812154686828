"""sMLPNet (arXiv 2109.05422) for OpenMMLab, at any input size."""

__version__ = "0.1.0"

try:
    import mmengine  # noqa: F401  (imported here for the message below; the package uses it throughout)
except ModuleNotFoundError as error:
    if error.name != "mmengine":
        raise
    raise ModuleNotFoundError(
        "mmsmlp needs mmengine: in its clone, make setup or pip install -e '.[onedl]' (or extra 'openmmlab').",
        name="mmengine",
    ) from None

from mmsmlp.deploy import fuse_norms
from mmsmlp.layers import SparseMLP
from mmsmlp.models import create_model
from mmsmlp.smlpnet import SMLPNet

__all__ = ["SMLPNet", "SparseMLP", "__version__", "create_model", "fuse_norms"]
