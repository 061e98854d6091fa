"""Cascade Mask R-CNN on Swin-B, distilled on P2-P6 from one on Swin-L."""

from detectron2.config import LazyCall as L

from skd import DistillRCNN, FrozenTeacher, StructuredDistiller

from ..common.lsj_100ep import dataloader, lr_multiplier, optimizer, train
from ..common.transformers import VITDET_URL, cascade_mask_rcnn_swin

model = L(DistillRCNN)(
    student=cascade_mask_rcnn_swin("B"),
    teacher=L(FrozenTeacher)(
        model=cascade_mask_rcnn_swin("L"),
        weights=VITDET_URL + "cascade_mask_rcnn_swin_l_in21k/f342979186/model_final_7c897e.pkl",
    ),
    distiller=L(StructuredDistiller)(preset="two_stage"),
)

train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth"
train.max_iter //= 2
lr_multiplier.scheduler.milestones = [m // 2 for m in lr_multiplier.scheduler.milestones]
optimizer.lr = 4e-5
optimizer.weight_decay = 0.05
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}
