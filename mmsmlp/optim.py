"""Layer-wise learning-rate decay for classifiers, detectors and segmentors alike.

In fine-tuning, the early layers of a pre-trained backbone get smaller learning rates than the late ones. mmpretrain's
constructor asks the whole model for depths, which only its classifiers know; mmdet's and mmseg's know some backbones by
class name. This one asks the backbone, wherever it is in the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from mmsmlp.registry import OPTIM_WRAPPER_CONSTRUCTORS

Group = tuple[dict, dict[str, nn.Parameter]]  # the optimizer's settings, and the parameters by their names


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scale the learning rate of each layer of the backbone by ``layer_decay_rate ** (number of layers above it)``.

    Depths come from the ``get_layer_depth(param_name, prefix)`` of the backbone, as mmpretrain's backbones and
    :class:`mmsmlp.SMLPNet` have it. What is not the backbone's keeps its learning rate. Norms and biases get no weight
    decay unless ``paramwise_cfg`` says otherwise. Parameters of equal settings form one group of the optimizer, and a
    table of the groups is logged.

    Args:
        optim_wrapper_cfg (dict): The optimizer wrapper; its ``optimizer`` says ``lr`` and ``weight_decay``.
        paramwise_cfg (dict): ``layer_decay_rate`` in (0, 1], and any option of mmengine's
            ``DefaultOptimWrapperConstructor``, with its meaning there. ``norm_decay_mult`` and ``bias_decay_mult``
            default to 0 here. As in mmengine, a parameter that a key of ``custom_keys`` matches is exempt from all
            other options, but not from the layer's scale: its learning rate is ``lr * lr_mult * scale``.

    Raises:
        ValueError: If the rate is missing or outside (0, 1], if the optimizer says no ``lr`` or ``weight_decay``, or,
            when called, if no module of the model has ``get_layer_depth``.

    Examples:
        >>> optim_wrapper = dict(
        ...     constructor="mmsmlp.LayerDecayOptimWrapperConstructor",
        ...     optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
        ...     paramwise_cfg=dict(layer_decay_rate=0.9),
        ... )
    """

    def _validate_cfg(self) -> None:
        for name, value in (("lr", self.base_lr), ("weight_decay", self.base_wd)):
            if value is None:  # optimizers differ in their defaults: AdamW would decay norms by 0.01
                raise ValueError(
                    f"layer-wise decay starts from the optimizer's {name}: state it in optimizer=dict(...)"
                )
        super()._validate_cfg()
        self.paramwise_cfg = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0, **self.paramwise_cfg}
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f"paramwise_cfg needs layer_decay_rate in (0, 1], got {rate!r} (1 decays nothing)")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module=None) -> None:
        """Append the groups of a model to ``params``, and log them.

        Args:
            params (list[dict]): Parameter groups, changed in place.
            module (nn.Module): The model, or one of its modules in mmengine's recursion.
            prefix (str): The module's name within the model, '' for the model.
            is_dcn_module (bool | None): mmengine's note that the parent is a deformable convolution.

        Raises:
            ValueError: If no module of the model has ``get_layer_depth``.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        backbones = find_backbones(module)
        single: list[dict] = []
        with _without_lines_on_single_parameters():
            super().add_params(single, module, prefix, is_dcn_module)
        groups = self._merge(module, backbones, single)
        print_log(f"layer-wise learning rates:\n{_table(groups)}", logger="current")
        params.extend({**settings, "params": list(named.values())} for settings, named in groups)

    def _merge(self, model: nn.Module, backbones: dict[str, nn.Module], single: list[dict]) -> list[Group]:
        """Join groups of one parameter that have equal settings, with the layers' learning rates."""
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        merged: dict[str, Group] = {}
        for settings in single:
            (parameter,) = settings.pop("params")
            name = name_of[id(parameter)]
            depth, num_layers = _layer_depth(backbones, name)
            scale = self.paramwise_cfg["layer_decay_rate"] ** (num_layers - 1 - depth)
            settings = {"lr": self.base_lr, "weight_decay": self.base_wd, **settings}
            settings.update(lr=settings["lr"] * scale, lr_scale=scale, layer_depth=depth)
            _, named = merged.setdefault(repr(sorted(settings.items())), (settings, {}))
            named[name] = parameter
        return sorted(merged.values(), key=lambda group: group[0]["layer_depth"])


def find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules that know the depths of their layers.

    Args:
        model (nn.Module): A classifier, detector or segmentor, or a backbone alone.

    Returns:
        dict[str, nn.Module]: The prefix of a module's parameter names, such as ``'backbone.'``, and the module.

    Raises:
        ValueError: If there is none.
    """
    found = {
        f"{name}." if name else "": module
        for name, module in model.named_modules()
        # mmpretrain's classifiers have the method, too, and pass on to their backbone
        if hasattr(module, "get_layer_depth") and not hasattr(module, "backbone")
    }
    if not found:
        backbone = getattr(model, "backbone", model)
        raise ValueError(
            f"layer-wise decay needs a backbone with get_layer_depth, as mmsmlp.SMLPNet and mmpretrain's have it; "
            f"{type(backbone).__name__} has none"
        )
    return found


def _layer_depth(backbones: dict[str, nn.Module], name: str) -> tuple[int, int]:
    # By the methods' convention, any backbone places what is not its own above its last layer.
    prefix = max((p for p in backbones if name.startswith(p)), key=len, default=next(iter(backbones)))
    try:
        return backbones[prefix].get_layer_depth(name, prefix)
    except NotImplementedError:  # mmpretrain's ResNet knows the depths of its larger variants only
        kind = type(backbones[prefix]).__name__
        raise ValueError(f"layer-wise decay is not for this {kind}: its get_layer_depth is not implemented") from None


@contextmanager
def _without_lines_on_single_parameters() -> Iterator[None]:
    """Keep mmengine from logging hundreds of lines, with learning rates that the layers' scales still change."""
    logger = MMLogger.get_current_instance()

    def keep(record) -> bool:
        return not str(record.msg).startswith("paramwise_options")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _table(groups: list[Group]) -> str:
    table = Table(box=box.MARKDOWN)
    for heading in ("depth", "lr scale", "lr", "weight decay", "tensors", "parameters"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("first names", no_wrap=True)
    for settings, named in groups:
        names = list(named)
        table.add_row(
            str(settings["layer_depth"]),
            *(f"{settings[key]:.3g}" for key in ("lr_scale", "lr", "weight_decay")),
            str(len(names)),
            f"{sum(parameter.numel() for parameter in named.values()):,}",
            ", ".join(names[:2]) + (", …" if names[2:] else ""),
        )
    console = Console(file=StringIO(), width=240)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip().splitlines())
