"""
Real models with a fault in them, for the table of what the doctor finds. Names in Detectron2's
registries, so that a config brings the fault and nothing on the doctor's side knows of it.
"""

from typing import Dict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
    build_backbone,
)
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from torch import nn

from ...modeling.timm_backbone import build_timm_fpn_backbone

LEVELS = ["p3", "p4", "p5", "p6", "p7"]


@META_ARCH_REGISTRY.register()
class FrozenBackboneRCNN(GeneralizedRCNN):
    """All of the backbone is frozen, as by a line of the user's own that was forgotten."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone.requires_grad_(False)


@META_ARCH_REGISTRY.register()
class FrozenBackboneRetinaNet(RetinaNet):
    """The same."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone.requires_grad_(False)


def _with_other_maps(backbone: nn.Module, change) -> nn.Module:
    """The backbone, whose maps go through ``change`` before anybody gets them."""
    backbone.register_forward_hook(lambda module, args, maps: change(maps))
    return backbone


def _shifted(maps: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    return {name: x.roll((1, 1), dims=(2, 3)) for name, x in maps.items()}


def _swapped(maps: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    return {**maps, "p3": maps["p4"], "p4": maps["p3"]}


@BACKBONE_REGISTRY.register()
def build_fpn_with_shifted_maps(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Every map lies one position further down and right, as from other padding."""
    return _with_other_maps(build_resnet_fpn_backbone(cfg, input_shape), _shifted)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_with_shifted_maps(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The same, of a light detector."""
    return _with_other_maps(build_timm_fpn_backbone(cfg, input_shape), _shifted)


@BACKBONE_REGISTRY.register()
def build_fpn_with_swapped_levels(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """P3 and P4 have each other's names."""
    return _with_other_maps(build_resnet_fpn_backbone(cfg, input_shape), _swapped)


@META_ARCH_REGISTRY.register()
def ShapesFCOS(cfg: CfgNode) -> nn.Module:  # noqa: N802, a name in the registry of classes
    """No fault: FCOS, which Detectron2 has as a LazyConfig only, from a RetinaNet's config."""
    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[name] for name in LEVELS]
    classes = cfg.MODEL.RETINANET.NUM_CLASSES
    widths = [cfg.MODEL.FPN.OUT_CHANNELS] * cfg.MODEL.RETINANET.NUM_CONVS
    return FCOS(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, num_classes=classes, conv_dims=widths),
        head_in_features=LEVELS,
        num_classes=classes,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    ).to(cfg.MODEL.DEVICE)
