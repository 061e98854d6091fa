"""Detectors on transformers, as their authors' published checkpoints have them."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SwinTransformer
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

VITDET_URL = "https://dl.fbaipublicfiles.com/detectron2/ViTDet/COCO/"


def mask_rcnn_vitdet(size="B"):
    """Mask R-CNN on ViTDet, of ViT-B or ViT-L."""
    model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    if size == "L":
        model.backbone.net.update(embed_dim=1024, depth=24, num_heads=16, drop_path_rate=0.4)
        model.backbone.net.window_block_indexes = [i for i in range(24) if i % 6 != 5]
    return model


def cascade_mask_rcnn_swin(size="B"):
    """Cascade Mask R-CNN on Swin-B or Swin-L."""
    model = model_zoo.get_config("common/models/cascade_rcnn.py").model
    constants = model_zoo.get_config("common/data/constants.py").constants
    model.pixel_mean = constants.imagenet_rgb256_mean
    model.pixel_std = constants.imagenet_rgb256_std
    model.input_format = "RGB"
    model.backbone.bottom_up = L(SwinTransformer)(
        depths=[2, 2, 18, 2], drop_path_rate=0.4, embed_dim=128, num_heads=[4, 8, 16, 32]
    )
    if size == "L":
        model.backbone.bottom_up.update(embed_dim=192, num_heads=[6, 12, 24, 48])
    model.backbone.in_features = ("p0", "p1", "p2", "p3")
    model.backbone.square_pad = 1024
    model.backbone.norm = "LN"
    model.proposal_generator.head.conv_dims = [-1, -1]
    model.roi_heads.mask_head.conv_norm = "LN"
    model.roi_heads.box_heads = [
        L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm="LN",
        )
        for _ in range(3)
    ]
    return model
