"""Necks that do not see the padding either."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from mmsmlp.registry import MODELS
from mmsmlp.valid_area import attach_valid_sizes, attached_valid_sizes, downsampled


@MODELS.register_module()
class ValidAreaNeck(BaseModule):
    """Run a neck so that each image's maps are those that it has alone.

    Necks such as FPN have biases, so what they compute in the padding is not zero, and their 3x3 convolutions carry it
    over the border. Here whatever enters a convolution that looks at neighbours, and what leaves the neck, is zero
    outside of the valid areas: the same zeros that the convolution pads an image alone with. Without a note of valid
    sizes on the backbone's maps, the neck runs as it is.

    Its parameters are those of the neck, named ``neck.`` below this module; it also loads checkpoints of the bare neck.
    Norms over positions (GN, IN) and pooling count the padding: of necks with these, maps still depend on the batch.

    Args:
        neck (dict): The neck's config, e.g. ``dict(type='FPN', ...)``. Its maps must have strides of powers of two.
        init_cfg (dict, optional): mmengine initialisation.
    """

    def __init__(self, neck: dict, init_cfg: dict | None = None):
        super().__init__(init_cfg=init_cfg)
        self.neck = MMENGINE_MODELS.build(neck)
        self._area: tuple[Tensor, tuple] | None = None
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                module.register_forward_pre_hook(self._clear_input)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (N, C, H, W) of the backbone -> the neck's."""
        sizes = attached_valid_sizes(inputs[0])
        if sizes is None:
            return self.neck(inputs)
        self._area = tuple(inputs[0].shape[2:]), sizes
        try:
            return tuple(self._clear(out) for out in self.neck(inputs))
        finally:
            self._area = None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # PyTorch and mmengine both hand over a copy of the caller's dict, and next take the neck's part from it.
        for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(f"{prefix}neck.")]:
            state_dict[f"{prefix}neck.{name[len(prefix) :]}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _clear_input(self, module: nn.Module, args: tuple) -> tuple | None:
        return None if self._area is None else (self._clear(args[0]), *args[1:])

    def _clear(self, x: Tensor) -> Tensor:
        """Zero outside of the valid areas, with their note."""
        (height, width), sizes = self._area
        shape = tuple(x.shape[2:])
        while shape != (height, width):
            if (height, width) == (1, 1):
                raise ValueError(f"the neck has a map of {shape}, which is no power-of-two stride of its largest input")
            (height, width), sizes = (-(-height // 2), -(-width // 2)), downsampled(sizes, 2)
        mask = x.new_zeros(len(x), 1, *shape)
        for image, (h, w) in zip(mask, sizes):
            image[:, :h, :w] = 1
        return attach_valid_sizes(x * mask, sizes)
