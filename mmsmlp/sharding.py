"""How mmengine's FSDPStrategy cuts an SMLPNet: into its blocks."""

from torch import nn

from mmsmlp.blocks import SMLPBlock


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """The ``auto_wrap_policy`` of PyTorch's FullyShardedDataParallel: every block is a unit, the rest one more.

    In a config ``auto_wrap_policy='mmsmlp.sharding.wrap_blocks'``. A process holds the whole parameters of one unit at
    a time, besides its own part of all the others.

    Args:
        module (nn.Module): What FSDP looks at.
        recurse (bool): Whether it asks if it should look at the module's parts, else if the module is a unit.
        nonwrapped_numel (int): Number of parameters in no unit yet, which do not matter here.

    Returns:
        bool: The answer.
    """
    return recurse or isinstance(module, SMLPBlock)
