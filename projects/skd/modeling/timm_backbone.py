"""
Backbones from timm below Detectron2's FPN, for light students (MobileNet, EfficientNet, ...).

A student with one of these needs this package wherever it runs, because stock Detectron2 does not
know the backbone: ``import skd`` registers it, :func:`skd.add_skd_config` declares its keys.
"""

import logging
import os
from types import ModuleType
from typing import Dict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.file_io import PathManager
from torch import nn

from ..config.keys import has_timm
from ..config.naming import YAML, called, written_as
from ..runtime.torch_files import load_tensors

logger = logging.getLogger(__name__)

_NORMS = ("BN", "SyncBN", "FrozenBN")
_NAMES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}  # as ResNet names its maps, by stride


class TimmBackbone(Backbone):
    """
    A timm model's feature maps of the strides 4 to 32, named ``res2`` to ``res5`` as a ResNet's,
    so that a ResNet's configs need no other change.
    """

    def __init__(self, name: str, pretrained: bool = False, norm: str = "BN", weights: str = ""):
        """
        Args:
            name: see ``MODEL.TIMM.NAME``.
            pretrained: see ``MODEL.TIMM.PRETRAINED``.
            norm: see ``MODEL.TIMM.NORM``.
            weights: see ``MODEL.TIMM.WEIGHTS``.

        Raises:
            ImportError: timm is not installed.
            FileNotFoundError: there is no file ``weights``.
            ValueError: timm has no such model, it gives no feature maps, ``norm`` is unknown, or
                the model takes nothing of ``weights``.
        """
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(
                f"{_key('NORM')} is {norm!r}; it must be one of {', '.join(map(repr, _NORMS))}."
            )
        if weights and pretrained:
            raise ValueError(
                f"{_key('PRETRAINED')} is True and {_key('WEIGHTS')} is "
                f"'{weights}'; only one of them can be what to start from."
            )
        timm = _import_timm(name)
        self.body = _make_body(timm, name, pretrained, weights)
        if norm == "FrozenBN":
            self.body = timm.layers.freeze_batch_norm_2d(self.body)
        elif norm == "SyncBN":
            self.body = timm.layers.convert_sync_batchnorm(self.body)
        strides = self.body.feature_info.reduction()
        channels = self.body.feature_info.channels()
        self._indices = {
            _NAMES[s]: i for i, s in enumerate(strides) if s in _NAMES  # the last of a stride
        }
        if "res5" not in self._indices or "res3" not in self._indices:
            raise ValueError(
                f"'{name}' ({_key('NAME')}) has feature maps of the strides {list(strides)}; an "
                "FPN needs those of 8, 16 and 32."
            )
        self._out_features = list(self._indices)
        self._out_feature_channels = {n: channels[i] for n, i in self._indices.items()}
        self._out_feature_strides = {n: strides[i] for n, i in self._indices.items()}

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        """(N, 3, H, W), H and W multiples of 32 -> maps (N, C, H / stride, W / stride) by name."""
        maps = self.body(x)
        return {name: maps[i] for name, i in self._indices.items()}


def _key(name: str) -> str:
    """What the user calls a setting."""
    return called(f"MODEL.TIMM.{name}")


def _import_timm(name: str) -> ModuleType:
    """timm, which has a model of this name."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"The backbone '{name}' ({_key('NAME')}) comes from timm, which is not "
            "installed: pip install timm."
        ) from error
    if not timm.is_model(name.split(".")[0]):
        parts = [p for p in name.split("_") if p]
        close = timm.list_models(f"*{parts[0] if parts else ''}*")[:8]
        raise ValueError(
            f"{_key('NAME')} is '{name}', which timm {timm.__version__} does not have. "
            f"Similar: {', '.join(close) or 'none'}."
        )
    return timm


def _make_body(timm: ModuleType, name: str, pretrained: bool, weights: str) -> nn.Module:
    """timm's model, which returns its feature maps."""
    state = _read_weights(weights) if weights else None
    try:
        # timm itself leads a state dict to the names of the model without its head
        body = timm.create_model(
            name,
            pretrained=pretrained or bool(weights),
            features_only=True,
            **({"pretrained_cfg_overlay": {"state_dict": dict(state)}} if weights else {}),
        )
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"'{name}' ({_key('NAME')}) cannot be built with feature maps: {error}"
        ) from error
    if weights:
        _check_taken(body, state, weights, name)
    return body


def _read_weights(path: str) -> Dict[str, torch.Tensor]:
    """A local checkpoint's tensors; nothing in the file is run."""
    path = PathManager.get_local_path(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_key('WEIGHTS')} is '{path}', and there is no such file.")
    state = load_tensors(path)
    for key in ("state_dict", "model"):  # as training scripts nest it
        state = state.get(key, state)
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def _check_taken(model: nn.Module, state: Dict[str, torch.Tensor], path: str, name: str) -> None:
    """Raise or warn where a model took few of a file's tensors; by value, as timm renames them."""

    def tokens(tensors):
        return {(tuple(t.shape), t.double().sum().item()) for t in tensors if t.dim() > 1}

    wanted, given = tokens(model.parameters()), tokens(state.values())
    taken = len(wanted & given)
    if not taken:
        raise ValueError(
            f"{_key('WEIGHTS')} is '{path}', and '{name}' ({_key('NAME')}) takes none of its "
            f"{len(state)} tensors: their names or shapes are those of another model (there "
            f"'{next(iter(state), '')}', here '{next(iter(model.state_dict()))}')."
        )
    if taken < len(wanted):
        logger.warning(
            f"'{name}' takes {taken} of its {len(wanted)} weights from '{path}' "
            f"({_key('WEIGHTS')}); the others are random."
        )


def _bottom_up(cfg: CfgNode) -> TimmBackbone:
    if not has_timm(cfg):
        raise ValueError(
            f"MODEL.TIMM is another project's here: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} "
            "needs this project's, with NAME, PRETRAINED, NORM and WEIGHTS."
        )
    if cfg.MODEL.TIMM.NORM == "SyncBN" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("MODEL.TIMM.NORM SyncBN needs GPUs; on CPUs use BN or FrozenBN.")
    timm = cfg.MODEL.TIMM
    with written_as(YAML):
        return TimmBackbone(timm.NAME, timm.PRETRAINED, timm.NORM, timm.get("WEIGHTS", ""))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``build_resnet_fpn_backbone`` with a timm model: P2 to P6."""
    return FPN(
        bottom_up=_bottom_up(cfg),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``build_retinanet_resnet_fpn_backbone`` with a timm model: P3 to P7."""
    bottom_up = _bottom_up(cfg)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(bottom_up.output_shape()["res5"].channels, channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
