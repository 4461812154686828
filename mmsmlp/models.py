"""sMLPNet for people without an OpenMMLab config: one call makes a classifier or a feature extractor, with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mmsmlp.checkpoint import read_checkpoint
from mmsmlp.smlpnet import SMLPNet
from mmsmlp.weights.arch import recognise, some
from mmsmlp.weights.spach_files import RELEASED, SCHEME

_BACKBONE, _HEAD = "backbone.", "head.fc."
_OWN = ("downsample_layers.", "stages.", "norm")  # how the keys of a backbone alone start


class SMLPNetClassifier(nn.Module):
    """An image classifier: sMLPNet, global average pooling, one linear layer.

    Its weights have the names of an mmpretrain ``ImageClassifier`` with a ``LinearClsHead``, ``backbone.…`` and
    ``head.fc.…``, so the checkpoints of the one are those of the other.

    Args:
        backbone (SMLPNet): The network; the last of its maps is classified.
        num_classes (int): Number of classes; 0 leaves out the linear layer. Defaults to 1000.
        drop_rate (float): Dropout before the linear layer. Defaults to 0.

    Raises:
        ValueError: If the number of classes is negative.
    """

    def __init__(self, backbone: SMLPNet, num_classes: int = 1000, drop_rate: float = 0.0):
        super().__init__()
        self.backbone = backbone
        self.num_features = backbone.channels[backbone.out_indices[-1]]
        self.head = nn.ModuleDict({"drop": nn.Dropout(drop_rate)})
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a new one; 0 classes leave it out."""
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
            raise ValueError(f"num_classes must be an int from 0 (no classifier) up, got {num_classes!r}")
        self.num_classes = num_classes
        layer = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        parameter = next(self.backbone.parameters())
        self.head["fc"] = layer.to(parameter.device, parameter.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, C_in, H, W) to the last map, after its norm: (N, C, ceil(H / 32), ceil(W / 32))."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (N, num_classes), or with ``pre_logits`` to what the linear layer gets, (N, C)."""
        x = self.head["drop"](x.mean((2, 3)))
        return x if pre_logits else self.head["fc"](x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C_in, H, W) of any size to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def create_model(
    arch: str | dict = "tiny",
    pretrained: bool | str | Path | None = False,
    features_only: bool = False,
    num_classes: int | None = None,
    out_indices: int | Sequence[int] | None = None,
    img_size: int | Sequence[int] | None = None,
    drop_rate: float = 0.0,
    **backbone,
) -> nn.Module:
    """Make an sMLPNet: a classifier, or with ``features_only`` the backbone, whose output is a tuple of maps.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', or a dict as :class:`~mmsmlp.SMLPNet` takes it. Defaults to 'tiny'.
        pretrained (bool | str | Path | None): False or None: new weights. True: the official ImageNet weights, which
            exist for small and base. Otherwise where to read: ``spach://smlp_b``, ``spach:///path/to/official.pth``, an
            address or file that mmengine reads, or a file with a state dict; of a classifier, of any model with an
            sMLPNet as its ``backbone``, or of the backbone alone. Damaged files, and files that ask to run code, are
            refused (:func:`mmsmlp.checkpoint.read_checkpoint`).
        features_only (bool): Whether to return the backbone, without a classifier. Defaults to False.
        num_classes (int, optional): Classes; 0 gives the pooled features. Defaults to those of the weights, else 1000.
            With another number than theirs the classifier starts anew.
        out_indices (int | Sequence[int], optional): With ``features_only``: the stages whose maps are returned.
            Defaults to all, strides 4, 8, 16 and 32.
        img_size (int | Sequence[int], optional): The anchor in pixels, see :class:`~mmsmlp.SMLPNet`; any size can be
            given to the model. Defaults to the anchor of the weights, else 224.
        drop_rate (float): Dropout before the classifier. Defaults to 0.
        **backbone: Any other argument of :class:`~mmsmlp.SMLPNet`.

    Returns:
        nn.Module: An :class:`SMLPNetClassifier`, or an :class:`~mmsmlp.SMLPNet`; in training mode, as new modules are.

    Raises:
        ValueError: If an argument is invalid, there are no official weights of the arch, or the file is unsuitable.
        RuntimeError: If the weights are of another arch.
        OSError: If the weights are not there.

    Examples:
        >>> import torch, mmsmlp
        >>> net = mmsmlp.create_model("tiny", features_only=True, out_indices=(1, 2)).eval()
        >>> [tuple(m.shape) for m in net(torch.zeros(1, 3, 200, 333))]
        [(1, 160, 25, 42), (1, 320, 13, 21)]
    """
    if features_only and num_classes is not None:
        raise ValueError(f"features_only=True has no classes: leave out num_classes={num_classes!r}")
    if not features_only and out_indices is not None:
        raise ValueError(f"out_indices={out_indices!r} are for features_only=True: a classifier uses the last map")
    if "init_cfg" in backbone:
        raise ValueError("init_cfg is for OpenMMLab's configs: name the weights by pretrained=...")
    if not isinstance(pretrained, (bool, str, Path, type(None))) or pretrained == "":
        given = "''" if pretrained == "" else f"a {type(pretrained).__name__}"
        raise ValueError(f"pretrained must be True, False, or the path or address of weights, got {given}")
    weights, head = {}, {}
    if pretrained:
        source = _official(arch) if pretrained is True else str(pretrained)
        weights, head = _read(source)
        img_size = recognise(weights).img_size if img_size is None else img_size
    if out_indices is None:
        out_indices = (0, 1, 2, 3) if features_only else -1
    net = SMLPNet(arch, img_size=224 if img_size is None else img_size, out_indices=out_indices, **backbone)
    if weights:
        _load(net, weights, source)
    if features_only:
        return net
    known = len(head["weight"]) if head else 1000
    classifier = SMLPNetClassifier(net, known if num_classes is None else num_classes, drop_rate)
    if head and classifier.num_classes == known:
        classifier.head["fc"].load_state_dict(head)
    elif weights and classifier.num_classes:
        given = f"one of {known}" if head else "no classifier"
        print_log(f"{source} has {given}: that of {classifier.num_classes} classes starts anew", logger="current")
    return classifier


def _official(arch: str | dict) -> str:
    addresses = {name: SCHEME + file for file, name in RELEASED.items()}
    if isinstance(arch, str) and arch in addresses:
        return addresses[arch]
    raise ValueError(
        f"there are no official weights of arch {arch!r}, only of {' and '.join(map(repr, addresses))}: take one of "
        "these, or pretrained='/path/to/your.pth', or train anew with pretrained=False"
    )


def _read(source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the backbone, and of a classifier if there is one, without their prefixes."""
    state_dict = read_checkpoint(source)["state_dict"]
    weights, head = _below(_BACKBONE, state_dict), _below(_HEAD, state_dict)
    weights = weights or {key: value for key, value in state_dict.items() if key.startswith(_OWN)}
    if recognise(weights) is None:
        raise ValueError(f"{source}: no sMLPNet in it, neither below {_BACKBONE!r} nor alone: {some(state_dict)}")
    return weights, head if head.keys() == {"weight", "bias"} else {}


def _below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _load(net: SMLPNet, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a backbone; norms of outputs may be new, since only some of them are in any weights."""
    missing = net.load_state_dict(weights, strict=False).missing_keys
    missing = [key for key in missing if not key.startswith("norm") and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{source}: its sMLPNet is not complete, {some(missing)} missing; choose lower out_indices")
