"""Mask R-CNN on ViTDet-B, distilled on P2-P6 from one on ViTDet-L."""

from functools import partial

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from skd import DistillRCNN, FrozenTeacher, StructuredDistiller

from ..common.lsj_100ep import dataloader, lr_multiplier, optimizer, train
from ..common.transformers import VITDET_URL, mask_rcnn_vitdet

model = L(DistillRCNN)(
    student=mask_rcnn_vitdet("B"),
    teacher=L(FrozenTeacher)(
        model=mask_rcnn_vitdet("L"),
        weights=VITDET_URL + "mask_rcnn_vitdet_l/f325599698/model_final_6146ed.pkl",
    ),
    distiller=L(StructuredDistiller)(preset="two_stage"),
)

train.init_checkpoint = (
    "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
)
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
