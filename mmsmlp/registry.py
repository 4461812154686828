"""Registries of the scope ``mmsmlp``.

``mmengine`` imports this module when it meets a name such as ``mmsmlp.SMLPNet`` in a config, then the registry's
``locations``. They name exactly the modules that register something, so no ``custom_imports`` is needed and no
toolbox gets imported on the way.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import Registry

MODELS = Registry(
    "model",
    parent=MMENGINE_MODELS,
    scope="mmsmlp",
    locations=["mmsmlp.smlpnet", "mmsmlp.preprocessors", "mmsmlp.necks"],
)
HOOKS = Registry(
    "hook",
    parent=MMENGINE_HOOKS,
    scope="mmsmlp",
    locations=["mmsmlp.checkpoint_hook", "mmsmlp.resume"],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mmsmlp",
    locations=["mmsmlp.optim"],
)
