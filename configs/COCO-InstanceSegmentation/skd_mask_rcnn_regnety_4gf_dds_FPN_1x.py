"""Mask R-CNN on a RegNet, distilled on P2-P6 from one on a larger network."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from skd import DistillRCNN, StructuredDistiller, build_teacher

_regnet = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py")
dataloader, train = _regnet.dataloader, _regnet.train
optimizer, lr_multiplier = _regnet.optimizer, _regnet.lr_multiplier

model = L(DistillRCNN)(
    student=_regnet.model,
    teacher=L(build_teacher)(
        config_file="COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml"
    ),
    distiller=L(StructuredDistiller)(preset="two_stage"),
)
